"""Benchmarks: training and pruned readers on this machine's CPU, and answering whole questions.

All time their candidates in turn (``qalib.timing``), so that speed-ups are ratios within a round.
``python -m qalib bench answer`` times answering; notebooks 06 and 10 run ``bench-readers``, 03 and
08 time training steps.

dtypes are "fp32"; "bf16", autocast, which rounds the weights in every pass; "bf16 weights", rounded
and laid out once; "int8", dynamically quantised linear layers. The *full encoder* is the same model
in the same dtype on unpadded inputs, without pruning.
"""

import copy
import io
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from qalib.data.batching import Batch, collate
from qalib.data.schema import Dataset
from qalib.data.windows import WindowConfig, make_windows
from qalib.errors import QalibError
from qalib.inference import QuestionAnswerer
from qalib.metrics import score
from qalib.models.bf16 import choose_precision, quantize, to_bf16
from qalib.models.encoder import EncoderReader, build_encoder
from qalib.settings import settings
from qalib.skim.baselines import OnnxReader, PaddedReader
from qalib.skim.calibration import block_predictions
from qalib.skim.reader import SkimReader
from qalib.skim.training import add_predictors
from qalib.study.run_cache import Run, stage
from qalib.study.stages.baseline import encoder_training, load_encoder_reader, put_trained
from qalib.study.stages.block_skim import Pruning, SkimTraining, load_skim_reader
from qalib.timing import Progress, columns, interleave
from qalib.training import TrainConfig, make_optimizer

Dtype = Literal["fp32", "bf16", "bf16 weights", "int8"]
Count = Annotated[int, Field(ge=1)]


def best_precision() -> str:
    """bf16 if it is faster on this processor, otherwise fp32."""
    return choose_precision("auto", "cpu")[0]


def in_dtypes(reader: EncoderReader, dtypes: Sequence[str]) -> dict[str, EncoderReader]:
    """A reader by dtype, converted where necessary; bf16 only on a processor with units for it."""
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
    reader: nn.Module, loss: Callable, precision: str, config: TrainConfig
) -> Callable[[Any], float]:
    """A function that takes one training step on a batch and returns the loss before it."""
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


# --- full, pruned and quantized readers -----------------------------------------------------------


@settings
class TimedReader:
    """One way to use a reader; without ``pruning`` it processes every token.

    ``kept``: prune at the threshold that keeps this share of the timed passages' tokens, instead
    of that of ``pruning``. Time depends on how many tokens are kept, and hardly on which.
    """

    name: str
    reader: int = 0  # its index among the input runs
    pruning: Pruning | None = None
    kept: float = 0.0


@settings
class ReaderBenchmark:
    """Which readers to time, in every dtype, on batches of windows of similar length.

    ``padded``: the first reader is also timed in fp32 with windows padded to this length. ``onnx``:
    indices of readers also timed in onnxruntime. ``untrained``: indices of readers timed with their
    encoder's weights before training, which takes as long; their pruning needs ``kept``.
    """

    timed: Annotated[tuple[TimedReader, ...], Field(min_length=1)]
    windows: WindowConfig = field(default_factory=WindowConfig)
    padded: int = 384
    onnx: tuple[int, ...] = ()
    untrained: tuple[int, ...] = ()
    batches: tuple[Count, ...] = (1, 16)
    dtypes: Annotated[tuple[Dtype, ...], Field(min_length=1)] = ("fp32", "bf16 weights", "int8")
    rounds: Count = 3


@dataclass(frozen=True)
class Candidate:
    """One way to process a batch; ``full`` names the unpruned reader, the speed-up's baseline."""

    reader: str
    dtype: str
    model: nn.Module
    full: str

    def __call__(self, batches: Mapping[str, Batch]) -> Any:
        """The timed forward pass on the batch of ``full``, which has this reader's token ids."""
        bf16 = self.dtype.startswith("bf16")
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return self.model(batches[self.full])


@stage("bench-readers", publish=())
def bench_readers(config: ReaderBenchmark, work: Path, data: Dataset, readers: list[Run]) -> dict:
    """Time every way to use the readers (``train-skim`` or ``train-adapter`` runs) on ``data``.

    The full encoder never prunes. For MPNet with predictors, which has no fused attention in
    transformers, it is the unpadded layer-by-layer pass of ``skim.packed``, which is faster. The
    rows are those of :func:`time_candidates`, with batch; ``megabytes`` by reader and dtype. Each
    reader gets its own tokenizer's windows. Raises QalibError if these are not equally many.
    """
    found, megabytes, inputs = [], {}, {}
    for number, run in enumerate(readers):
        model = _load(run, number in config.untrained)
        encoder_reader = getattr(model, "reader", model).eval()
        ways = [way for way in config.timed if way.reader == number]
        full = next(way.name for way in ways if not way.pruning)
        prunings = _prunings(model, run, ways, data)
        for dtype, reader in in_dtypes(encoder_reader, config.dtypes).items():
            torch.save(reader.encoder.state_dict(), stored := io.BytesIO())
            megabytes[f"{full}, {dtype}"] = round(stored.tell() / 1e6, 1)
            for name, pruning in prunings.items():
                way = _prunes(reader, model, pruning)
                found.append(Candidate(name, dtype, way.eval(), full))
        tokenizer = encoder_reader.tokenizer
        windows = sorted(make_windows(data.examples, tokenizer, config.windows), key=len)
        inputs[full] = windows, tokenizer.pad_token_id or 0
        if number == 0:
            padded, count = PaddedReader(encoder_reader, config.padded).eval(), len(windows)
            tokens = float(np.mean([len(window) for window in windows]))
            found.append(Candidate(f"{full}, padded to {config.padded}", "fp32", padded, full))
        for dtype in ("fp32", "int8") if number in config.onnx else ():
            onnx = OnnxReader(encoder_reader, work / f"scratch/{number}", int8=dtype == "int8")
            found.append(Candidate(f"{full}, onnxruntime", dtype, onnx, full))
        if len(windows) != count:
            raise QalibError(f"{full}: its windows of {data.name} are not as many as the first's.")
    rows = []
    for size in config.batches:
        batches = [
            {full: collate(windows[i : i + size], pad) for full, (windows, pad) in inputs.items()}
            for i in range(0, count, size)
        ]
        rows += [{"batch": size} | row for row in time_candidates(found, batches, config.rounds)]
    return {"rows": rows, "megabytes": megabytes, "inputs": count, "tokens": tokens}


