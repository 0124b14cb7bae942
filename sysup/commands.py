"""The commands: one function each, with the role it takes.

Names, properties and reply shapes are Circus's; `docs/circus.md` tells where sysup differs.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from sysup import __version__, config, outputs, reach
from sysup.config import Impact, Role
from sysup.events import HIDDEN
from sysup.machine import Want
from sysup.matching import matching
from sysup.pace import at_once, gathered, in_turns
from sysup.properties import Properties
from sysup.protocol import AccessDenied, Incomplete, MessageError, SysupError
from sysup.stats import Steps
from sysup.stdin import send as send_text
from sysup.table import App, Later, Reply, Soon, Table
from sysup.watcher import Watcher

OPERABLE = frozenset(
    {"autostart", "graceful_timeout", "max_age", "max_age_variance", "max_retry"}
    | {"numprocesses", "priority", "respawn", "restart"}
    | {"stable_after", "stop_signal", "warmup_delay"}
)
"""Options that the role *operate* may set, besides those of `flapping.` and `backoff.`: how many
processes run and when, which `incr`, `restart` and `kill` decide as well. All others may decide
what code runs, as whom, or where output goes."""

COMMANDS = Table()
command = COMMANDS.enter


def find(app: App, name: str) -> Watcher:
    """A watcher by name, in any case."""
    watcher = app.watchers.get(name.lower())
    if watcher is None:
        raise MessageError(f"program {name} not found")
    return watcher


def match(app: App, p: Properties) -> list[Watcher]:
    """The watchers that `name` means, in the way that `match` says; never none."""
    name, how = p.text("name").lower(), p.text("match") if "match" in p else "glob"
    if how == "simple" or name in app.watchers:
        return [find(app, name)]
    if how not in ("glob", "regex"):
        raise MessageError(f"message invalid 'match' isn't glob, regex or simple: {how}")
    is_regex = how == "regex"
    names = matching(app.watchers, p.text("name") if is_regex else name, regex=is_regex)
    found = [app.watchers[key] for key in names]
    if not found:
        raise MessageError(f"program {name} not found")
    return found


def one_or_many(
    watchers: list[Watcher], act: Callable[[Watcher], Coroutine[Any, Any, Any]]
) -> Coroutine[Any, Any, Reply]:
    """Do the same to several watchers at once; one alone tells its `info`.

    All of it is asked before this returns, so that it holds when the client is told so.
    """
    return _together([act(watcher) for watcher in watchers])


async def _together(acts: list[Coroutine[Any, Any, Any]]) -> Reply:
    results = await gathered(acts)
    failed = [r for r in results if isinstance(r, BaseException)]
    if failed and len(acts) == 1:
        raise failed[0]
    if failed:
        raise SysupError("; ".join(str(error) for error in failed))
    return {"info": results[0]} if len(acts) == 1 else {}


async def _then(work: Coroutine[Any, Any, Any], fields: Callable[[Any], Reply]) -> Reply:
    return fields(await work)


def _nothing(_: Any) -> Reply:
    return {}


def _processes(number: int) -> Reply:
    return {"processes": number}


# ---- what is -----------------------------------------------------------------------------


@command(Role.READ)
def status(app: App, p: Properties) -> Reply | Later:
    """The state of a watcher, or of all."""
    one = find(app, p.text("name")) if "name" in p else None
    hidden, each = HIDDEN if p.role is Role.READ else None, p.flag("processes")

    def told() -> Steps[Reply]:
        if one:
            watchers = yield from outputs.status([one], hidden, each)
            return {"status": one.state, "watchers": watchers}
        present = list(app.watchers.values())
        watchers = yield from outputs.status(present, hidden, each)
        return {
            "statuses": {watcher.name: watcher.state for watcher in present},
            "watchers": watchers,
            "changed_files": app.changed_files,
            "kept": app.kept,
        }

    steps = told()
    reply = at_once(steps)  # of a few hundred watchers
    return Soon(in_turns(steps)) if reply is None else reply


@command(Role.READ)
def show(app: App, p: Properties) -> Reply:
    """All that is known of a watcher."""
    report = outputs.show(find(app, p.text("name")))
    report["options"] = visible(report["options"], p.role)
    return {"watcher": outputs.hidden(report, HIDDEN) if p.role is Role.READ else report}


@command(Role.OPERATE)
def tail(app: App, p: Properties) -> Reply:
    """The last lines that processes of a watcher wrote."""
    watcher, wid = find(app, p.text("name")), p.number("wid")
    stream, lines = p.one_of("stream", "stdout", "stderr"), p.number("lines", 10)
    tails = outputs.tails(watcher, wid, stream, lines or 0)
    if wid is not None and not tails and wid not in watcher.slots.newest:
        raise MessageError(f"there is no process {wid} of {watcher.name}")
    return {"tails": tails}


@command(Role.READ)
def list_(app: App, p: Properties) -> Reply:
    """The watchers, or the pids of one."""
    if "name" in p:
        bodies = find(app, p.text("name")).slots.bodies
        return {"pids": [body.process.pid for _, body in bodies]}
    return {"watchers": sorted(app.watchers)}


@command(Role.READ)
def numprocesses(app: App, p: Properties) -> Reply:
    """How many processes a watcher has, or all together."""
    if "name" in p:
        watcher = find(app, p.text("name"))
        return {"numprocesses": len(watcher.slots.bodies), "watcher_name": watcher.name}
    return {"numprocesses": sum(len(w.slots.bodies) for w in app.watchers.values())}


@command(Role.READ)
def numwatchers(app: App, p: Properties) -> Reply:
    """How many watchers there are."""
    return {"numwatchers": len(app.watchers)}


@command(Role.READ)
def options(app: App, p: Properties) -> Reply:
    """All options of a watcher."""
    return {"options": visible(config.options(find(app, p.text("name")).spec), p.role)}


@command(Role.READ)
def get(app: App, p: Properties) -> Reply:
    """Some options of a watcher."""
    spec = find(app, p.text("name")).spec
    return {"options": visible({key: config.get(spec, key) for key in p.strings("keys")}, p.role)}


def visible(options: dict[str, Any], role: Role) -> dict[str, Any]:
    """What a role may see of options: some hold secrets."""
    return config.discreet(options, HIDDEN) if role is Role.READ else options


@command(Role.READ)
def diff(app: App, p: Properties) -> Soon:
    """How what runs differs from the config."""

    def seen(told: Reply) -> Reply:
        changed = {
            name: {
                key: {which: visible({key: value}, p.role)[key] for which, value in both.items()}
                for key, both in options.items()
            }
            for name, options in told["changed"].items()
        }
        return {**told, "changed": changed}

    return Soon(_then(app.differences(), seen))


@command(Role.READ)
def globaloptions(app: App, p: Properties) -> Reply:
    """The daemon's own options."""
    values = app.options()
    if "option" not in p:
        return {"options": values}
    name = p.text("option")
    if name not in values:
        raise MessageError(f"{name!r} isn't an option of the daemon")
    return {"options": {name: values[name]}}


