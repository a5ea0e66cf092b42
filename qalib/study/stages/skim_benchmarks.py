"""Benchmark of Block-Skim on this machine's CPU, and operating points, for notebook 06.

Block-Skim is compared with the *full encoder*: the same model in the same dtype on inputs without
padding. dtypes are "fp32"; "bf16", autocast that rounds the weights in every pass; "bf16 weights",
rounded and laid out once; "int8", dynamically quantised linear layers.

Notation: B batch, K blocks, N layers.
"""

import copy
import math
import tempfile
import time
from collections.abc import Callable, Sequence
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
from qalib.timing import Progress, columns, interleave, quiet

if TYPE_CHECKING:
    from qalib.models.encoder import EncoderReader
    from qalib.skim.cost import CostModel
    from qalib.skim.reader import SkimReader
    from qalib.skim.skimmer import Skimmer

FULL = "full encoder"
PADDED = 384  # tokens that inputs were padded to in the Block-Skim paper
DISTINCT_BATCHES = 8  # of a cell, at most
Dtype = Literal["fp32", "bf16", "bf16 weights", "int8"]
DTYPES = get_args(Dtype)
Kind = Literal["padded", "block-skim", "trained", "oracle", "lexical", "onnx"]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]


@settings
class Grid:
    """One model and the inputs it is timed on.

    ``layers`` 0 is the published reader, otherwise a BERT of this shape with random weights.
    ``kept``: fractions of the tokens, question included, that are kept where blocks are drawn at
    random or by word overlap.
    """

    name: str
    layers: int = 0
    width: int = 0
    heads: int = 0
    prune_layer: Count = 3
    kept: tuple[Fraction, ...] = (0.5,)
    lengths: tuple[Annotated[int, Field(ge=24, multiple_of=8)], ...] = (128, 384)
    batches: tuple[Count, ...] = (1, 16)
    dtypes: Annotated[tuple[Dtype, ...], Field(min_length=1)] = ("fp32", "bf16 weights", "int8")
    candidates: tuple[Kind, ...] = get_args(Kind)


@settings
class BlockSkimBenchmark:
    """All cells (model, length, batch size) together take about ``seconds``.

    A cell has up to ``rounds`` rounds, and ``min_rounds`` even if they take longer; cells that
    cannot begin in time are skipped.
    """

    grids: Annotated[tuple[Grid, ...], Field(min_length=1)] = (Grid("MiniLM-L6"),)
    rounds: Count = 25
    min_rounds: Count = 1
    seconds: Annotated[float, Field(ge=0)] = 200.0
    predictor: PredictorConfig = field(default_factory=lambda: PredictorConfig("combined"))
    seed: int = 0


# --- candidates -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """One way to process a batch. ``prepare`` is applied to all batches before timing."""

    reader: str
    dtype: str
    run: Callable[[Batch], Any]
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


def in_dtypes(reader: "EncoderReader", dtypes: Sequence[str]) -> dict[str, "EncoderReader"]:
    """A reader by dtype, converted where necessary; bf16 only on a processor with units for it."""
    from qalib.models.bf16 import quantize, to_bf16
    from qalib.models.encoder import EncoderReader
    from qalib.training import choose_precision

    has_bf16 = choose_precision("auto", "cpu")[0] == "bf16"
    convert, readers = {"bf16 weights": to_bf16, "int8": quantize}, {}
    for dtype in dtypes:
        if dtype in convert and (has_bf16 or dtype == "int8"):
            encoder = convert[dtype](reader.encoder)
            readers[dtype] = EncoderReader(encoder, reader.tokenizer).eval()
        elif has_bf16 or dtype == "fp32":
            readers[dtype] = reader.eval()
    return readers


