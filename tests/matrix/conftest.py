"""The scenarios of the faults that were asked for, two at a time, while the tests wait for theirs."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.matrix.place import make_lab
from tests.matrix.scenario import Seen, run_column
from tests.matrix.table import COLUMNS, MODES
from tests.system.world import require
from tests.weed import serving

_AT_ONCE = 2
"""Scenarios wait more than they work."""

Results = Callable[[str, str], dict[str, Seen]]


def _scenario_of(item: pytest.Item) -> tuple[object, object]:
    """Return the fault and the mode of the scenario that a test looks at, if it does."""
    params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    found = params.get("fault"), params.get("mode")
    # Others have parameters of that name too.
    return found if all(isinstance(part, str) for part in found) else (None, None)


@pytest.fixture(scope="session")
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Results]:
    """What was seen, by fault and mode."""
    for feature in ("root", "fuse", "mkfs.ext4"):
        require(feature, "the matrix mounts images, and caches on file systems of their own")
    root = tmp_path_factory.mktemp("matrix")
    wanted = {_scenario_of(item) for item in request.session.items}
    with serving(root / "weed") as weed, ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="matrix") as pool:
        lab = make_lab(weed, root)
        # A conversion looks at what the store has from earlier ones: both modes of a fault meet as many.
        scenarios = [(name, mode) for name in COLUMNS for mode in MODES]
        running: dict[tuple[str, str], Future[dict[str, Seen]]] = {
            (name, mode): pool.submit(run_column, lab, COLUMNS[name], mode, number)
            for number, (name, mode) in enumerate(scenarios)
            if (name, mode) in wanted
        }
        try:
            yield lambda fault, mode: running[fault, mode].result(110)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