@command(Role.READ)
def listsockets(app: App, p: Properties) -> Reply:
    """The listening sockets."""
    return {"sockets": app.sockets()}


@command(Role.READ)
def stats(app: App, p: Properties) -> Soon:
    """Processor time and memory of processes."""
    if "name" not in p:
        return Soon(_then(app.stats(list(app.watchers.values())), lambda infos: {"infos": infos}))
    name, watcher, pid = p.text("name"), find(app, p.text("name")), p.pid("process")

    def chosen(infos: dict[str, dict[str, Any]]) -> Reply:
        info = infos[watcher.name]
        if pid is None:
            return {"name": name, "info": info}
        if str(pid) not in info:
            raise MessageError(f"process {pid} not found in {watcher.name}")
        return {"process": pid, "info": info[str(pid)]}

    return Soon(_then(app.stats([watcher]), chosen))


@command(Role.READ)
def dstats(app: App, p: Properties) -> Reply:
    """Processor time and memory of the daemon itself."""
    return {"info": app.own_stats()}


@command(Role.READ)
def version(app: App, p: Properties) -> Reply:
    """The daemon's version, and how many daemons were there before that it took over from."""
    return {"version": __version__, "takeovers": app.takeovers}


@command(Role.READ)
def commands(app: App, p: Properties) -> Reply:
    """What can be asked, with the role it takes."""
    return {
        "commands": {
            name: {"role": str(entry.role), "help": entry.help}
            for name, entry in sorted(COMMANDS.items())
        }
    }


