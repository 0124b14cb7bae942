# make deb: a package for the Debian that this is run on, in dist/.
# make rpm: one for the Fedora that this is run on; elsewhere, one to look at.
#
#     make deb DIST=/tmp/out WORK=/tmp/work     there, and made there
#
# Debian's source package has two archives, which is what format 3.0 (quilt) is for: that of sysup is
# its source distribution, and that of cysystemd is as its authors made it, pinned by its hash. What
# dpkg-buildpackage does then needs no network.

DIST ?= dist
WORK ?= build
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
CYSYSTEMD := $(shell sed -n 's/^cysystemd==\([^ ]*\).*/cysystemd-\1/p' packaging/cysystemd.txt)
FETCHED := build/fetched/$(CYSYSTEMD).tar.gz
SDIST := $(DIST)/sysup-$(VERSION).tar.gz
DEB_TREE := $(WORK)/deb/sysup-$(VERSION)
BUILD_SDIST := import setuptools.build_meta as it; it.build_sdist("$(DIST)")

.PHONY: sdist deb rpm

sdist: $(BUILT)
	@rm -rf *.egg-info && mkdir -p $(WORK) $(DIST)
	@$(BIN)/python -W ignore -c '$(BUILD_SDIST)' >$(WORK)/sdist.log 2>&1 || \
	    { cat $(WORK)/sdist.log >&2; exit 1; }

$(FETCHED): packaging/cysystemd.txt | $(BUILT)
	@rm -rf $(@D) && $(BIN)/python -m pip download -q --no-deps --no-binary :all: \
	    --no-build-isolation --require-hashes -d $(@D) -r packaging/cysystemd.txt
	@touch $@

deb: sdist $(FETCHED)
	@.ci/prerequisites --packages $(BIN)/python >/dev/null
	@rm -rf $(WORK)/deb && mkdir -p $(DEB_TREE)/cysystemd
	@cp $(SDIST) $(WORK)/deb/sysup_$(VERSION).orig.tar.gz
	@cp $(FETCHED) $(WORK)/deb/sysup_$(VERSION).orig-cysystemd.tar.gz
	@tar -C $(DEB_TREE) --strip-components=1 -xf $(SDIST)
	@tar -C $(DEB_TREE)/cysystemd --strip-components=1 -xf $(FETCHED)
	@cp -r packaging/debian $(DEB_TREE)
	@cd $(DEB_TREE) && dpkg-buildpackage -us -uc >../log 2>&1 || { tail -n 40 ../log >&2; exit 1; }
	@cp $(WORK)/deb/*.deb $(DIST) && ls $(WORK)/deb/*.deb | sed 's|.*/|$(DIST)/|'

rpm: sdist $(FETCHED)
	@.ci/prerequisites --packages $(BIN)/python >/dev/null
	@rm -rf $(WORK)/rpm && mkdir -p $(WORK)/rpm/SOURCES
	@cp $(SDIST) $(FETCHED) $(WORK)/rpm/SOURCES
	@rpmbuild -bb $(if $(wildcard /etc/debian_version),--nodeps) \
	    --define '_topdir $(abspath $(WORK)/rpm)' --define 'version_of_sysup $(VERSION)' \
	    --define 'version_of_cysystemd $(CYSYSTEMD:cysystemd-%=%)' packaging/sysup.spec \
	    >$(WORK)/rpm/log 2>&1 || { tail -n 40 $(WORK)/rpm/log >&2; exit 1; }
	@cp $(WORK)/rpm/RPMS/*/*.rpm $(DIST) && ls $(WORK)/rpm/RPMS/*/*.rpm | sed 's|.*/|$(DIST)/|'
