"""The page says what the table says."""

from tests.matrix.page import PAGE, page
from tests.matrix.table import COLUMNS


def test_the_page_is_made_from_the_table() -> None:
    assert PAGE.read_text() == page(), "run `python -m tests.matrix.page`"


def test_the_page_names_every_fault() -> None:
    for column in COLUMNS.values():
        assert column.title in page()
