"""Each cell of the table: what has to happen is what was seen."""

from collections.abc import Callable, Iterator

import pytest
from _pytest.mark import ParameterSet

from tests.matrix.columns import BRINGING
from tests.matrix.operations import DRIVERS
from tests.matrix.scenario import RECOVERY, Seen, judge
from tests.matrix.table import AFTERWARDS, COLUMNS, MODES, OPERATIONS, Outcome


def _cells() -> Iterator[ParameterSet]:
    for fault, column in COLUMNS.items():
        for mode in MODES:
            for operation in (*column.cells, AFTERWARDS):
                yield pytest.param(fault, mode, operation, id=f"{mode}-{fault}-{operation}")


@pytest.mark.parametrize("fault, mode, operation", list(_cells()))
def test_the_cell(fault: str, mode: str, operation: str, results: Callable[[str, str], dict[str, Seen]]) -> None:
    outcome = Outcome("right", within=2 * RECOVERY) if operation == AFTERWARDS else COLUMNS[fault].outcome(operation, mode)
    problem = judge(outcome, results(fault, mode)[operation])
    if problem:
        pytest.fail(f"{mode} mode, {fault}, {operation}: {problem}", pytrace=False)


def test_the_table_is_whole() -> None:
    assert list(BRINGING) == list(COLUMNS)
    assert set(DRIVERS) == set(OPERATIONS)
    for column in COLUMNS.values():
        assert list(column.cells) == list(OPERATIONS), column.name
        assert set(column.kernel) <= set(OPERATIONS), column.name
    assert sum(len(column.cells) for column in COLUMNS.values()) >= 120
