"""Benchmarks of Block-Skim on this machine's CPU, for notebook 06 and ``qalib bench``.

Block-Skim is compared with the *full encoder*: the same model in the same dtype on inputs without
padding. dtypes are "fp32"; "bf16", autocast that rounds the weights in every pass; "bf16 weights",
rounded and laid out once; "int8", dynamically quantised linear layers.

Notation: B batch, L positions, K blocks, N layers.
"""

import copy
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import numpy as np
from pydantic import Field

from qalib.data.batching import Batch, collate
from qalib.data.schema import Dataset
from qalib.data.windows import Window, WindowConfig, make_windows
from qalib.errors import QalibError
from qalib.models.encoder import EncoderConfig
from qalib.settings import settings
from qalib.skim.predictors import PredictorConfig
from qalib.study.run_cache import Run, stage
from qalib.timing import Budget, Progress, Timings, columns, interleave, quiet

if TYPE_CHECKING:
    import torch

    from qalib.models.encoder import EncoderReader
    from qalib.skim.cost import CostModel
    from qalib.skim.reader import SkimReader
    from qalib.skim.skimmer import Skimmer

FULL = "full encoder"
DTYPES = ("fp32", "bf16", "bf16 weights", "int8")
PADDED = 384  # tokens that inputs were padded to in the Block-Skim paper
DISTINCT_BATCHES = 8  # of a cell, at most
Dtype = Literal["fp32", "bf16", "bf16 weights", "int8"]
Count = Annotated[int, Field(ge=1)]
Kind = Literal[
    "padded", "block-skim", "trained", "oracle", "lexical", "static", "threshold", "onnx"
]


def usable_dtypes(dtypes: Sequence[str]) -> list[str]:
    """Those that this processor has units for."""
    from qalib.training import choose_precision

    has_bf16 = choose_precision("auto", "cpu")[0] == "bf16"
    return [dtype for dtype in dtypes if has_bf16 or not dtype.startswith("bf16")]


# --- settings -------------------------------------------------------------------------------------


@settings
class Grid:
    """One model and the inputs it is timed on.

    ``layers`` 0 is the published reader, otherwise a BERT of this shape with random weights.
    ``kept``: fractions of the tokens, question included, that Block-Skim keeps where the blocks are
    drawn at random; the other ways to prune process as many tokens as Eq. 6 counts there. These
    are timed in the first dtype only.
    """

    name: str
    layers: int = 0
    width: int = 0
    heads: int = 0
    prune_layer: Count = 3
    kept: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.5,)
    lengths: tuple[Annotated[int, Field(ge=24, multiple_of=8)], ...] = (128, 384)
    batches: tuple[Count, ...] = (1, 16)
    dtypes: Annotated[tuple[Dtype, ...], Field(min_length=1)] = ("fp32", "bf16 weights", "int8")
    candidates: tuple[Kind, ...] = get_args(Kind)


BERT_BASE = {"layers": 12, "width": 768, "heads": 12, "prune_layer": 4, "kept": (0.25, 0.5)}
SMALL = {"lengths": (384,), "batches": (1,), "dtypes": ("fp32",), "candidates": ("block-skim",)}


@settings
class StageTiming:
    """Where the time of a pass goes: at one length and batch size of the first grid."""

    length: Count = 384
    batch: Count = 1
    rounds: Count = 9
    dtypes: tuple[Dtype, ...] = ("fp32",)


@settings
class BlockSkimBenchmark:
    """All grids together take about ``seconds``, preparation included.

    Each cell (model, length, batch size) has up to ``rounds`` rounds, and ``min_rounds`` even if
    they take longer; with ``keep_time`` a cell that is not expected to be done in time is skipped.
    """

    grids: Annotated[tuple[Grid, ...], Field(min_length=1)] = (
        Grid("MiniLM-L6"),
        Grid("BERT-base shape", **BERT_BASE, **SMALL),
    )
    rounds: Count = 25
    min_rounds: Count = 1
    seconds: Annotated[float, Field(ge=0)] = 200.0
    keep_time: bool = False
    stage_timing: StageTiming = field(default_factory=StageTiming)
    predictor: PredictorConfig = field(default_factory=lambda: PredictorConfig("combined"))
    seed: int = 0

    def __post_init__(self):
        if len({grid.name for grid in self.grids}) < len(self.grids):
            raise QalibError("each grid needs a name of its own.")


