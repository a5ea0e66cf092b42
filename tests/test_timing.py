"""The timing loop interleaves, compares within rounds and keeps its time; nothing is timed here."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qalib.errors import QalibError
from qalib.timing import columns, interleave, quartiles


class Clock:
    """A clock that only moves when a candidate works."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def __call__(self) -> float:
        return self.now

    def candidate(self, name: str, *seconds: float):
        """Takes ``seconds`` in turn, the last value from then on."""
        calls = []

        def process(item):
            self.log.append((name, item))
            self.now += seconds[min(len(calls), len(seconds) - 1)]
            calls.append(item)
            return f"{name}{item}"

        return process


def test_candidates_take_turns_on_every_item():
    clock = Clock()
    candidates = {name: clock.candidate(name, 1.0) for name in "ab"}
    timings = interleave(candidates, [7, 8], 2, clock=clock)
    assert clock.log == [(name, item) for _ in range(3) for item in (7, 8) for name in "ab"]
    assert timings.seconds == {"a": [2, 2], "b": [2, 2]}


def test_speedups_are_ratios_within_a_round():
    clock = Clock()
    candidates = {
        "full": clock.candidate("full", 9, 4, 8, 4),
        "half": clock.candidate("h", 9, 2, 4, 4),
    }
    timings = interleave(candidates, ["x"], 3, clock=clock)
    assert timings.seconds == {"full": [4, 8, 4], "half": [2, 4, 4]}
    assert timings.speedups("half", "full") == [2, 2, 1]
    assert timings.speedups("full", "full") == [1, 1, 1]
    assert timings.rates("half", [8, 8, 8]) == [4, 2, 2]
    assert quartiles(timings.speedups("half", "full")) == (2, 1.5, 2)


def test_rounds_go_through_the_items_and_start_again():
    clock = Clock()
    interleave({"a": clock.candidate("a", 1)}, "xyz", 3, items_per_round=2, clock=clock)
    assert [item for _, item in clock.log] == list("xyzxyzxy")


def test_the_repeated_pass_is_the_one_that_is_timed():
    clock = Clock()
    candidates = {"a": clock.candidate("a", 5, 1, 7, 2), "b": clock.candidate("b", 3)}
    timings = interleave(candidates, [0], 1, repeat=True, clock=clock)
    assert [name for name, _ in clock.log] == list("aabbaabb")
    assert timings.seconds == {"a": [2], "b": [3]}


def test_results_are_observed_outside_of_the_timing():
    clock, seen = Clock(), []

    def observe(number, name, item, result):
        seen.append((number, name, item, result))
        clock.now += 100

    timings = interleave({"a": clock.candidate("a", 1)}, [3], 1, observe=observe, clock=clock)
    assert seen == [(0, "a", 3, "a3"), (1, "a", 3, "a3")]
    assert timings.seconds["a"] == [1]


def test_progress_is_reported_every_few_seconds():
    clock, lines = Clock(), []
    candidates = {name: clock.candidate(name, 2.0) for name in "ab"}
    interleave(candidates, [0], 3, progress=lines.append, clock=clock)
    assert len(lines) == 2
    assert lines[0] == "round 1 of 3, 6 s: b"


def test_there_must_be_something_to_time():
    for candidates, items, rounds in (({}, [0], 1), ({"a": print}, [], 1), ({"a": print}, [0], 0)):
        with pytest.raises(QalibError, match="at least one"):
            interleave(candidates, items, rounds)


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=6), st.integers(1, 5))
def test_a_machine_that_slows_down_changes_no_speedup(speeds, factor):
    clock = Clock()
    slow = [s * factor for s in speeds]
    candidates = {
        "base": clock.candidate("base", 1, *slow),
        "fast": clock.candidate("fast", 1, *speeds),
    }
    timings = interleave(candidates, [0], len(speeds), clock=clock)
    assert timings.speedups("fast", "base") == pytest.approx([factor] * len(speeds))


def test_summaries_are_quartiles_or_nothing():
    assert quartiles([1, 2, 3, 4, 5]) == (3, 2, 4)
    assert all(map(math.isnan, quartiles([])))
    assert columns("ms", [4, 1, 1]) == {"ms": 1, "ms_low": 1, "ms_high": 2.5}
    assert columns("ms", []) == {"ms": None, "ms_low": None, "ms_high": None}