def grid_candidates(
    grid: Grid, config: BlockSkimBenchmark, trained: "Skimmer | None", folder: Path
) -> tuple["EncoderReader", list[Candidate]]:
    """The model of a grid in fp32, and the candidates of all its cells.

    "block-skim" and "oracle" run new predictors, but the blocks to keep are given; "trained"
    decides by itself, with its own layers and thresholds, and belongs to the published reader.
    """
    import torch

    from qalib.models.encoder import build_encoder
    from qalib.models.pretrained import load_reader
    from qalib.skim.baselines import LexicalReader, OnnxReader
    from qalib.skim.reader import SkimReader
    from qalib.skim.skimmer import SkimConfig, Skimmer

    shape = {"layers": grid.layers, "width": grid.width, "heads": grid.heads}
    random = EncoderConfig(random_start=True, **shape)
    fp32 = build_encoder(random, config.seed) if grid.layers else load_reader().eval()
    at, kinds, size = (grid.prune_layer,), grid.candidates, config.predictor.block_size
    torch.manual_seed(config.seed)
    skim_config = SkimConfig(config.predictor, at, at, (0.5,))
    skimmer = Skimmer.from_encoder(fp32.encoder, skim_config).eval()
    prepared = {}
    if "block-skim" in kinds:
        for kept in grid.kept:
            prepared[f"Block-Skim, {kept:g} kept"] = random_blocks(fp32, size, kept, config.seed)
    if "oracle" in kinds:
        prepared["Block-Skim, oracle"] = oracle_blocks(fp32, size)
    found = []
    for dtype, reader in in_dtypes(fp32, grid.dtypes).items():
        found.append(Candidate(FULL, dtype, reader))
        run = SkimReader(reader, skimmer).eval().run
        found += [Candidate(name, dtype, run, prepare) for name, prepare in prepared.items()]
        if "trained" in kinds and trained is not None and not grid.layers:
            run = SkimReader(reader, trained).eval().run
            found.append(Candidate("Block-Skim, trained", dtype, run))
    for kept in grid.kept if "lexical" in kinds else ():
        lexical = LexicalReader(fp32, kept, size).eval()
        found.append(Candidate(f"lexical blocks, {kept:g} kept", "fp32", lexical))
    for dtype in ("fp32", "int8") if "onnx" in kinds else ():
        with quiet():
            onnx = OnnxReader(fp32, folder / grid.name, int8=dtype == "int8")
        found.append(Candidate("onnxruntime", dtype, onnx))
    return fp32, found


def random_blocks(reader: "EncoderReader", size: int, fraction: float, seed: int) -> Callable:
    """Has a skimmer keep blocks drawn at random, up to a fraction of the tokens."""
    import torch

    from qalib.skim.baselines import passage_blocks, top_blocks

    def prepare(batch: Batch) -> Batch:
        blocks = passage_blocks(reader.tokenizer, batch, size)
        generator = torch.Generator().manual_seed(seed)
        scores = torch.rand(blocks.real.shape, generator=generator)
        keep = top_blocks(scores, blocks, fraction)
        return replace(batch, inputs={**batch.inputs, "keep": keep})

    return prepare


def oracle_blocks(reader: "EncoderReader", size: int) -> Callable:
    """Has a skimmer keep the blocks with an answer, or the first block if there is none."""
    from qalib.skim.baselines import passage_blocks
    from qalib.skim.blocks import answer_blocks

    def prepare(batch: Batch) -> Batch:
        blocks = passage_blocks(reader.tokenizer, batch, size)
        keep = answer_blocks(blocks, batch.answer_spans, batch.answer_weights)
        keep[:, :1] |= ~keep.any(dim=1, keepdim=True)
        return replace(batch, inputs={**batch.inputs, "keep": keep})

    return prepare