# --- models and candidates ------------------------------------------------------------------------


class BenchmarkModel:
    """A reader in several dtypes, with predictors.

    ``skimmer`` has new predictors at one layer and is given the blocks to keep; ``trained`` decides
    by itself, with its own layers and thresholds.
    """

    def __init__(
        self,
        reader: "EncoderReader",
        dtypes: Sequence[str],
        skimmer: "Skimmer",
        trained: "Skimmer | None" = None,
    ):
        from qalib.skim.cost import CostModel

        self.dtypes, self.readers = list(dtypes), in_dtypes(reader, dtypes)
        self.reader, self.skimmer, self.trained = reader, skimmer.eval(), trained
        self.cost = CostModel.of(reader.encoder)
        self.block_size = skimmer.config.predictor.block_size

    @classmethod
    def build(
        cls, grid: Grid, predictor: PredictorConfig, seed: int, trained: "Skimmer | None" = None
    ) -> "BenchmarkModel":
        """The model that a grid names; ``trained`` belongs to the published reader."""
        import torch

        from qalib.models.encoder import build_encoder
        from qalib.models.pretrained import load_reader
        from qalib.skim.skimmer import SkimConfig, Skimmer

        shape = {"layers": grid.layers, "width": grid.width, "heads": grid.heads}
        random = EncoderConfig(random_start=True, **shape)
        reader = build_encoder(random, seed) if grid.layers else load_reader()
        torch.manual_seed(seed)
        at = (grid.prune_layer,)
        skimmer = Skimmer.from_encoder(reader.encoder, SkimConfig(predictor, at, at, (0.5,)))
        return cls(reader, usable_dtypes(grid.dtypes), skimmer, None if grid.layers else trained)


def in_dtypes(reader: "EncoderReader", dtypes: Sequence[str]) -> dict[str, "EncoderReader"]:
    """The reader itself for "fp32" and "bf16", converted copies for the others."""
    from qalib.models.bf16 import quantize, to_bf16
    from qalib.models.encoder import EncoderReader

    convert, reader = {"bf16 weights": to_bf16, "int8": quantize}, reader.eval()
    readers = dict.fromkeys(("fp32", *dtypes), reader)
    for name in readers.keys() & convert.keys():
        readers[name] = EncoderReader(convert[name](reader.encoder), reader.tokenizer).eval()
    return readers


@dataclass(frozen=True)
class Candidate:
    """One way to process a batch. ``prepare`` is applied to all batches before timing."""

    reader: str
    dtype: str
    run: Callable[[Batch], Any]
    cost: "CostModel"
    prepare: Callable[[Batch], Batch] = lambda batch: batch

    @property
    def name(self) -> str:
        """Unique within a cell."""
        return f"{self.reader}, {self.dtype}"

    def __call__(self, batch: Batch) -> Any:
        """What is timed."""
        import torch

        bf16 = self.dtype.startswith("bf16")
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return self.run(batch)


def grid_candidates(
    grid: Grid, model: BenchmarkModel, batch: Batch, seed: int, folder: Path
) -> list[Candidate]:
    """All candidates of a cell. ``batch``: one of its batches, by which a threshold is set."""
    from qalib.skim.baselines import OnnxReader, PaddedReader
    from qalib.skim.cost import CostModel
    from qalib.skim.reader import SkimReader

    found, kinds = [], grid.candidates
    encoder = model.reader.encoder
    for dtype in model.dtypes:
        reader = model.readers[dtype]
        found.append(Candidate(FULL, dtype, reader, model.cost))
        run = SkimReader(reader, model.skimmer).eval().run
        prepared = {}
        if "block-skim" in kinds:
            for kept in grid.kept:
                prepared[f"Block-Skim, {kept:g} kept"] = random_blocks(model, kept, seed)
        if "oracle" in kinds:
            prepared["Block-Skim, oracle"] = oracle_blocks(model)
        cost = CostModel.of(encoder, model.skimmer)
        found += [Candidate(name, dtype, run, cost, p) for name, p in prepared.items()]
        if "trained" in kinds and model.trained is not None:
            run, cost = (
                SkimReader(reader, model.trained).eval().run,
                CostModel.of(encoder, model.trained),
            )
            found.append(Candidate("Block-Skim, trained", dtype, run, cost))
    found += _baselines(grid, model, batch)
    if "padded" in kinds:
        length = PADDED if batch.mask.shape[1] <= PADDED else 512
        padded = PaddedReader(model.reader, length)
        found.append(Candidate(f"padded to {length}", "fp32", padded, model.cost))
    for dtype in ("fp32", "int8") if "onnx" in kinds else ():
        with quiet():
            onnx = OnnxReader(model.reader, folder, int8=dtype == "int8")
        found.append(Candidate("onnxruntime", dtype, onnx, model.cost))
    return found