def load_way(run: Run, timed: TimedReader, dtype: str) -> nn.Module | None:
    """The reader of a way in a dtype (``kept`` is ignored); None for bf16 without units for it."""
    model = _load(run)
    readers = in_dtypes(getattr(model, "reader", model).eval(), [dtype])
    return _prunes(readers[dtype], model, timed.pruning).eval() if readers else None


def _load(run: Run, untrained: bool = False) -> nn.Module:
    pruned = run.stage == "train-skim"
    if not untrained:
        return load_skim_reader(run) if pruned else load_encoder_reader(run)
    if not pruned:
        return build_encoder(encoder_training(run).encoder)
    config = run.settings(SkimTraining)
    return put_trained(add_predictors(build_encoder(config.encoder), config), run).eval()


def _prunings(
    model: SkimReader, run: Run, ways: list[TimedReader], data: Dataset
) -> dict[str, Pruning | None]:
    """The pruning of each way; with ``kept``, at the lowest threshold that keeps at most that."""
    prunings = {way.name: way.pruning for way in ways}
    matched = [way for way in ways if way.kept]
    if matched:
        blocks = block_predictions(model, data, run.settings(SkimTraining).windows, "fp32")
    for way in matched:
        (layer,) = way.pruning.prune_layers
        found = np.unique(blocks.scores[layer])
        fraction = partial(blocks.token_fraction, layer)
        place = bisect_left(found, -way.kept, key=lambda threshold: -fraction(threshold))
        threshold = float(found[min(place, len(found) - 1)])
        prunings[way.name] = replace(way.pruning, thresholds=(threshold,))
    return prunings


def _prunes(reader: EncoderReader, model: nn.Module, pruning: Pruning | None) -> nn.Module:
    """The reader with the skimmer of ``model`` set to ``pruning``; if None, the full encoder."""
    fused = reader.encoder.config.model_type != "mpnet"
    if not hasattr(model, "skimmer") or (not pruning and fused):
        return reader
    skimmer = copy.copy(model.skimmer)  # shares the weights
    skimmer.set_options(**asdict(pruning or Pruning()))
    return SkimReader(reader, skimmer)


def time_candidates(
    candidates: Sequence[Candidate], batches: Sequence[Mapping], rounds: int, **options: Any
) -> list[dict]:
    """Time candidates on the same questions; ``options`` as of ``interleave``. A row for each:

    reader, dtype, rounds
    seconds              per window (median; _low and _high are quartiles over rounds)
    speedup              over the same reader unpruned, in the same dtype
    speedup_over_padded  over the first reader in fp32 with every window padded
    kept, ideal_eq6      fraction of the tokens left after the last layer; Eq. 6 of Block-Skim
    """
    names = {c: f"{c.reader}, {c.dtype}" for c in candidates}
    tokens: dict[str, dict[int, tuple]] = {name: {} for name in names.values()}

    def observe(number: int, name: str, item: int, output: Any) -> None:
        if output.aux is not None:
            left = output.aux.tokens.double().sum(0)  # of each layer, then the last one's
            tokens[name][item] = left[0].item(), left[:-1].mean().item(), left[-1].item()

    timings = interleave(
        {name: lambda item, c=c: c(batches[item]) for c, name in names.items()},
        range(len(batches)),
        rounds,
        repeat=True,
        observe=observe,
        **options,
    )
    questions = sum(len(batch[candidates[0].full]) for batch in batches)
    padded = next((n for c, n in names.items() if "padded to" in c.reader), None)
    rows = []
    for candidate, name in names.items():
        base = f"{candidate.full}, {candidate.dtype}"
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
    answerers: Mapping[str, QuestionAnswerer],
    data: Dataset,
    rounds: int = 3,
    progress: Progress | None = None,
) -> list[dict]:
    """Time the answering of whole questions: tokenisation, encoder, decoding. A row per answerer:

    reader, precision, questions_per_second, speedup (over the first answerer), exact_match, f1,
    token_fraction
    """
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
        row |= {"exact_match": scores.get("exact_match", scores.get("exact")), "f1": scores["f1"]}
        rows.append(row | {"token_fraction": float(np.mean([p.token_fraction for p in found]))})
    return rows