@command(Role.READ)
def listen(app: App, p: Properties) -> Reply:
    """Events are not had by asking."""
    raise MessageError("invalid message. use a pub/sub socket")


@command(Role.ADMIN)
def ipython(app: App, p: Properties) -> Reply:
    """A shell inside the daemon, which there is not."""
    return {"shell": False, "msg": "sysupd has no shell inside"}


# ---- what is to be -----------------------------------------------------------------------


@command(Role.OPERATE)
def start(app: App, p: Properties) -> Later:
    """Start watchers."""
    if "name" not in p:
        return Later(_then(app.roster.start_all(), _nothing))
    watchers = match(app, p)
    if len(watchers) > 1:
        watchers = [w for w in watchers if w.spec.autostart]
    return Later(one_or_many(watchers, Watcher.start))


@command(Role.OPERATE)
def stop(app: App, p: Properties) -> Later:
    """Stop watchers."""
    if "name" not in p:  # who doesn't wait for the end is answered when all of it is noted
        return Soon(_then(app.roster.stop_all(wait=p.flag("waiting")), _nothing))

    async def ended(work: Coroutine[Any, Any, Any]) -> None:
        await work

    return Later(one_or_many(match(app, p), lambda watcher: ended(watcher.stop())))


@command(Role.OPERATE)
def restart(app: App, p: Properties) -> Later:
    """Stop and start watchers."""
    if "name" in p:
        watchers = match(app, p)
        if len(watchers) == 1:
            return Later(one_or_many(watchers, Watcher.restart))
    else:
        watchers = list(app.watchers.values())
    up = [w for w in watchers if w.want is Want.UP or w.spec.autostart]
    return Later(_then(one_or_many(up, Watcher.restart), _nothing))


@command(Role.OPERATE)
def reload(app: App, p: Properties) -> Later:
    """Replace processes without a gap."""
    sequential, graceful = p.flag("sequential"), p.flag("graceful", True)

    def reload_one(watcher: Watcher) -> Coroutine[Any, Any, Mapping[str, Any]]:
        return watcher.reload(sequential=sequential) if graceful else watcher.restart()

    if "name" in p:
        watcher = find(app, p.text("name"))
        if watcher.is_stopped:
            raise SysupError(f"{watcher.name} is stopped")
        return Later(one_or_many([watcher], reload_one))
    up = [w for w in app.watchers.values() if w.want is Want.UP]
    return Later(_then(one_or_many(up, reload_one), _nothing))


def _scale(app: App, p: Properties, sign: int) -> Later:
    watcher = find(app, p.text("name"))
    change = sign * p.integer("nb", 1)
    singleton = {"singleton": True} if watcher.spec.singleton else {}
    saves = to_be_saved(p)
    work = watcher.scale(change)

    async def scale() -> Reply:
        number = await work
        saved = {"saved": await app.save(watcher, {"numprocesses": number})} if saves else {}
        return {"numprocesses": number, **singleton, **saved}

    told = {"numprocesses": watcher.spec.numprocesses, **singleton} if singleton else {}
    return Later(scale(), told)


def to_be_saved(p: Properties) -> bool:
    """Whether a change is to outlast the daemon. Raises AccessDenied to who may not have that."""
    if p.flag("save") and p.role is not Role.ADMIN:
        raise AccessDenied(f"permission denied: to save needs the role '{Role.ADMIN}'")
    return p.flag("save")


@command(Role.OPERATE)
def incr(app: App, p: Properties) -> Later:
    """Have more processes; a singleton stays as it is."""
    return _scale(app, p, 1)


@command(Role.OPERATE)
def decr(app: App, p: Properties) -> Later:
    """Have fewer processes; a singleton stays as it is."""
    return _scale(app, p, -1)


@command(Role.OPERATE)
def signal_(app: App, p: Properties) -> Soon:
    """Send a signal to processes."""
    steps = reach.send_signal(
        find(app, p.text("name")).slots,
        p.signum("signum"),
        pid=p.pid(),
        child_pid=p.pid("childpid" if "childpid" in p else "child_pid"),
        children=p.flag("children"),
        recursive=p.flag("recursive"),
    )
    return Soon(_then(in_turns(steps), _processes))