def _baselines(grid: Grid, model: BenchmarkModel, batch: Batch) -> list[Candidate]:
    """Other ways to prune that process as many tokens as Eq. 6 counts for Block-Skim."""
    from qalib.skim import baselines
    from qalib.skim.cost import ideal_speedup

    dtype = model.dtypes[0]
    reader, layers, readers = model.readers[dtype], len(model.cost.layers), {}
    for kept in grid.kept:
        tokens = 1 / ideal_speedup({grid.prune_layer: kept}, layers)
        if "lexical" in grid.candidates:
            lexical = baselines.LexicalReader(reader, kept, model.block_size)
            readers[f"lexical blocks, {kept:g} kept"] = lexical
        rules: dict[str, Any] = {}
        if "static" in grid.candidates:
            schedule = baselines.static_schedule(layers, tokens)
            rules["static"] = baselines.StaticLengths(schedule)
        if "threshold" in grid.candidates:
            theta = baselines.find_theta(reader, first_row(batch), tokens)
            rules["threshold"] = baselines.AttentionThreshold(theta, layers)
        for name, rule in rules.items():
            pruning = baselines.TokenPruning(reader, rule)
            readers[f"{name} token pruning, as {kept:g}"] = pruning
    return [Candidate(name, dtype, r.eval(), model.cost) for name, r in readers.items()]


def first_row(batch: Batch) -> Batch:
    """The first question of a batch."""
    inputs = {name: x[:1] for name, x in batch.inputs.items()}
    count = int(inputs["attention_mask"].sum())
    rows = (x[:1] for x in (batch.mask, batch.answer_spans, batch.answer_weights))
    return Batch(inputs, *rows, count)


def random_blocks(model: BenchmarkModel, fraction: float, seed: int) -> Callable[[Batch], Batch]:
    """Has the skimmer keep blocks drawn at random, up to a fraction of the tokens."""
    import torch

    from qalib.skim.baselines import passage_blocks, top_blocks

    def prepare(batch: Batch) -> Batch:
        blocks = passage_blocks(model.reader.tokenizer, batch, model.block_size)
        generator = torch.Generator().manual_seed(seed)
        scores = torch.rand(blocks.real.shape, generator=generator)
        return with_kept_blocks(batch, top_blocks(scores, blocks, fraction))

    return prepare


def oracle_blocks(model: BenchmarkModel) -> Callable[[Batch], Batch]:
    """Has the skimmer keep the blocks with an answer, or the first block if there is none."""
    from qalib.skim.baselines import passage_blocks
    from qalib.skim.blocks import answer_blocks

    def prepare(batch: Batch) -> Batch:
        blocks = passage_blocks(model.reader.tokenizer, batch, model.block_size)
        kept = answer_blocks(blocks, batch.answer_spans, batch.answer_weights)
        kept[:, :1] |= ~kept.any(dim=1, keepdim=True)
        return with_kept_blocks(batch, kept)

    return prepare


def with_kept_blocks(batch: Batch, kept: "torch.Tensor") -> Batch:
    """The batch for a skimming reader that does not decide by itself.  kept (B, K) bool"""
    return replace(batch, inputs={**batch.inputs, "keep": kept})


