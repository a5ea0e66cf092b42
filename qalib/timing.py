"""Interleaved timing: all candidates on the same items in turn, compared within each round.

    timings = interleave({"plain": plain, "pruned": pruned}, batches, rounds=9)
    quartiles(timings.speedups("pruned", baseline="plain"))     # median and quartiles

A machine's speed varies from minute to minute by more than the differences to be measured. So all
candidates process an item before any gets the next one, and speed-ups are ratios within a round.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from qalib.errors import QalibError

Progress = Callable[[str], None]  # receives one line of text
PROGRESS_INTERVAL = 5.0  # seconds between two lines


class Quartiles(NamedTuple):
    """Median and quartiles over rounds; NaN where nothing was measured."""

    median: float
    low: float
    high: float


@dataclass
class Timings:
    """Seconds of every candidate, one number per completed round."""

    seconds: dict[str, list[float]]

    @property
    def rounds(self) -> int:
        """The number of completed rounds."""
        return len(next(iter(self.seconds.values())))

    def speedups(self, name: str, baseline: str) -> list[float]:
        """Speed-up over the baseline in each round: its seconds / the candidate's."""
        pairs = zip(self.seconds[baseline], self.seconds[name], strict=True)
        return [theirs / ours for theirs, ours in pairs]

    def rates(self, name: str, amounts: Sequence[float]) -> list[float]:
        """Tokens or questions per second in each round, from the round's ``amounts``."""
        return [n / s for n, s in zip(amounts, self.seconds[name], strict=True)]


def interleave(
    candidates: Mapping[str, Callable[[Any], object]],
    items: Sequence,
    rounds: int,
    *,
    items_per_round: int = 0,
    repeat: bool = False,
    observe: Callable[[int, str, Any, object], None] | None = None,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Time candidates in turn, item by item, after a warm-up round.

    candidates       functions that process one item, by name
    items_per_round  items of each round, continuing where the last round stopped; 0 = all items
    repeat           process each item twice and time the second pass, because the previous
                     candidate has left its own weights in the caches
    observe          called with round (0 = warm-up), name, item and result, outside the timing
    progress         called with a line of text every few seconds
    clock            returns seconds

    Raises QalibError without candidates, items or rounds.
    """
    if not candidates or not items or rounds < 1:
        raise QalibError("timing needs at least one candidate, one item and one round.")
    timings = Timings({name: [] for name in candidates})
    count = items_per_round or len(items)
    begin = reported = clock()
    for number in range(1 + rounds):
        chosen = [items[(number * count + i) % len(items)] for i in range(count)]
        spent = dict.fromkeys(candidates, 0.0)
        for item, (name, process) in ((i, c) for i in chosen for c in candidates.items()):
            now = clock()
            if progress and now - reported > PROGRESS_INTERVAL:
                progress(f"round {number} of {rounds}, {now - begin:.0f} s: {name}")
                reported = now
            if repeat:
                process(item)
            start = clock()
            result = process(item)
            spent[name] += clock() - start
            if observe:
                observe(number, name, item, result)
        if number:
            for name, total in spent.items():
                timings.seconds[name].append(total)
    return timings


def quartiles(values: Sequence[float]) -> Quartiles:
    """Median and quartiles of one value per round; NaN without values."""
    if not len(values):
        return Quartiles(math.nan, math.nan, math.nan)
    low, median, high = np.percentile(values, [25, 50, 75]).tolist()
    return Quartiles(median, low, high)


def columns(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """:func:`quartiles` as columns ``name``, ``name_low``, ``name_high``; None without values."""
    summary = quartiles(values)
    keys = (name, f"{name}_low", f"{name}_high")
    return {k: None if math.isnan(v) else v for k, v in zip(keys, summary, strict=True)}
