"""Stages of notebook 00: train an encoder reader, and score any reader on a test set."""

import importlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from safetensors.numpy import load_file, save_file
from torch import nn

from qalib import metrics as answer_metrics
from qalib.checkpoints import load_weights, put_weights, save_weights, trained_tensors
from qalib.data.schema import Dataset, hold_out
from qalib.data.windows import WindowConfig
from qalib.distill.alignment import token_spans
from qalib.distill.encoders import align_layers, distilled_task, keep_layers
from qalib.distill.teacher_cache import TeacherTargets
from qalib.errors import QalibError
from qalib.inference import AnswerConfig, QuestionAnswerer
from qalib.losses import DistillConfig
from qalib.models.encoder import EncoderConfig, EncoderReader, build_encoder
from qalib.models.lexical import lexical_answers
from qalib.models.pretrained import check_published, merge_low_rank, train_low_rank
from qalib.settings import settings
from qalib.skim.reader import load_skim_answerer
from qalib.study.run_cache import Run, stage
from qalib.training import TrainConfig, encoder_task, make_accelerator, train_and_score

WEIGHTS = "weights.safetensors"
ANSWERERS = {  # by stage of a run: the function f(run, settings) that makes its answerer
    "train-encoder": "baseline.encoder_answerer",
    "train-adapter": "baseline.encoder_answerer",
    "train-bytes": "bytes.byte_answerer",
    "train-skim": "block_skim.skim_answerer",
    "train-words": "distillation.word_answerer",
    "train-student": "distillation.word_answerer",
}