def full_batches(
    reader: "EncoderReader", data: Dataset, length: int, size: int, most: int = DISTINCT_BATCHES
) -> list[Batch]:
    """At most ``most`` batches of ``size`` questions, all of exactly ``length`` tokens.

    From windows that a passage fills, those with an answer first; if there are few, they are
    repeated. Raises QalibError if there is none.
    """
    config = WindowConfig(length, doc_stride=0, max_query_length=min(64, length // 4))
    windows = [w for w in make_windows(data.examples, reader.tokenizer, config) if len(w) == length]
    if not windows:
        raise QalibError(
            f"no passage of {data.name} fills {length} tokens; use data with longer passages, or "
            "shorter lengths."
        )
    windows.sort(key=lambda window: not len(window.spans))
    count = min(most, math.ceil(len(windows) / size))
    rows = [[windows[(b * size + i) % len(windows)] for i in range(size)] for b in range(count)]
    return [collate(chosen, reader.tokenizer.pad_token_id or 0) for chosen in rows]


# --- timing ---------------------------------------------------------------------------------------


@stage("bench-block-skim", publish=())
def bench_block_skim(
    config: BlockSkimBenchmark,
    work: Path,
    data: Dataset,
    checkpoint: str | None = None,
    skimmer: str | None = None,
) -> dict:
    """:func:`time_block_skim` of the published files, which ``checkpoint`` and ``skimmer`` hash."""
    from qalib.skim.storage import DEFAULT_SKIMMER, load_skimmer

    return time_block_skim(config, data, load_skimmer(DEFAULT_SKIMMER) if skimmer else None)


def time_block_skim(
    config: BlockSkimBenchmark,
    data: Dataset,
    trained: "Skimmer | None" = None,
    progress: Progress | None = None,
) -> dict:
    """Block-Skim and other ways to process fewer tokens, on the same batches of ``data``.

    ``rows``: see :func:`candidate_rows`, with model, length and batch; ``stages``: see
    :func:`time_stages`; ``notes``: what was skipped.
    """
    budget = Budget(config.seconds)
    cells = [(g, length, size) for g in config.grids for length in g.lengths for size in g.batches]
    models = {}
    for grid in config.grids:
        if progress:
            progress(f"{grid.name}: loading")
        models[grid.name] = BenchmarkModel.build(grid, config.predictor, config.seed, trained)
    macs = [full_macs(models[g.name].cost, length) * size for g, length, size in cells]
    stages = time_stages(config, models[config.grids[0].name], data)
    rows, notes = [], [] if trained else ["no trained skimmer was given, so none was timed"]
    with tempfile.TemporaryDirectory() as folder:
        for number, (grid, length, size) in enumerate(cells):
            cell, model = f"{grid.name}, {length} tokens, batch {size}", models[grid.name]
            batches = full_batches(model.reader, data, length, size)
            candidates = grid_candidates(
                grid, model, batches[0], config.seed, Path(folder) / grid.name
            )
            once = 2 * len(candidates) * macs[number]  # a round; every pass is repeated
            if config.keep_time and not budget.fits(once * (1 + config.min_rounds)):
                notes.append(f"{cell} was skipped, as it would have taken too long")
                continue
            share = budget.share(np.sqrt(macs[number:]))
            report = progress and (lambda line, cell=cell: progress(f"{cell}: {line}"))
            with budget.measure() as measured:
                found = time_candidates(candidates, batches, config, share, report)
                measured.append(once * (1 + found[0]["rounds"]))
            place = {"model": grid.name, "length": length, "batch": size}
            rows += [place | row for row in found]
    return {"rows": rows, "stages": stages, "notes": notes}


def full_macs(cost: "CostModel", tokens: float) -> float:
    """Multiply-adds of an input without pruning."""
    from qalib.skim.cost import token_counts

    return float(cost.encoder_macs(token_counts(tokens, {}, len(cost.layers))))


def time_candidates(
    candidates: Sequence[Candidate],
    batches: Sequence[Batch],
    config: BlockSkimBenchmark,
    seconds: float,
    progress: Progress | None = None,
) -> list[dict]:
    """Time the candidates of a cell, one batch a round.  -> ``candidate_rows``"""
    prepared = {c.name: [c.prepare(batch) for batch in batches] for c in candidates}
    counts, full = {c.name: Counts(c.cost) for c in candidates}, {}
    named = {c.name: c for c in candidates}

    def observe(number: int, name: str, item: int, output: Any) -> None:
        if number < len(batches):
            counts[name].add(output, batches[item])
        if number == 0:
            reader, dtype = named[name].reader, named[name].dtype
            if reader == FULL:
                full[dtype] = output
            counts[name].difference = logit_difference(output, full.get(dtype, full["fp32"]))

    def process(candidate: Candidate) -> Callable[[int], Any]:
        return lambda item: candidate(prepared[candidate.name][item])

    timings = interleave(
        {c.name: process(c) for c in candidates},
        range(len(batches)),
        config.rounds,
        seconds,
        min_rounds=config.min_rounds,
        items_per_round=1,
        repeat=True,
        observe=observe,
        progress=progress,
    )
    return candidate_rows(candidates, timings, counts, len(batches[0]))


@dataclass
class Counts:
    """Tokens and multiply-adds of one candidate, summed over its distinct batches."""

    cost: "CostModel"
    given: float = 0.0  # tokens of the inputs
    processed: float = 0.0  # tokens that arrive at a layer, mean over layers
    last: float = 0.0  # tokens that the last layer processes
    full_macs: float = 0.0
    macs: float = 0.0
    difference: float | None = None  # of a logit from the full encoder's, at most

    def add(self, output: Any, batch: Batch) -> None:
        """Count a batch; nothing where the output does not say."""
        from qalib.skim.cost import batch_cost
        from qalib.skim.skimmer import SkimOutput

        if isinstance(output, SkimOutput):
            tokens, spent = output.tokens, batch_cost(self.cost, output)
            self.macs += float((spent.encoder + spent.predictors).sum())
        elif output.aux is not None:
            tokens = output.aux.tokens
            self.macs += float(self.cost.encoder_macs(tokens.numpy()).sum())
        else:
            return
        real = batch.inputs["attention_mask"].sum(dim=1).tolist()
        self.given += sum(real)
        self.full_macs += sum(full_macs(self.cost, n) for n in real)
        self.processed += float(tokens[:, :-1].double().mean(dim=1).sum())
        self.last += float(tokens[:, -1].sum())


def candidate_rows(
    candidates: Sequence[Candidate],
    timings: Timings,
    counts: Mapping[str, Counts],
    questions: float,
) -> list[dict]:
    """A row per candidate: reader, dtype, rounds, and

    seconds              for a question (median; _low and _high are quartiles over rounds)
    speedup              over the full encoder in the same dtype
    speedup_over_padded  over the full encoder in fp32 with every input padded
    kept                 fraction of the tokens that the last layer processes
    ideal_eq6, ideal_macs, efficiency    ideal speed-ups, and measured / Eq. 6
    logit_difference     the largest from the full encoder's

    ``questions``: of a round.
    """
    padded = next((c.name for c in candidates if c.reader.startswith("padded to")), None)
    rows = []
    for candidate in candidates:
        name, count = candidate.name, counts[candidate.name]
        base = f"{FULL}, {candidate.dtype}"
        base = base if base in timings.seconds else f"{FULL}, fp32"
        row = {"reader": candidate.reader, "dtype": candidate.dtype, "rounds": timings.rounds}
        row |= columns("seconds", [s / questions for s in timings.seconds[name]])
        row |= columns("speedup", timings.speedups(name, base))
        row |= columns("speedup_over_padded", timings.speedups(name, padded) if padded else [])
        row |= dict.fromkeys(("kept", "ideal_eq6", "ideal_macs", "efficiency"))
        if count.given:
            row["kept"], row["ideal_eq6"] = count.last / count.given, count.given / count.processed
            row["ideal_macs"] = count.full_macs / count.macs
            row["efficiency"] = row["speedup"] / row["ideal_eq6"]
        rows.append(row | {"logit_difference": count.difference})
    return rows


def logit_difference(output: Any, full: Any) -> float:
    """The largest difference of a logit, where neither is the minimum.  (B, L) each"""
    from qalib.skim.padded import MIN_LOGIT

    largest = 0.0
    for name in ("start_logits", "end_logits"):
        ours, theirs = (getattr(x, name).float() for x in (output, full))
        both = (ours > MIN_LOGIT / 2) & (theirs > MIN_LOGIT / 2)
        if both.any():
            largest = max(largest, float((ours - theirs)[both].abs().max()))
    return largest


# --- where the time of a pass goes ----------------------------------------------------------------


STAGES = (
    "embeddings",
    "layers before",
    "pruning layer",
    "predictor",
    "bookkeeping",  # block selection, indices, gathering, scattering logits back
    "layers after",
    "span head",
)


class StageTimer:
    """Seconds by stage: the time up to a lap belongs to the stage that the lap names.

    It wraps an encoder's adapter and reads the clock whenever one of its parts begins or ends. On a
    CPU a part is done when its call returns, so that the stages add up to the whole.
    """

    def __init__(self, prune_layer: int):
        self.prune_layer, self.seconds, self.stage = prune_layer, Counter(), ""
        self.last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """The time since the last lap was ``stage``."""
        now = time.perf_counter()
        self.seconds[stage] += now - self.last
        self.last, self.stage = now, stage

    def wrap(self, encoder: Any) -> Any:
        """The same adapter, timed."""
        encoder.embed = self._timed(encoder.embed, "embeddings")
        encoder.head = self._timed(encoder.head, "span head")
        encoder.layers = tuple(self._layer(n, x) for n, x in enumerate(encoder.layers, 1))
        return encoder

    def _timed(self, step: Callable, stage: str) -> Callable:
        def timed(*args):
            self.lap("bookkeeping")
            result = step(*args)
            self.lap(stage)
            return result

        return timed

    def _layer(self, number: int, layer: Any) -> Any:
        stage = "layers before" if number < self.prune_layer else "layers after"
        stage = "pruning layer" if number == self.prune_layer else stage

        def feed_forward(context, hidden):
            # Since qkv_proj: attention, and in a pruning layer what follows the predictor.
            self.lap("bookkeeping" if self.stage == "predictor" else stage)
            result = layer.feed_forward(context, hidden)
            self.lap(stage)
            return result

        qkv_proj = self._timed(layer.qkv_proj, stage)
        return replace(layer, qkv_proj=qkv_proj, feed_forward=feed_forward)

    def run(self, reader: "EncoderReader", skimmer: "Skimmer", batch: Batch) -> None:
        """One pass; the skimmer itself is not changed."""
        from qalib.skim.reader import SkimReader

        timed = copy.copy(skimmer)
        timed.check_compatible = lambda model: self.wrap(skimmer.check_compatible(model))
        hooks = []
        for predictor in skimmer.predictors.values():
            before, after = predictor.register_forward_pre_hook, predictor.register_forward_hook
            hooks.append(before(lambda *_: self.lap("pruning layer")))
            hooks.append(after(lambda *_: self.lap("predictor")))
        try:
            model = SkimReader(reader, timed).eval()
            self.last = time.perf_counter()
            model.run(batch)
            self.lap("bookkeeping")
        finally:
            for hook in hooks:
                hook.remove()


def time_stages(config: BlockSkimBenchmark, model: BenchmarkModel, data: Dataset) -> list[dict]:
    """Median seconds a question by stage, with blocks drawn at random, per dtype.

    Rows: the full encoder (``total`` only), the skimming engine without pruning, and with it.
    columns reader, dtype, model, length, batch, those of STAGES, total
    """
    timing, grid = config.stage_timing, config.grids[0]
    batch = full_batches(model.reader, data, timing.length, timing.batch)[0]
    engine = copy.copy(model.skimmer)
    engine.set_options(prune_layers=(), thresholds=())
    passes = {"Block-Skim, nothing pruned": (engine, batch)}
    for kept in grid.kept:
        prepared = random_blocks(model, kept, config.seed)(batch)
        passes[f"Block-Skim, {kept:g} kept"] = (model.skimmer, prepared)
    place = {"model": grid.name, "length": timing.length, "batch": timing.batch}
    rows = []
    for dtype in (d for d in usable_dtypes(timing.dtypes) if d in model.readers):
        for name, laps in _stage_laps(model, dtype, passes, batch, timing.rounds).items():
            stages = ("total",) if name == FULL else (*STAGES, "total")
            medians = {s: float(np.median([lap[s] for lap in laps])) for s in stages}
            seconds = {s: value / timing.batch for s, value in medians.items()}
            rows.append({"reader": name, "dtype": dtype, **place, **seconds})
    return rows


def _stage_laps(
    model: BenchmarkModel, dtype: str, passes: Mapping[str, tuple], batch: Batch, rounds: int
) -> dict[str, list[Counter]]:
    """Seconds by stage of every pass in every round."""
    laps: dict[str, list[Counter]] = {name: [] for name in (FULL, *passes)}
    reader, at = model.readers[dtype], model.skimmer.config.prune_layers[0]

    def timed_pass(name: str) -> Callable[[Batch], Counter]:
        def run(batch: Batch) -> Counter:
            timer = StageTimer(at)
            if name == FULL:
                reader(batch)
                timer.lap("total")
            else:
                timer.run(reader, *passes[name])
                timer.seconds["total"] = sum(timer.seconds.values())
            return timer.seconds

        return run

    def observe(number: int, name: str, item: Batch, seconds: Counter) -> None:
        if number:
            laps[name].append(seconds)

    candidates = {name: Candidate(name, dtype, timed_pass(name), model.cost) for name in laps}
    interleave(candidates, [batch], rounds, observe=observe)
    return laps


# --- operating points -----------------------------------------------------------------------------


@settings
class OperatingPoints:
    """Layers, and the fractions of the passage tokens that thresholds there are to keep.

    ``short``: passages as they are; ``long``: among their neighbours from the same article.
    """

    layers: tuple[Count, ...] = (2, 3, 4)
    short: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.3, 0.4, 0.5, 0.6, 0.8)
    long: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.1, 0.2, 0.3, 0.4, 0.6)


