"""Benchmarks of training, Block-Skim and answering, on this machine's CPU.

All time their candidates in turn (``qalib.timing``), so that speed-ups are ratios within a round.
``python -m qalib bench`` and ``study bench`` run them; notebooks 03, 06 and 08 record some.

dtypes are "fp32"; "bf16", autocast that rounds the weights in every pass; "bf16 weights", rounded
and laid out once; "int8", dynamically quantised linear layers. The *full encoder* is the same model
in the same dtype on inputs without padding.

Notation: B batch, K blocks, N layers.
"""

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import numpy as np
from pydantic import Field

from qalib.data.batching import Batch, collate, training_batches
from qalib.data.schema import Dataset
from qalib.data.windows import Window, WindowConfig, make_windows
from qalib.errors import QalibError
from qalib.models.encoder import EncoderConfig
from qalib.settings import settings
from qalib.skim.predictors import PredictorConfig
from qalib.study.run_cache import stage
from qalib.timing import Progress, columns, interleave, quartiles
from qalib.training import TrainConfig, choose_precision

if TYPE_CHECKING:
    from torch import nn

    from qalib.inference import QuestionAnswerer
    from qalib.models.encoder import EncoderReader
    from qalib.skim.skimmer import Skimmer

FULL = "full encoder"
PADDED = 384  # tokens that inputs were padded to in the Block-Skim paper
DISTINCT_BATCHES = 8  # of a cell, at most
Dtype = Literal["fp32", "bf16", "bf16 weights", "int8"]
DTYPES = get_args(Dtype)
Kind = Literal["padded", "block-skim", "trained", "oracle", "lexical", "onnx"]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]


def best_precision() -> str:
    """bf16 on a processor on which it is faster, otherwise fp32."""
    return choose_precision("auto", "cpu")[0]


def in_dtypes(reader: "EncoderReader", dtypes: Sequence[str]) -> dict[str, "EncoderReader"]:
    """A reader by dtype, converted where necessary; bf16 only on a processor with units for it."""
    from qalib.models.bf16 import quantize, to_bf16
    from qalib.models.encoder import EncoderReader

    has_bf16 = best_precision() == "bf16"
    convert, readers = {"bf16 weights": to_bf16, "int8": quantize}, {}
    for dtype in dtypes:
        if dtype in convert and (has_bf16 or dtype == "int8"):
            encoder = convert[dtype](reader.encoder)
            readers[dtype] = EncoderReader(encoder, reader.tokenizer).eval()
        elif has_bf16 or dtype == "fp32":
            readers[dtype] = reader.eval()
    return readers