@settings
class EncoderTraining:
    """Everything that the weights of an encoder reader depend on, besides the data."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    windows: WindowConfig = field(default_factory=WindowConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    loss: Literal["mean", "min"] = "mean"  # over several gold answers
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of the passages
    seed: int = 0


@stage("train-encoder")
def train_encoder(
    config: EncoderTraining, work: Path, data: Dataset, watch: Dataset | None = None
) -> dict:
    """Train an encoder reader on ``data``; writes log.jsonl and weights.safetensors.

    After every epoch, EM and F1 on the held-out passages and on ``watch`` are logged; there is no
    early stopping.
    """
    return _train(build_encoder(config.encoder, config.seed), config, work, data, watch)


@settings
class AdapterTraining:
    """Training of an encoder by updates W + B A of rank ``rank`` (LoRA), stored in fp16.

    ``layers``: those to keep, counted from 1; () = all. ``loss``: used with the input ``cache``.
    """

    base: EncoderTraining = field(default_factory=EncoderTraining)
    rank: Annotated[int, Field(ge=1)] = 64
    layers: tuple[int, ...] = ()
    heads: Literal[0] = 0  # all; kept because recorded settings have it
    loss: DistillConfig | None = None


@stage("train-adapter")
def train_adapter(
    config: AdapterTraining,
    work: Path,
    data: Dataset,
    watch: Dataset | None = None,
    cache: Run | None = None,
) -> dict:
    """As :func:`train_encoder` with low-rank updates; ``cache``: teacher outputs to distil from.

    Biases, norms, positions and the span head are trained in full, word embeddings are not.
    """

    def taught(task, windows, examples):
        spans = token_spans(windows, examples, reader.before)
        targets = TeacherTargets([cache.file("teacher-0/start.npy").parent])
        return distilled_task(task, spans, targets, config.loss)

    reader, taught = low_rank_reader(config), taught if cache else None
    if config.loss and config.loss.attention_weight:
        align_layers(reader)
    return _train(reader, config.base, work, data, watch, taught, torch.float16)


def low_rank_reader(config: AdapterTraining) -> EncoderReader:
    """The reader before training; its low-rank updates are zero."""
    reader = build_encoder(config.base.encoder, config.base.seed)
    if config.layers:
        keep_layers(reader.encoder, config.layers)
    train_low_rank(reader.encoder, config.rank)
    return reader


def _train(
    reader: EncoderReader,
    config: EncoderTraining,
    work: Path,
    data: Dataset,
    watch: Dataset | None,
    taught: Callable | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict:
    """Train a reader, and write its trained tensors in ``dtype``."""
    rest, held = hold_out(data, config.held_out) if config.held_out else (data, None)
    task, windows = encoder_task(reader, rest.examples, config.windows, config.loss)
    if taught is not None:
        task = taught(task, windows, rest.examples)
    scored = {"held_out": held, "watch": watch}
    summary = train_and_score(reader, task, config.train, work, config.windows, scored, config.seed)
    parameters = save_trained(reader, work, dtype)
    return {"questions": len(rest), "parameters": parameters, **summary}


def save_trained(model: nn.Module, work: Path, dtype: torch.dtype = torch.float32) -> int:
    """Write trained tensors and buffers to weights.safetensors.  -> number of trained parameters"""
    if make_accelerator().is_main_process:
        found = trained_tensors(model).items()
        tensors = {n: t.to(dtype) if t.is_floating_point() else t for n, t in found}
        save_weights(tensors, work / WEIGHTS)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def put_trained(model: nn.Module, run: Run) -> nn.Module:
    """``model`` with the tensors that a run has trained, copied in place."""
    path = run.file(WEIGHTS)
    put_weights(model, load_weights(path), str(path))
    return model


def encoder_training(run: Run) -> EncoderTraining:
    """The training settings of the reader of a ``train-encoder`` or ``train-adapter`` run."""
    if run.stage == "train-adapter":
        return run.settings(AdapterTraining).base
    return run.settings(EncoderTraining)


def load_encoder_reader(run: Run) -> EncoderReader:
    """The reader of a ``train-encoder`` or ``train-adapter`` run, low-rank updates merged."""
    if run.stage == "train-adapter":
        reader = put_trained(low_rank_reader(run.settings(AdapterTraining)), run)
        merge_low_rank(reader.encoder)
        return reader
    config = run.settings(EncoderTraining)
    return put_trained(build_encoder(config.encoder, config.seed), run)


def encoder_answerer(run: Run, settings: AnswerConfig) -> QuestionAnswerer:
    """The answerer of a ``train-encoder`` or ``train-adapter`` run."""
    return QuestionAnswerer(load_encoder_reader(run).to(make_accelerator().device), settings)


@settings
class Evaluation:
    """``reader``: label of the reader in the records; ``settings``: how it decodes answers."""

    reader: str
    settings: Any = None  # AnswerConfig, ByteAnswerConfig or those of a stage module


@stage("evaluate", publish=("scores.safetensors", "ranks.json"))
def evaluate(
    config: Evaluation,
    work: Path,
    test: Dataset | str,
    weights: Run | Sequence[Run] | None = None,
    checkpoint: str | None = None,
    skimmer: str | None = None,
) -> dict:
    """Score a reader on ``test``: EM, F1 and, if it gives several answers, p@1 to p@5.

    ``weights``: the run that trained the reader, or a list of runs for an ensemble; ``checkpoint``:
    the hash of the published reader; ``skimmer``: the hash of the published skimmer, with which the
    published reader then answers; with none, the reader "lexical" is the lexical baseline. AddSent
    and AddOneSent are scored by their own rule, once for each original question. Writes
    predictions.json, scores.safetensors (see :func:`recorded_scores`) and, with several answers,
    ranks.json (the rank of the first correct answer to every question, 0 if not among five).
    Raises QalibError if ``test`` is only the content hash of a data set: such runs exist as records
    only.
    """
    if isinstance(test, str):
        raise QalibError(
            f"the data set {test[:12]} is not part of the kit; its results exist as records only."
        )
    begin = time.perf_counter()
    ranked, fraction = _answers(config, test, weights, checkpoint, skimmer)
    seconds = time.perf_counter() - begin
    predictions = {id: texts[0] for id, texts in ranked.items()}
    (work / "predictions.json").write_text(json.dumps(predictions), encoding="ascii")
    exact, overlap = answer_metrics.question_scores(test, predictions)
    metrics = answer_metrics.score(test, predictions)
    exact, overlap = answer_metrics.adversarial_scores(test, exact, overlap)
    if len(exact) < len(test):  # one score for each original question
        metrics = {"exact_match": 100 * exact.mean(), "f1": 100 * overlap.mean()}
    scores = {"EM": exact.astype(bool), "F1": overlap.astype(np.float32)}
    save_file(scores, work / "scores.safetensors")
    metrics |= {"token_fraction": fraction, "questions": len(exact)}
    decoding = getattr(config.settings, "answer", config.settings)
    if getattr(decoding, "n_best_size", 1) > 1:
        ranks = answer_metrics.correct_ranks(test, ranked)
        metrics |= {f"p@{n}": 100 * (ranks == n).mean() for n in range(1, 6)}
        (work / "ranks.json").write_text(json.dumps(ranks.tolist()))
    rate = len(test) / seconds
    return {**metrics, "seconds": round(seconds, 2), "questions_per_second": rate}


def _answers(
    config: Evaluation,
    test: Dataset,
    weights: Run | Sequence[Run] | None,
    checkpoint: str | None,
    skimmer: str | None,
) -> tuple[dict[str, list[str]], float]:
    """Up to five distinct answers to every question, best first, and the mean token fraction."""
    if weights:
        answerer = answerer_of(weights, config.settings)
    elif skimmer:
        answerer = load_skim_answerer(config=config.settings)
    elif checkpoint:
        check_published(checkpoint)
        answerer = QuestionAnswerer.load(config=config.settings)
    elif config.reader == "lexical":
        return {id: [text] for id, text in lexical_answers(test).items()}, 1.0
    else:
        raise QalibError(f"the reader {config.reader!r} needs weights, the run of its training.")
    predictions = answerer.predict(test.examples)
    ranked = {}
    for example, prediction in zip(test.examples, predictions, strict=True):
        distinct: dict[str, str] = {}
        for candidate in prediction.candidates:
            distinct.setdefault(answer_metrics.normalize_answer(candidate.text), candidate.text)
        ranked[example.id] = list(distinct.values())[:5]
    return ranked, float(np.mean([prediction.token_fraction for prediction in predictions]))


def answerer_of(weights: Run | Sequence[Run], settings: Any):
    """The answerer of a run, or of the ensemble of several word-level runs."""
    first = weights if isinstance(weights, Run) else weights[0]
    module, function = ANSWERERS[first.stage].split(".")
    module = importlib.import_module(f"qalib.study.stages.{module}")
    return getattr(module, function)(weights, settings)


def recorded_scores(run: Run) -> dict[str, np.ndarray]:
    """EM and F1 of every question of an ``evaluate`` run, 0 to 100, in the order of the test set.

    -> {"EM": (questions,), "F1": (questions,)} float64
    """
    scores = load_file(run.file("scores.safetensors"))
    return {name: 100 * scores[name].astype(np.float64) for name in ("EM", "F1")}