@settings
class TradeOff:
    """Questions that operating points answer, and how they are timed (section [tradeoff])."""

    long_windows: WindowConfig = field(default_factory=lambda: WindowConfig(max_length=512))
    test_every: Count = 1  # every how many-th test question
    held_every: Count = 1  # and held-out training question is answered
    long_test_every: Count = 1
    long_held_every: Count = 1
    timed: Count = 192  # questions that are timed
    long_timed: Count = 96
    batches: tuple[Count, ...] = (1, 16)
    dtypes: tuple[Dtype, ...] = ("fp32", "bf16 weights")
    rounds: Count = 5
    drops: tuple[float, ...] = (0.5, 1.0, 1.5)  # points of F1 that may be lost


@settings
class CalibrationShift:
    """Where recall is calibrated and where it is tested (section [calibration_shift]).

    ``home``: the held-out passages of the training data; ``elsewhere``: other sets, each a name and
    the section of the profile with its test data; ``calibrate``: names of the sets used together
    """

    home: str
    elsewhere: tuple[tuple[str, str], ...]
    calibrate: tuple[tuple[str, ...], ...]
    layers: tuple[Count, ...] = (2, 3, 4)
    epochs: Count = 1
    every: Count = 1  # every how many-th question elsewhere
    recalls: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.95, 0.98, 0.99)
    splits: Count = 500

    def __post_init__(self):
        known = {self.home, *(name for name, _ in self.elsewhere)}
        for names in self.calibrate:
            if not names or set(names) - known:
                raise QalibError(
                    f"calibrate names {', '.join(names) or 'nothing'}; the sets are "
                    f"{', '.join(sorted(known))}."
                )


