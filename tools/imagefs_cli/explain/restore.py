"""What the runner of a service noted of a restore, beside what the daemon saw of it: the stages from the order to the answer."""

from typing import TYPE_CHECKING, Any, Final

from imagefs_cli.explain.verdict import seconds

if TYPE_CHECKING:
    from imagefs.config import Config
    from imagefs.format.start import Start
    from snapshotstore.runner.timeline import Timeline

_MEANS: Final = {
    "resolve": "which snapshot fits, asked of the store",
    "mount": "image, source and snapshot",
    "engine": "its restore: memory comes in, the program runs",
    "hooks": "seeds, environment, enter(snap=False)",
    "call": "the method itself",
}
_AROUND_SECONDS: Final = 60.0
_BAR: Final = 20


def lines(config: "Config", start: "Start") -> list[str]:
    """Return what is printed of the restore of which this start saw the reads; nothing if it was none."""
    found = _find(config, start)
    if found is None:
        return []
    longest = max(found.stages.values(), default=0.0) or 1.0
    rows = [
        f"  {name:8} {seconds(1e6 * took):>9}  {'#' * round(_BAR * took / longest):{_BAR}}  {_MEANS.get(name, '')}".rstrip()
        for name, took in found.stages.items()
    ]
    return ["", f"a restore of {found.target} with {found.engine}, from the call to its answer:", *rows]


def document(config: "Config", start: "Start") -> dict[str, Any]:
    """Return the same for ``--json``: ``restore``, with its ``target``, ``engine`` and seconds by stage."""
    found = _find(config, start)
    return {} if found is None else {"restore": {"target": found.target, "engine": found.engine, "stages": found.stages}}


def _find(config: "Config", start: "Start") -> "Timeline | None":
    from snapshotstore.runner.timeline import restore_of
    from snapshotstore.runner.workplace import logs_folder

    return restore_of(logs_folder(config.runtime), start.manifest, start.began, _AROUND_SECONDS)
