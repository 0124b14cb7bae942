# make install: the package in a directory of its own, programs, units, and what goes with them.
#
#     make install                          below /usr/local, for /usr/bin/python3
#     make install prefix=/usr              where distributions have it
#     make install DESTDIR=/tmp/tree        all of it into a tree, for a package
#     make install PYTHON=/usr/bin/python3.12
#     make install VENDOR='cysystemd'       bring along these instead of all that PYTHON lacks
#     make install BUILT= MAKES=python3     with an extension that lies in sysup/, and without .venv
#
# What PYTHON has of sysup's dependencies is used from there (Debian: python3-cffi-backend,
# python3-click, python3-zmq); the rest is put beside sysup by pip. The programs look for modules
# there and in PYTHON's own places, and nowhere that a user could write to.

prefix ?= /usr/local
bindir ?= $(prefix)/bin
privatedir ?= $(prefix)/lib/sysup
sysconfdir ?= /etc
unitdir ?= $(prefix)/lib/systemd/system
userunitdir ?= $(prefix)/lib/systemd/user
sysusersdir ?= $(prefix)/lib/sysusers.d
tmpfilesdir ?= $(prefix)/lib/tmpfiles.d
datadir ?= $(prefix)/share
docdir ?= $(datadir)/doc/sysup
mandir ?= $(datadir)/man
zshdir ?= zsh/site-functions
DESTDIR ?=

RUNS_ON = $(shell command -v $(or $(PYTHON),/usr/bin/python3))
# What can import sysup where it lies, for that which is made from it.
MAKES ?= $(BIN)/python
VENDOR ?= $(shell $(RUNS_ON) -I packaging/lacking.py)
MODULES := $(shell find sysup -name '*.py' -o -name '*.pyi' -o -name py.typed)
UNITS := sysup@.service sysup-guard@.service sysup@.socket sysup.target
EXAMPLES := sysup-web@.socket hardening.conf restart-direct.conf example.ini
COMPLETIONS = bash-completion/completions/sysupctl $(zshdir)/_sysupctl \
    fish/vendor_completions.d/sysupctl.fish
MANUAL = man1/sysupctl.1 man5/sysup.ini.5 man8/sysupd.8 man8/sysup@.service.8

D = $(DESTDIR)
PUT := install -D -m 0644
FILL_IN = sed -e 's|@bindir@|$(bindir)|g' -e 's|@sysconfdir@|$(sysconfdir)|g' \
    -e 's|@docdir@|$(docdir)|g' -e 's|@privatedir@|$(privatedir)|g'

.PHONY: install uninstall

install: $(BUILT)
	@$(RUNS_ON) -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo 'cannot install: sysup needs Python 3.11 or newer, see PYTHON=' >&2; exit 1; }
	@rm -rf '$(D)$(privatedir)'
	@set -e; for file in $(MODULES) sysup/_native.abi3.so; do \
	    $(PUT) $$file '$(D)$(privatedir)/'$$file; \
	done
	@set -e; for part in $(VENDOR); do \
	    echo "bringing along $$part" && $(BIN)/python -m pip --python $(RUNS_ON) install -q \
	        --no-deps --no-compile --root-user-action ignore \
	        --target '$(D)$(privatedir)/vendor' "$$part"; \
	done
	@$(RUNS_ON) -I -m compileall -q $(if $(D),-s '$(D)' -p /) '$(D)$(privatedir)'
	@set -e; mkdir -p '$(D)$(bindir)'; for name in sysupd:__main__ sysupctl:ctl; do \
	    file='$(D)$(bindir)/'$${name%:*}; \
	    printf '%s\n' '#!$(RUNS_ON) -I' 'import sys' '' \
	        'sys.path.insert(0, "$(privatedir)")' 'sys.path.append("$(privatedir)/vendor")' '' \
	        "from sysup.$${name#*:} import main" '' 'sys.exit(main())' >"$$file"; \
	    chmod 0755 "$$file"; \
	done
	@set -e; for unit in $(UNITS) $(UNITS:%=user/%); do \
	    case $$unit in user/*) to='$(userunitdir)';; *) to='$(unitdir)';; esac; \
	    mkdir -p "$(D)$$to"; \
	    $(FILL_IN) units/$$unit >"$(D)$$to/$${unit#user/}"; \
	    chmod 0644 "$(D)$$to/$${unit#user/}"; \
	done
	@install -D -m 0755 units/stop-post '$(D)$(privatedir)/stop-post'
	@$(FILL_IN) packaging/running >'$(D)$(privatedir)/running'
	@chmod 0755 '$(D)$(privatedir)/running'
	@$(PUT) units/sysusers.d/sysup.conf '$(D)$(sysusersdir)/sysup.conf'
	@$(PUT) units/tmpfiles.d/sysup.conf '$(D)$(tmpfilesdir)/sysup.conf'
	@$(PUT) -t '$(D)$(docdir)' README.md CHANGELOG.md LICENSE docs/*.md
	@$(PUT) -t '$(D)$(docdir)/examples' $(EXAMPLES:%=units/%)
	@[ -e '$(D)$(sysconfdir)/sysup/example.ini' ] || \
	    $(PUT) units/example.ini '$(D)$(sysconfdir)/sysup/example.ini'
	@$(PUT) packaging/needrestart.conf '$(D)$(sysconfdir)/needrestart/conf.d/sysup.conf'
	@set -e; for file in $(COMPLETIONS); do \
	    mkdir -p '$(D)$(datadir)/'$${file%/*}; \
	    $(MAKES) -c 'from sysup.ctl import main; main()' completion \
	        $$(expr $$file : '\([a-z]*\)') >'$(D)$(datadir)/'$$file; \
	done
	@$(MAKES) -m docs.man '$(D)$(mandir)'
	@[ -n '$(D)' ] || [ ! -d /run/systemd/system ] || \
	    { systemd-sysusers && systemd-tmpfiles --create sysup.conf && systemctl daemon-reload; }
	@echo 'installed$(if $(D), below $(D),; try: systemctl start sysup@example)'

# What was configured stays.
uninstall:
	rm -rf '$(D)$(privatedir)' '$(D)$(docdir)'
	rm -f '$(D)$(bindir)/sysupd' '$(D)$(bindir)/sysupctl'
	rm -f $(UNITS:%='$(D)$(unitdir)/%') $(UNITS:%='$(D)$(userunitdir)/%')
	rm -f '$(D)$(sysusersdir)/sysup.conf' '$(D)$(tmpfilesdir)/sysup.conf'
	rm -f '$(D)$(sysconfdir)/needrestart/conf.d/sysup.conf'
	rm -f $(COMPLETIONS:%='$(D)$(datadir)/%') $(MANUAL:%='$(D)$(mandir)/%')