@stage("operating-points", publish=())
def select_operating_points(
    config: OperatingPoints, work: Path, weights: Run, short_blocks: Run, long_blocks: Run
) -> dict:
    """A threshold for every layer and fraction, found on the blocks of held-out questions.

    By passages ("short", "long") rows of name, layer, threshold, target (the fraction asked for),
    and what it does to these questions: recall, token_fraction, relative_flops.
    """
    from qalib.skim.cost import CostModel
    from qalib.study.stages.block_skim import load_skim_reader, read_blocks

    model = load_skim_reader(weights)
    cost = CostModel.of(model.reader.encoder, model.skimmer)
    return {
        name: select_points(read_blocks(blocks), config.layers, getattr(config, name), cost)
        for name, blocks in {"short": short_blocks, "long": long_blocks}.items()
    }


def select_points(
    blocks: Any, layers: Sequence[int], fractions: Sequence[float], cost: "CostModel"
) -> list[dict]:
    """The rows of one kind of passages, see :func:`operating_points`."""
    from qalib.skim.calibration import PruningSimulator, recall_curve

    simulator = PruningSimulator(blocks.row, blocks.sizes, blocks.answers, blocks.scores)
    rows = []
    for layer in layers:
        curve = recall_curve(blocks.scores[layer], blocks.answers, blocks.sizes, blocks.row)
        for fraction in fractions:
            within = int(np.searchsorted(curve.kept, fraction, side="right"))
            threshold = min(1.0, float(curve.thresholds[max(0, within - 1)]))
            row = {"name": f"layer {layer}, {100 * fraction:g} %", "layer": layer}
            row |= {"threshold": threshold, "target": fraction}
            row["recall"] = float((simulator.conformity_scores(layer) >= threshold).mean())
            row["token_fraction"] = simulator.token_fraction(layer, threshold)
            row["relative_flops"] = simulator.relative_flops(layer, threshold, cost)
            rows.append(row)
    return rows