def full_batches(reader: "EncoderReader", data: Dataset, length: int, size: int) -> list[Batch]:
    """Batches of ``size`` questions, all of exactly ``length`` tokens.

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
    count = min(DISTINCT_BATCHES, math.ceil(len(windows) / size))
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
    progress: Progress = lambda line: None,
) -> dict:
    """Block-Skim and other ways to process fewer tokens, on the same batches of ``data``.

    ``rows``: see :func:`time_candidates`, with model, length and batch; ``skipped``: cells.
    """
    from qalib.skim.baselines import PaddedReader

    deadline, rows, skipped = time.perf_counter() + config.seconds, [], []
    cells = [(g, length, size) for g in config.grids for length in g.lengths for size in g.batches]
    weights = [
        math.sqrt(size * n * (g.layers or 6) * (g.width or 384) ** 2) for g, n, size in cells
    ]
    model = None
    with tempfile.TemporaryDirectory() as folder:
        for number, (grid, length, size) in enumerate(cells):
            cell = f"{grid.name}, {length} tokens, batch {size}"
            if rows and time.perf_counter() > deadline:
                skipped.append(cell)
                continue
            if grid is not model:
                progress(f"{grid.name}: loading")
                reader, shared = grid_candidates(grid, config, trained, Path(folder))
                model, padded = grid, []
            if "padded" in grid.candidates:
                longest = PADDED if length <= PADDED else 512
                run = PaddedReader(reader, longest)
                padded = [Candidate(f"padded to {longest}", "fp32", run)]
            left = max(0.0, deadline - time.perf_counter())
            found = time_candidates(
                [*shared, *padded],
                full_batches(reader, data, length, size),
                config.rounds,
                left * weights[number] / sum(weights[number:]),
                min_rounds=config.min_rounds,
                items_per_round=1,
                progress=lambda line, cell=cell: progress(f"{cell}: {line}"),
            )
            rows += [{"model": grid.name, "length": length, "batch": size} | row for row in found]
    return {"rows": rows, "skipped": skipped}


def time_candidates(
    candidates: Sequence[Candidate],
    batches: Sequence[Batch],
    rounds: int,
    seconds: float = math.inf,
    **options: Any,
) -> list[dict]:
    """Time candidates on the same batches; ``options`` as of ``interleave``. A row each:

    reader, dtype, rounds
    seconds              for a question (median; _low and _high are quartiles over rounds)
    speedup              over the full encoder in the same dtype
    speedup_over_padded  over the full encoder in fp32 with every input padded
    kept, ideal_eq6      fraction of the tokens in the last layer; ideal speed-up
    """
    tokens: dict[str, dict[int, np.ndarray]] = {c.name: {} for c in candidates}

    def observe(number: int, name: str, item: int, output: Any) -> None:
        found = getattr(output, "tokens", None)  # of a SkimOutput
        found = getattr(getattr(output, "aux", None), "tokens", found)
        if found is not None:
            tokens[name][item] = found.numpy().astype(float)

    def process(candidate: Candidate) -> Callable[[int], Any]:
        prepared = [candidate.prepare(batch) for batch in batches]
        return lambda item: candidate(prepared[item])

    timings = interleave(
        {c.name: process(c) for c in candidates},
        range(len(batches)),
        rounds,
        seconds,
        repeat=True,
        observe=observe,
        **options,
    )
    count = sum(map(len, batches)) / len(batches) * timings.items[0]  # questions of a round
    padded = next((c.name for c in candidates if c.reader.startswith("padded to")), None)
    rows = []
    for candidate in candidates:
        name, base = candidate.name, f"{FULL}, {candidate.dtype}"
        base = base if base in tokens else f"{FULL}, fp32"
        row = {"reader": candidate.reader, "dtype": candidate.dtype, "rounds": timings.rounds}
        row |= columns("seconds", [s / count for s in timings.seconds[name]])
        row |= columns("speedup", timings.speedups(name, base))
        row |= columns("speedup_over_padded", timings.speedups(name, padded) if padded else [])
        row |= token_columns(tokens[name].values())
        rows.append(row)
    return rows


def token_columns(tokens: Any) -> dict[str, float | None]:
    """Kept tokens and the ideal speed-up by Eq. 6, from token counts (B, N + 1) of batches."""
    if not tokens:
        return {"kept": None, "ideal_eq6": None}
    counts = np.concatenate(list(tokens))
    given = counts[:, 0].sum()
    processed = counts[:, :-1].mean(axis=1).sum()  # that arrive at a layer
    return {"kept": counts[:, -1].sum() / given, "ideal_eq6": given / processed}


# --- operating points -----------------------------------------------------------------------------


@settings
class OperatingPoints:
    """Layers, and the fractions of the passage tokens that thresholds there are to keep.

    ``short``: passages as they are; ``long``: among their neighbours from the same article.
    """

    layers: tuple[Count, ...] = (2, 3, 4)
    short: tuple[Fraction, ...] = (0.3, 0.4, 0.5, 0.6, 0.8)
    long: tuple[Fraction, ...] = (0.1, 0.2, 0.3, 0.4, 0.6)


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
    """The rows of one kind of passages, see :func:`select_operating_points`."""
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

    ``rows``: see :func:`time_candidates`, with batch; ``inputs`` and ``tokens``: number of windows
    and their mean length.
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
    """``time_candidates`` for each batch size; all windows, shortest first, in every round."""
    candidates = point_candidates(model, config)
    ordered, pad = sorted(windows, key=len), model.tokenizer.pad_token_id or 0
    rows = []
    for size in config.batches:
        batches = [collate(ordered[i : i + size], pad) for i in range(0, len(ordered), size)]
        found = time_candidates(candidates, batches, config.rounds)
        rows += [{"batch": size} | row for row in found]
    return rows


def point_candidates(model: "SkimReader", config: OperatingPointTiming) -> list[Candidate]:
    """The full encoder and every operating point in every dtype, and the padded encoder."""
    from qalib.skim.baselines import PaddedReader
    from qalib.skim.reader import SkimReader

    found = []
    for dtype, reader in in_dtypes(model.reader, config.dtypes).items():
        found.append(Candidate(FULL, dtype, reader))
        for name, options in config.points.items():
            skimmer = copy.copy(model.skimmer)  # shares the weights, not the options
            skimmer.set_options(**options)
            found.append(Candidate(name, dtype, SkimReader(reader, skimmer).eval().run))
    padded = PaddedReader(model.reader.eval(), config.padded)
    return [*found, Candidate(f"padded to {config.padded}", "fp32", padded)]