@command(Role.OPERATE)
def send(app: App, p: Properties) -> Later:
    """Write text to the standard input of processes."""
    watcher, data = find(app, p.text("name")), p.octets("text")
    if p.flag("newline", True) and not data.endswith(b"\n"):
        data += b"\n"
    inputs = reach.inputs(watcher.slots, p.integer("wid") if "wid" in p else None, p.pid())
    sent = {"bytes": len(data), "processes": len(inputs)}
    return Later(_then(send_text(inputs, data, eof=p.flag("eof")), lambda _: sent), sent)


@command(Role.OPERATE)
def kill(app: App, p: Properties) -> Later:
    """End processes; they are started afresh."""
    signum = p.signum("signum") if "signum" in p else None
    watcher = find(app, p.text("name"))
    work = watcher.kill(p.pid(), signum, p.seconds("graceful_timeout"))
    return Later(_then(work, _processes))


@command(Role.OPERATE)
def logs(app: App, p: Properties) -> Reply | Soon:
    """Reopen the files that output goes to, or rotate those of a watcher."""
    if p.one_of("action", "reopen", "rotate") == "rotate":
        return {"files": outputs.rotate(find(app, p.text("name")))}
    p.text("action")
    watchers = [find(app, p.text("name"))] if "name" in p else list(app.watchers.values())
    return Soon(outputs.reopen(watchers))


@command(Role.OPERATE)
def set_(app: App, p: Properties) -> Later:
    """Change options of a watcher; what runs, and as whom, is for the role admin."""
    watcher, values = find(app, p.text("name")), p.mapping("options", needed=True)
    for key in values:
        if p.role is not Role.ADMIN and not (
            key in OPERABLE or key.startswith(("flapping.", "backoff."))
        ):
            needs = f"set {key[:100]!r} needs the role '{Role.ADMIN}', you have '{p.role}'"
            raise AccessDenied(f"permission denied: {needs}")
    config.with_options(watcher.spec, values)  # what is wrong is told before the reply
    saves = to_be_saved(p)
    work = watcher.set_options(values)

    async def change() -> Reply:
        impacts = await work
        saved = {"saved": await app.save(watcher, values)} if saves else {}
        return {"impacts": impacts, **saved}

    return Later(change())


@command(Role.ADMIN)
def add(app: App, p: Properties) -> Reply | Later:
    """Make a new watcher."""
    options, saves = p.mapping("options"), to_be_saved(p)
    watcher = app.roster.add(p.text("name"), p.text("cmd"), p.anything("args"), options)
    start = watcher.start() if p.flag("start") else None
    if not saves:
        return Later(start) if start else {}

    async def save() -> Reply:
        try:
            saved = await app.save(watcher, {})
        finally:
            info = await start if start else {}
        return {**info, "saved": saved}

    return Later(save()) if start else Soon(save())


@command(Role.ADMIN)
def rm(app: App, p: Properties) -> Later:
    """Remove a watcher, and stop it unless told otherwise."""
    watcher = find(app, p.text("name"))
    return Later(_then(app.roster.remove(watcher, nostop=p.flag("nostop")), _nothing))


@command(Role.ADMIN)
def reloadconfig(app: App, p: Properties) -> Later:
    """Read the config files again and do what the difference asks for, or only tell it."""
    return Soon(app.plan_reload()) if p.flag("dry_run") else Later(_reloaded(app))


async def _reloaded(app: App) -> Reply:
    """Reload the config, and await the processes that are new by it.

    The next reload need not wait for them: it may be what mends them.
    """
    failed: list[str] = []
    try:
        done: Reply = await app.reload_config()
    except Incomplete as error:
        done, failed = dict(error.fields), [str(error)]
    new = {name: each.values() for name, each in done["impacts"].items()}
    new |= {name: [Impact.SCALE] for name in done["added"]}
    works = [
        watcher.followed({*map(Impact, impacts)})
        for name, impacts in new.items()
        if (watcher := app.watchers.get(name.lower()))
    ]
    outcomes = await gathered(works)
    failed += [str(outcome) for outcome in outcomes if isinstance(outcome, BaseException)]
    if failed:
        raise Incomplete("\n".join(failed), done)
    return done


@command(Role.ADMIN)
def upgrade(app: App, p: Properties) -> Later:
    """Become the program that is installed now; processes and their output run on."""
    return Later(app.upgrade())


@command(Role.ADMIN)
def quit_(app: App, p: Properties) -> Later:
    """Stop everything and end."""
    app.quit()
    return Later(_then(app.ended(), _nothing))
