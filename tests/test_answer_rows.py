"""Bookkeeping of answer rows against a plain set of positions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from first_llama.answer_rows import AnswerRows

STEPS = st.lists(st.tuples(st.sampled_from(["prompt", "answer", "cut"]), st.integers(0, 9)), max_size=30)


@given(STEPS)
def test_against_a_set(steps: list[tuple[str, int]]) -> None:
    rows, expected, n = AnswerRows(), set[int](), 0
    for kind, size in steps:
        if kind == "cut":
            n = max(0, n - size)
            rows.cut(n)
            expected = {i for i in expected if i < n}
            continue
        if kind == "answer":
            rows.add(n, n + size)
            expected |= set(range(n, n + size))
        n += size
        assert {i for start, stop in rows.ranges for i in range(start, stop)} == expected
        assert len(rows) == len(expected)
        assert rows.first == min(expected, default=None)
        assert AnswerRows(rows.ranges).ranges == rows.ranges


def test_rows_in_a_row_are_one_range() -> None:
    rows = AnswerRows()
    for i in range(5, 9):
        rows.add(i, i + 1)
    assert rows.ranges == [(5, 9)]
    rows.cut(7)
    assert rows.ranges == [(5, 7)]
    rows.cut(5)
    assert rows.ranges == [] and rows.first is None
