"""Routes and statistics as text."""

from __future__ import annotations

from first_llama.chat.pictures import Numbers, route_lines, stats_lines, summary
from first_llama.route import Route, Timing

ROUTE = Route([None, 0.0, 0.49, 0.999, 1.0, None], [1, 2], 6, 17)


def test_a_route_is_a_bar_a_layer_with_marks_below() -> None:
    lines = route_lines(ROUTE, 0.5)
    assert lines == [
        "skipped 2 of 6 layers (1 2) (mean scores of 17 prompt tokens, threshold 0.5)",
        "score  ·▁▄██·",
        "left    xx",
        "layer  0    5",
        "lowest scores: 1: 0.00  2: 0.49  3: 1.00  4: 1.00",
    ]


def test_without_unicode_scores_are_digits() -> None:
    lines = route_lines(ROUTE, None, unicode=False)
    assert lines[1] == "score  .0499."
    assert all(line.isascii() for line in lines)


def test_many_layers_go_over_several_lines() -> None:
    route = Route([None] + [0.7] * 89, [61, 89], 90, 3)
    lines = route_lines(route, None)
    pictures = [line for line in lines if line.startswith("score")]
    assert [len(line) for line in pictures] == [7 + 60, 7 + 30]
    marks = [line for line in lines if line.startswith("left")]
    assert marks == ["left", "left    x" + " " * 27 + "x"]
    assert [line for line in lines if line.startswith("layer")][1].startswith("layer  60   65")


def test_nothing_skipped_nothing_scored() -> None:
    lines = route_lines(Route([None] * 3, [], 3), None)
    assert lines[0] == "ran all 3 layers" and lines[1] == "score  ···" and len(lines) == 4


def test_stats_are_for_each_turn_and_for_all() -> None:
    turns = [
        Numbers(100, 11, Timing(100, 0.5, 10, 0.1), 3, 30),
        Numbers(150, 31, Timing(50, 0.25, 30, 0.4), 9, 30),
        Numbers(200, 1, Timing(0, 0.1, 0, 0.0), 9, 30),
    ]
    rows = [line.split() for line in stats_lines(turns)]
    assert rows[1:] == [
        ["1", "100", "100", "200", "11", "100", "10.0%"],
        ["2", "150", "50", "200", "31", "75", "30.0%"],
        ["3", "200", "0", "-", "1", "-", "-"],
        ["all", "450", "150", "176", "43", "80", "25.0%"],
    ]
    assert len({len(line) for line in stats_lines(turns)}) == 1
    assert stats_lines([])[1].split() == ["all", "0", "0", "-", "0", "-", "-"]


def test_the_summary_says_how_the_answer_ended() -> None:
    numbers = Numbers(100, 11, Timing(100, 0.5, 10, 0.1), 2, 6)
    assert summary(numbers, ROUTE, "stop") == "skipped 2 of 6 layers (1 2) · 11 tokens at 100/s"
    assert summary(numbers, ROUTE, "length").endswith(" · cut at the limit")
    assert summary(numbers, ROUTE, "stopped").endswith(" · stopped")