@settings
class OperatingPointTiming:
    """How operating points are timed: all questions in every round, in batches of similar length.

    ``points``: by name, options of ``Skimmer.set_options``
    """

    points: dict[str, Any]
    windows: WindowConfig = field(default_factory=WindowConfig)
    padded: Count = PADDED  # tokens
    batches: tuple[Count, ...] = (1, 16)
    dtypes: tuple[Dtype, ...] = ("fp32", "bf16 weights")
    rounds: Count = 5
    passages: str = ""  # label


@stage("bench-operating-points", publish=())
def bench_operating_points(
    config: OperatingPointTiming, work: Path, weights: Run, data: Dataset
) -> dict:
    """Time the operating points of a ``train-skim`` run beside the full and the padded encoder.

    ``rows``: see ``candidate_rows``, with batch; ``inputs`` and ``tokens``: number of windows and
    their mean length.
    """
    from qalib.study.stages.block_skim import load_skim_reader

    model = load_skim_reader(weights)
    windows = make_windows(data.examples, model.tokenizer, config.windows)
    tokens = float(np.mean([len(window) for window in windows]))
    rows = time_operating_points(model, windows, config)
    return {"rows": rows, "inputs": len(windows), "tokens": tokens}


def time_operating_points(
    model: "SkimReader", windows: Sequence[Window], config: OperatingPointTiming
) -> list[dict]:
    """``candidate_rows`` for each batch size; all windows, shortest first, in every round."""
    candidates, rows = point_candidates(model, config), []
    ordered, pad = sorted(windows, key=len), model.tokenizer.pad_token_id or 0
    for size in config.batches:
        batches = [collate(ordered[i : i + size], pad) for i in range(0, len(ordered), size)]
        counts = {c.name: Counts(c.cost) for c in candidates}

        def observe(number: int, name: str, batch: Batch, output: Any, counts=counts) -> None:
            if number == 0:
                counts[name].add(output, batch)

        named = {c.name: c for c in candidates}
        timings = interleave(named, batches, config.rounds, repeat=True, observe=observe)
        found = candidate_rows(candidates, timings, counts, len(ordered))
        rows += [{"batch": size} | row for row in found]
    return rows


def point_candidates(model: "SkimReader", config: OperatingPointTiming) -> list[Candidate]:
    """The full encoder and every operating point in every dtype, and the padded encoder."""
    from qalib.skim.baselines import PaddedReader
    from qalib.skim.cost import CostModel
    from qalib.skim.reader import SkimReader

    dtypes = usable_dtypes(config.dtypes)
    readers, encoder = in_dtypes(model.reader, dtypes), model.reader.encoder
    full, skim = CostModel.of(encoder), CostModel.of(encoder, model.skimmer)
    found = []
    for dtype in dtypes:
        found.append(Candidate(FULL, dtype, readers[dtype], full))
        for name, options in config.points.items():
            skimmer = copy.copy(model.skimmer)  # shares the weights, not the options
            skimmer.set_options(**options)
            run = SkimReader(readers[dtype], skimmer).eval().run
            found.append(Candidate(name, dtype, run, skim))
    padded = PaddedReader(readers["fp32"], config.padded)
    return [*found, Candidate(f"padded to {config.padded}", "fp32", padded, full)]
