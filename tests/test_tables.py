"""Tables of text, as wide as they need to be or as a terminal is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxdrp.tables import fitting, text_table

HEAD = ("layer", "kind", "multiply adds", "why not")
ROWS = [
    ("/backbone/stage1/block0/conv1/Conv", "Conv", "1,234,567", "the first layer stays dense"),
    ("/head/fc/Gemm", "Gemm", "-", ""),
]


def widest(text: str) -> int:
    return max(map(len, text.split("\n")))


def test_nothing_is_cut_where_there_is_no_terminal() -> None:
    table = text_table(HEAD, ROWS)
    assert table.split("\n")[1] == (
        "/backbone/stage1/block0/conv1/Conv  Conv      1,234,567  the first layer stays dense"
    )
    with fitting(200):
        assert text_table(HEAD, ROWS) == table


def test_texts_lose_their_middle_and_figures_nothing() -> None:
    with fitting(64):
        table = text_table(HEAD, ROWS)
    assert widest(table) == 64
    lines = table.split("\n")
    assert "multiply" in lines[0]
    assert "adds" in lines[1]
    assert lines[2] == "/backbone/…/conv1/Conv  Conv  1,234,567  the first l…stays dense"


def test_columns_are_left_out_by_name_spare_ones_first() -> None:
    with fitting(45):
        table = text_table(HEAD, ROWS, spare=("kind",))
    assert widest(table) <= 45
    assert table.endswith("\n(too narrow for: kind)")
    assert "1,234,567" in table


@pytest.mark.parametrize("width", [1, 3, 10])
def test_the_last_column_stays(width: int) -> None:
    with fitting(width):
        lines = text_table(HEAD, ROWS).split("\n")
    assert all(len(line) <= max(width, 5) for line in lines[1:-1])
    assert lines[-1] == "(too narrow for: why not, multiply adds, kind)"


def test_heads_are_bold_only_if_asked() -> None:
    with fitting(None, bold=True):
        assert text_table(("a",), [("b",)]) == "\x1b[1ma\x1b[0m\nb"
    assert text_table(("a",), [("b",)]) == "a\nb"


@given(
    st.lists(st.lists(st.text("ab/ 1", max_size=60), min_size=3, max_size=3), max_size=4),
    st.integers(20, 150),
)
def test_no_line_is_wider_than_asked_for_or_lost(rows: list[list[str]], width: int) -> None:
    with fitting(width):
        lines = text_table(("name", "op", "note"), rows).split("\n")
    assert len([line for line in lines if not line.startswith("(too")]) == len(rows) + 1
    assert all(len(line) <= width for line in lines if not line.startswith("(too"))
