"""The scenarios of the faults that were asked for, two at a time, while the tests wait for theirs."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.matrix.place import make_lab
from tests.matrix.scenario import Seen, run_column
from tests.matrix.table import COLUMNS
from tests.system.world import require
from tests.weed import serving

_AT_ONCE = 2
"""Scenarios wait more than they work."""

Results = Callable[[str], dict[str, Seen]]


def _fault_of(item: pytest.Item) -> object:
    """Return the fault whose scenario a test looks at, if it does."""
    return item.callspec.params.get("fault") if isinstance(item, pytest.Function) and hasattr(item, "callspec") else None


@pytest.fixture(scope="session")
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Results]:
    """What was seen, by fault."""
    for feature in ("root", "fuse", "mkfs.ext4"):
        require(feature, "the matrix mounts images, and caches on file systems of their own")
    root = tmp_path_factory.mktemp("matrix")
    wanted = {_fault_of(item) for item in request.session.items}
    with serving(root / "weed") as weed, ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="matrix") as pool:
        lab = make_lab(weed, root)
        running: dict[str, Future[dict[str, Seen]]] = {
            name: pool.submit(run_column, lab, column, number) for number, (name, column) in enumerate(COLUMNS.items()) if name in wanted
        }
        try:
            yield lambda name: running[name].result(110)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