def training_step(
    reader: "nn.Module", loss: Callable, precision: str, config: TrainConfig
) -> Callable[[Any], float]:
    """A function that takes one training step on a batch and returns the loss before it."""
    import torch

    from qalib.training import make_optimizer

    optimizer = make_optimizer(reader.train(), config)

    def step(batch: Any) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            output = reader(batch)
        value = loss(output, batch).mean()
        value.backward()
        torch.nn.utils.clip_grad_norm_(reader.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return value.item()

    return step


# --- training an encoder --------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingSetup:
    """One way to train an encoder reader."""

    bf16: bool = False
    attention_dropout: float = 0.1
    freeze_embeddings: bool = False
    attention: str = "sdpa"  # implementation in transformers
    byte_dropout: bool = False
    similar_lengths: bool = False

    def trainer(self, seed: int = 0) -> Callable:
        """A training step on a fresh reader."""
        from qalib.losses import span_loss
        from qalib.models.encoder import build_encoder, use_byte_dropout

        encoder = EncoderConfig(
            attention_dropout=self.attention_dropout, train_embeddings=not self.freeze_embeddings
        )
        reader = build_encoder(encoder, seed, fast_dropout=False)
        reader.encoder.set_attn_implementation(self.attention)
        if self.byte_dropout:
            use_byte_dropout(reader.encoder)
        return training_step(
            reader,
            lambda output, batch: span_loss(output, batch.answer_spans, batch.answer_weights),
            best_precision() if self.bf16 else "fp32",
            TrainConfig(),
        )

    def plan(self, lengths: Sequence[int], budget: int, seed: int = 0) -> list[list[int]]:
        """Batches of similar length, or as many random windows as fill the budget on average."""
        if self.similar_lengths:
            return training_batches(lengths, budget, seed, 0)
        order = np.random.default_rng(seed).permutation(len(lengths)).tolist()
        rows = max(1, int(budget / np.mean(lengths)))
        return [order[i : i + rows] for i in range(0, len(order) - rows + 1, rows)]


TRAINING_SETUPS = {  # each with one change to the one before
    "transformers defaults: fp32, SDPA, dropout 0.1, random batches": TrainingSetup(),
    "+ bf16 where it is faster": TrainingSetup(True),
    "+ attention dropout 0": TrainingSetup(True, 0.0),
    "+ word embeddings frozen": TrainingSetup(True, 0.0, True),
    "+ attention as two matrix products": TrainingSetup(True, 0.0, True, "qalib"),
    "+ dropout from random bytes": TrainingSetup(True, 0.0, True, "qalib", True),
    "+ batches of similar length (qalib)": TrainingSetup(True, 0.0, True, "qalib", True, True),
}


def time_training(
    windows: Sequence[Window],
    rounds: int = 5,
    steps: int = 3,
    budget: int = 4096,
    progress: Progress | None = None,
) -> list[dict]:
    """Training in batches of ``budget`` tokens, ``steps`` of each set-up in a round. A row each:

    setup, precision, tokens_per_second (without padding), speedup (over the first set-up)

    Where fp32 is faster the bf16 set-ups run in fp32, as training does.
    """
    tokens: dict[str, list[int]] = {name: [] for name in TRAINING_SETUPS}

    def trainer(setup: TrainingSetup) -> Callable[[int], int]:
        step, plan = setup.trainer(), setup.plan([len(window) for window in windows], budget)

        def train(number: int) -> int:
            chosen = range(number * steps, (number + 1) * steps)
            batches = [collate([windows[i] for i in plan[n % len(plan)]]) for n in chosen]
            for batch in batches:
                step(batch)
            return sum(batch.num_tokens for batch in batches)

        return train

    timings = interleave(
        {name: trainer(setup) for name, setup in TRAINING_SETUPS.items()},
        range(1 + rounds),
        rounds,
        items_per_round=1,
        observe=lambda number, name, item, count: tokens[name].append(count),
        progress=progress,
    )
    rates = {name: timings.rates(name, counts[1:]) for name, counts in tokens.items()}
    base, rows = next(iter(rates.values())), []
    for name, values in rates.items():
        ratios = [ours / theirs for ours, theirs in zip(values, base, strict=True)]
        precision = best_precision() if TRAINING_SETUPS[name].bf16 else "fp32"
        row = {"setup": name, "precision": precision, **columns("tokens_per_second", values)}
        rows.append(row | {"speedup": quartiles(ratios).median})
    return rows


# --- Block-Skim -----------------------------------------------------------------------------------


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


@dataclass(frozen=True)
class Candidate:
    """One way to process a batch. ``prepare`` is applied to all batches before timing."""

    reader: str
    dtype: str
    model: "nn.Module"
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
            return self.model(batch)


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
        skims = SkimReader(reader, skimmer).eval()
        found += [Candidate(name, dtype, skims, prepare) for name, prepare in prepared.items()]
        if "trained" in kinds and trained is not None and not grid.layers:
            skims = SkimReader(reader, trained).eval()
            found.append(Candidate("Block-Skim, trained", dtype, skims))
    for kept in grid.kept if "lexical" in kinds else ():
        lexical = LexicalReader(fp32, kept, size).eval()
        found.append(Candidate(f"lexical blocks, {kept:g} kept", "fp32", lexical))
    for dtype in ("fp32", "int8") if "onnx" in kinds else ():
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


def padded_candidate(reader: "EncoderReader", length: int) -> Candidate:
    """The full encoder in fp32 with every input padded to ``length``."""
    from qalib.skim.baselines import PaddedReader

    return Candidate(f"padded to {length}", "fp32", PaddedReader(reader.eval(), length))


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
    """Block-Skim and other ways to run the same encoders, on the same batches of ``data``.

    ``rows``: see :func:`time_candidates`, with model, length and batch; ``skipped``: cells. Every
    cell gets an equal share of the time that is left.
    """
    deadline, rows, skipped, model = time.perf_counter() + config.seconds, [], [], None
    cells = [(g, length, size) for g in config.grids for length in g.lengths for size in g.batches]
    with tempfile.TemporaryDirectory() as folder:
        for number, (grid, length, size) in enumerate(cells):
            if rows and time.perf_counter() > deadline:
                skipped.append(f"{grid.name}, {length} tokens, batch {size}")
                continue
            if grid is not model:
                reader, shared = grid_candidates(grid, config, trained, Path(folder))
                model = grid
            padded = [padded_candidate(reader, PADDED if length <= PADDED else 512)]
            left = max(0.0, deadline - time.perf_counter())
            found = time_candidates(
                shared + (padded if "padded" in grid.candidates else []),
                full_batches(reader, data, length, size),
                config.rounds,
                left / (len(cells) - number),
                min_rounds=config.min_rounds,
                items_per_round=1,
                progress=progress,
            )
            rows += [{"model": grid.name, "length": length, "batch": size} | row for row in found]
    return {"rows": rows, "skipped": skipped}


def time_candidates(
    candidates: Sequence[Candidate],
    batches: Sequence[Batch],
    rounds: int,
    seconds: float = math.inf,
    items_per_round: int = 0,
    **options: Any,
) -> list[dict]:
    """Time candidates on the same batches; ``options`` as of ``interleave``. A row each:

    reader, dtype, rounds
    seconds              for a question (median; _low and _high are quartiles over rounds)
    speedup              over the full encoder in the same dtype
    speedup_over_padded  over the full encoder in fp32 with every input padded
    kept, ideal_eq6      fraction of the tokens in the last layer; ideal speed-up
    """
    tokens: dict[str, dict[int, tuple]] = {c.name: {} for c in candidates}

    def observe(number: int, name: str, item: int, output: Any) -> None:
        if output.aux is not None:
            given, left = batches[item].num_tokens, output.aux.tokens.double()
            tokens[name][item] = given, left[:, :-1].mean(1).sum().item(), left[:, -1].sum().item()

    def process(candidate: Candidate) -> Callable[[int], Any]:
        prepared = [candidate.prepare(batch) for batch in batches]
        return lambda item: candidate(prepared[item])

    timings = interleave(
        {c.name: process(c) for c in candidates},
        range(len(batches)),
        rounds,
        seconds,
        items_per_round=items_per_round,
        repeat=True,
        observe=observe,
        **options,
    )
    questions = sum(map(len, batches)) / len(batches) * (items_per_round or len(batches))
    padded = next((c.name for c in candidates if c.reader.startswith("padded to")), None)
    rows = []
    for candidate in candidates:
        name, base = candidate.name, f"{FULL}, {candidate.dtype}"
        base = base if base in tokens else f"{FULL}, fp32"
        row = {"reader": candidate.reader, "dtype": candidate.dtype, "rounds": timings.rounds}
        row |= columns("seconds", [s / questions for s in timings.seconds[name]])
        row |= columns("speedup", timings.speedups(name, base))
        row |= columns("speedup_over_padded", timings.speedups(name, padded) if padded else [])
        row |= {"kept": None, "ideal_eq6": None}
        if tokens[name]:
            given, processed, last = map(sum, zip(*tokens[name].values(), strict=True))
            row |= {"kept": last / given, "ideal_eq6": given / processed}
        rows.append(row)
    return rows


# --- answering ------------------------------------------------------------------------------------


def time_answering(
    answerers: Mapping[str, "QuestionAnswerer"],
    data: Dataset,
    rounds: int = 3,
    progress: Progress | None = None,
) -> list[dict]:
    """Answering whole questions: tokenisation, encoder, decoding. A row for each answerer:

    reader, precision, questions_per_second, speedup (over the first answerer), exact_match, f1,
    token_fraction
    """
    from qalib.metrics import score

    predictions: dict = {}
    timings = interleave(
        {name: answerer.predict for name, answerer in answerers.items()},
        [data.examples],
        rounds,
        observe=lambda number, name, item, found: predictions.update({name: found}),
        progress=progress,
    )
    first, rows = next(iter(answerers)), []
    for name, found in predictions.items():
        texts = {e.id: p.candidates[0].text for e, p in zip(data, found, strict=True)}
        scores = score(data, texts)
        row = {"reader": name, "precision": answerers[name].precision}
        row |= columns("questions_per_second", timings.rates(name, [len(data)] * timings.rounds))
        row |= columns("speedup", timings.speedups(name, first))
        row |= {"exact_match": scores["exact_match"], "f1": scores["f1"]}
        rows.append(row | {"token_fraction": float(np.mean([p.token_fraction for p in found]))})
    return rows
