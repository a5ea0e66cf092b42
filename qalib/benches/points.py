"""Operating points of one skimmer, timed on real inputs: who reads how much faster?

    rows = time_points(model, {"layer 3": settings}, windows, PointClock(), padded=384)

All entrants answer all batches in every round, in turns of a few batches; ratios are taken within a
round, over the seconds that a round took, and the median over rounds counts. So long inputs count
for more, as they do for who waits. The baseline is the same model in the same dtype that reads
everything, in the same batches of like length; beside it stands the old way, fp32 with every input
padded to one length.
"""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qalib.benches.race import (
    OLD,
    PLAIN,
    Entrant,
    Tally,
    check_dtypes,
    in_dtypes,
    padded_name,
    ratios,
    rows_of,
    spread,
    usable,
)
from qalib.benches.rivals import Padded
from qalib.data.batches import Batch, collate
from qalib.data.features import Window
from qalib.errors import QalibError
from qalib.skim.cost import CostModel
from qalib.skim.reader import SkimReader

PORTION = 8  # batches of a turn


@dataclass(frozen=True)
class PointClock:
    """How points are timed: so many rounds after one to warm up, batches of like length.

    dtypes as of ``race.Grid``. Raises QalibError for what cannot be measured.
    """

    batches: tuple[int, ...] = (1, 16)
    dtypes: tuple[str, ...] = ("fp32", "bf16 weights", "bf16")
    rounds: int = 5

    def __post_init__(self):
        check_dtypes(self.dtypes)
        if not self.batches or min(self.batches) < 1 or self.rounds < 1:
            raise QalibError("give batches of at least 1 question, and at least 1 round.")


def time_points(
    model: SkimReader,
    points: Mapping[str, Mapping],
    windows: Sequence[Window],
    clock: PointClock,
    padded: int = OLD,
) -> list[dict]:
    """One row for each batch size, dtype and way of reading; see ``race.rows_of``.

    ``points``: by name, settings for ``Skimmer.tune``. ``over_padded``: over fp32 with every input
    padded to ``padded`` tokens. ``seconds`` are per input; an input is a window. Raises QalibError
    without inputs.
    """
    if not windows:
        raise QalibError("there is no input to be timed on.")
    entrants, rows = entrants_of(model, points, clock, padded), []
    for size in clock.batches:
        batches = like_lengths(windows, size, model.tokenizer.pad_token_id or 0)
        tallies = rounds(entrants, batches, clock.rounds)
        old = tallies[-1].seconds
        for row, tally in zip(rows_of(entrants, tallies), tallies, strict=True):
            rows.append({"batch": size, **row, **spread("over_padded", ratios(old, tally.seconds))})
    return rows


def entrants_of(
    model: SkimReader, points: Mapping[str, Mapping], clock: PointClock, padded: int
) -> list[Entrant]:
    """In each dtype one who reads everything, and the points; last, the old way."""
    encoder = model.reader.encoder
    readers = in_dtypes(model.reader, usable(clock.dtypes))
    plain, skims = CostModel.of(encoder), CostModel.of(encoder, model.skimmer)
    found = []
    for dtype in usable(clock.dtypes):
        found.append(Entrant(PLAIN, dtype, readers[dtype], plain))
        for name, settings in points.items():
            tuned = copy.copy(model.skimmer)  # the weights are shared, the settings are not
            tuned.tune(**settings)
            reader = SkimReader(readers[dtype], tuned).eval()
            found.append(Entrant(name, dtype, reader.run, skims))
    old = Padded(readers["fp32"], padded)
    return [*found, Entrant(padded_name(padded), "fp32", old, plain)]


def like_lengths(windows: Sequence[Window], size: int, pad: int) -> list[Batch]:
    """All inputs, the shortest first, ``size`` to a batch; the last one may be smaller."""
    ordered = sorted(windows, key=len)
    return [collate(ordered[i : i + size], pad) for i in range(0, len(ordered), size)]


def rounds(entrants: Sequence[Entrant], batches: Sequence[Batch], count: int) -> list[Tally]:
    """Everybody answers every batch in turns: once to warm up and be counted, then timed.

    A turn is some batches, the first of them once more with the clock off, for the reason that
    ``race`` gives.
    """
    tallies = [Tally() for _ in entrants]
    inputs = sum(len(batch) for batch in batches)
    for turn in range(1 + count):
        spent = [0.0] * len(entrants)
        for first in range(0, len(batches), PORTION):
            for number, entrant in enumerate(entrants):
                entrant.answer(batches[first])
                for batch in batches[first : first + PORTION]:
                    begin = time.perf_counter()
                    output = entrant.answer(batch)
                    spent[number] += time.perf_counter() - begin
                    if not turn:
                        tallies[number].count(entrant, output, batch)
        if turn:
            for tally, seconds in zip(tallies, spent, strict=True):
                tally.seconds.append(seconds / inputs)
    return tallies
