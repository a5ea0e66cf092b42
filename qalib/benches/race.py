"""A race between ways of reading: the same batches for everybody, in turns, ratios within a round.

The honest baseline is the same model in the same dtype on inputs of one length, without padding, as
transformers runs it. In each round every entrant answers the same batch once; ratios are taken
within a round, and the median over rounds counts. In its turn everybody answers twice, and the
second time counts: a processor is faster with weights and code that it has just used, as it has in
service, and whoever follows another kind of entrant would pay for that. All on the CPU.

Two ideals stand beside what was measured: Eq. 6 of the Block-Skim paper, which counts tokens that
arrive at layers, and exact multiply-adds (``qalib.skim.cost``), which know of the quadratic part of
attention, of the cheaper skim layer, and of the predictors.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from qalib.data.batches import MULTIPLE, Batch
from qalib.errors import QalibError
from qalib.readers.encoder_reader import EncoderConfig, EncoderReader, build_encoder
from qalib.skim.cost import CostModel, efficiency, lengths, work_of
from qalib.skim.predictors import PredictorConfig
from qalib.skim.settings import SkimConfig
from qalib.skim.skimmer import Skimmer, SkimOutput
from qalib.skim.walk import FLOOR
from qalib.skim.weights import halve, quantize
from qalib.spans import ReaderOutput
from qalib.train import choose_precision

RIVALS = ("padded", "skim", "trained", "oracle", "lexical", "static", "threshold", "onnx")
RIVALS += ("compiled",)
DTYPES = ("fp32", "bf16", "bf16 weights", "int8")
PLAIN = "reads everything"  # the honest baseline
OLD = 384  # what the old pipelines padded to
QUESTION = 16  # word pieces of a random question
Output = ReaderOutput | SkimOutput


def check_dtypes(dtypes: Sequence[str]) -> None:
    """Raise QalibError unless all of them are known, and there is one."""
    if not dtypes or set(dtypes) - set(DTYPES):
        raise QalibError(f"dtypes are some of {', '.join(DTYPES)}, not {tuple(dtypes)}.")


def usable(dtypes: Sequence[str]) -> list[str]:
    """Those that make sense on this processor: bf16 only where it has units for it."""
    has_bf16 = choose_precision("auto", "cpu")[0] == "bf16"
    return [name for name in dtypes if has_bf16 or not name.startswith("bf16")]


@dataclass(frozen=True)
class Grid:
    """One model, and what it is measured at. Raises QalibError for what cannot be measured.

    ``layers`` 0: the reader that ships; else a BERT of this shape with random weights.
    ``dtypes``: "bf16" is autocast, as the answerer runs, which rounds the weights in every pass;
    "bf16 weights" has them rounded before; "int8" has linear layers that round their inputs, too.
    bf16 is left out where the processor has no units for it. Rivals that prune in another way than
    by blocks inside the encoder run in the first dtype only.
    ``kept``: shares of the tokens (the question's included) that go on where a share is asked for;
    the rivals that prune by attention do as much work as skimming with that share by Eq. 6.
    """

    name: str
    layers: int = 0
    width: int = 0
    heads: int = 0
    skim_at: int = 2
    kept: tuple[float, ...] = (0.5,)
    lengths: tuple[int, ...] = (128, 256, 384, 512)
    batches: tuple[int, ...] = (1, 4, 16)
    dtypes: tuple[str, ...] = DTYPES
    rivals: tuple[str, ...] = tuple(name for name in RIVALS if name != "compiled")

    def __post_init__(self):
        for name in ("kept", "lengths", "batches", "dtypes", "rivals"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_dtypes(self.dtypes)
        if unknown := set(self.rivals) - set(RIVALS):
            raise QalibError(f"no rival {min(unknown)!r}; there are {', '.join(RIVALS)}.")
        if not all(n > QUESTION and n % MULTIPLE == 0 for n in self.lengths):
            raise QalibError(f"lengths are multiples of {MULTIPLE} above {QUESTION}, as batches.")
        if not all(0 < share <= 1 for share in self.kept) or min(self.batches, default=0) < 1:
            raise QalibError(
                "shares kept are above 0, up to 1, and a batch has 1 question or more."
            )


MINILM = Grid("MiniLM-L6")
BERT_BASE = Grid(
    "BERT-base shape, random weights",
    **{"layers": 12, "width": 768, "heads": 12, "skim_at": 4, "kept": (0.25, 0.5)},
    **{"lengths": (384, 512), "batches": (1, 16), "rivals": ("padded", "skim")},
    dtypes=("fp32", "bf16 weights"),
)


@dataclass(frozen=True)
class SkimBench:
    """What is measured. ``seconds`` are shared out among the cells (model, length, batch size);
    each has ``least`` rounds even so, and no more than ``rounds``."""

    grids: tuple[Grid, ...] = (MINILM, BERT_BASE)
    rounds: int = 25
    least: int = 2
    seconds: float = 300.0
    predictor: PredictorConfig = field(default_factory=lambda: PredictorConfig("combined"))
    seed: int = 0

    def __post_init__(self):
        object.__setattr__(self, "grids", tuple(self.grids))
        if not 1 <= self.least <= self.rounds or self.seconds < 0:
            raise QalibError("give seconds from 0, and rounds from 1 with least <= rounds.")
        if not self.grids or len({grid.name for grid in self.grids}) < len(self.grids):
            raise QalibError("give at least one grid, and each a name of its own.")


@dataclass(frozen=True)
class Model:
    """A reader in several dtypes with what skims beside it."""

    readers: Mapping[str, EncoderReader]  # by dtype; "fp32" is always there
    skimmer: Skimmer  # fresh predictors at the grid's skim point; the decision is told
    trained: Skimmer | None = None  # with its own skim points and thresholds

    @classmethod
    def of(cls, grid: Grid, config: SkimBench, trained: Skimmer | None = None) -> "Model":
        """What a grid asks for, in evaluation mode; ``trained`` goes with the shipped reader."""
        from qalib.readers.shipped import load_reader

        shape = {"layers": grid.layers, "width": grid.width, "heads": grid.heads}
        random = EncoderConfig(random_start=True, **shape)
        reader = build_encoder(random, config.seed) if grid.layers else load_reader()
        at = (grid.skim_at,)
        skims = SkimConfig(config.predictor, at, at, (0.5,))
        fresh = Skimmer.beside(reader.encoder, skims).eval()
        return cls(in_dtypes(reader, usable(grid.dtypes)), fresh, None if grid.layers else trained)

    @property
    def reader(self) -> EncoderReader:
        """In fp32."""
        return self.readers["fp32"]

    @cached_property
    def plain_cost(self) -> CostModel:
        """Multiply-adds of the encoder."""
        return CostModel.of(self.reader.encoder)

    @cached_property
    def cost(self) -> CostModel:
        """The same with the fresh predictors."""
        return CostModel.of(self.reader.encoder, self.skimmer)


def in_dtypes(reader: EncoderReader, dtypes: Sequence[str]) -> dict[str, EncoderReader]:
    """A reader as it is ("fp32", "bf16") and with lighter weights, in evaluation mode."""
    lighter = {"bf16 weights": halve, "int8": quantize}
    reader = reader.eval()
    made = dict.fromkeys(("fp32", *dtypes), reader)
    for name in made.keys() & lighter.keys():
        made[name] = EncoderReader(lighter[name](reader.encoder), reader.tokenizer).eval()
    return made


@dataclass(frozen=True)
class Entrant:
    """One who takes part. ``prepare`` is done once to every batch, before the clock runs."""

    name: str
    dtype: str
    read: Callable[[Batch], Output]
    cost: CostModel
    prepare: Callable[[Batch], Batch] = lambda batch: batch

    def answer(self, batch: Batch) -> Output:
        """One timed turn, on a prepared batch."""
        with (
            torch.inference_mode(),
            torch.autocast("cpu", torch.bfloat16, enabled=self.dtype.startswith("bf16")),
        ):
            return self.read(batch)


@dataclass
class Tally:
    """What one entrant did in a cell, round by round; sums are over its distinct batches."""

    seconds: list[float] = field(default_factory=list)  # per question
    given: float = 0.0  # tokens
    arrived: float = 0.0  # tokens at layers, summed over layers, divided by their number
    last: float = 0.0  # tokens that the last layer read to its end
    full: float = 0.0  # multiply-adds of reading everything
    macs: float = 0.0  # multiply-adds done
    difference: float | None = None  # largest, of a logit from the baseline's

    def count(self, entrant: Entrant, output: Output, batch: Batch) -> None:
        """Add the tokens and multiply-adds of a batch; nothing where a reader does not tell."""
        cost = entrant.cost
        if isinstance(output, SkimOutput):
            tokens, work = output.tokens.numpy(), work_of(cost, output)
            macs = float((work.encoder + work.judging).sum())
        elif (told := output.attentions.get("tokens")) is not None:
            tokens = told.numpy()
            macs = float(cost.encoder(tokens).sum())
        else:
            return
        real = batch.inputs["attention_mask"].sum(dim=1).numpy()
        self.given += float(real.sum())
        self.arrived += float(tokens[:, :-1].mean(axis=1).sum())
        self.last += float(tokens[:, -1].sum())
        self.full += float(cost.encoder(lengths(real, {}, len(cost.layers))).sum())
        self.macs += macs


def race(
    entrants: Sequence[Entrant], batches: Sequence[Batch], config: SkimBench, seconds: float
) -> list[Tally]:
    """Everybody answers batch after batch in turns, after one round to warm up.

    A baseline, named ``PLAIN``, stands before the others of its dtype. Rounds go on until
    ``seconds`` are over, within ``config.least`` and ``config.rounds``.
    """
    prepared = [[entrant.prepare(batch) for batch in batches] for entrant in entrants]
    tallies, plain, begun = [Tally() for _ in entrants], {}, time.perf_counter()
    for turn in range(1 + config.rounds):
        if turn > config.least and time.perf_counter() - begun > seconds:
            break
        number = turn % len(batches)
        for entrant, given, tally in zip(entrants, prepared, tallies, strict=True):
            entrant.answer(given[number])
            begin = time.perf_counter()
            output = entrant.answer(given[number])
            passed = time.perf_counter() - begin
            if turn:
                tally.seconds.append(passed / len(batches[number]))
            if turn < len(batches):
                tally.count(entrant, output, batches[number])
            if not turn:
                if entrant.name == PLAIN:
                    plain[entrant.dtype] = output
                base = plain.get(entrant.dtype, plain.get("fp32"))
                tally.difference = None if base is None else difference(output, base)
    return tallies


def difference(output: Output, plain: Output) -> float:
    """The largest difference of a logit, where both have one.  (B, L) each"""
    most = 0.0
    for name in ("start_logits", "end_logits"):
        mine, theirs = (getattr(x, name).float() for x in (output, plain))
        both = (mine > FLOOR / 2) & (theirs > FLOOR / 2)
        if both.any():
            most = max(most, float((mine - theirs)[both].abs().max()))
    return most


def rows_of(entrants: Sequence[Entrant], tallies: Sequence[Tally]) -> list[dict]:
    """The rows of a cell. Numbers with _low and _high are the quartiles over rounds."""
    seconds = {(e.name, e.dtype): t.seconds for e, t in zip(entrants, tallies, strict=True)}
    padded = seconds.get((padded_name(OLD), "fp32"))
    rows = []
    for entrant, tally in zip(entrants, tallies, strict=True):
        base = seconds.get((PLAIN, entrant.dtype)) or seconds.get((PLAIN, "fp32"))
        row = {"rival": entrant.name, "dtype": entrant.dtype, "rounds": len(tally.seconds)}
        row |= spread("seconds", tally.seconds)
        row |= spread("speedup", ratios(base, tally.seconds))
        row |= spread("over_padded", ratios(padded, tally.seconds))
        row |= {"kept": None, "ideal": None, "ideal_macs": None, "efficiency": None}
        if tally.arrived:
            row["kept"], row["ideal"] = tally.last / tally.given, tally.given / tally.arrived
            row["ideal_macs"] = tally.full / tally.macs
            if row["speedup"]:
                row["efficiency"] = efficiency(row["speedup"], row["ideal"])
        rows.append(row | {"difference": tally.difference})
    return rows


def ratios(base: Sequence[float] | None, seconds: Sequence[float]) -> list[float]:
    """How many times faster than the baseline, round by round."""
    return [b / s for b, s in zip(base, seconds, strict=True)] if base else []


def spread(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """Median and quartiles, None where there is nothing."""
    low, middle, high = np.percentile(values, [25, 50, 75]).tolist() if values else [None] * 3
    return {name: middle, f"{name}_low": low, f"{name}_high": high}


def padded_name(length: int) -> str:
    """What the rival that pads is called."""
    return f"padded to {length}"
