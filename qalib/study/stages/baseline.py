"""Stages of notebook 00: train an encoder reader, and score any reader on a test set.

``evaluate`` scores the readers of all stage modules; each of these has a function
``load_answerer(weights, settings)`` for the runs that it trains.
"""

import importlib
import json
import time
from collections.abc import Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from qalib.data.schema import Dataset, hold_out, make_dataset
from qalib.data.windows import WindowConfig
from qalib.errors import QalibError
from qalib.models.encoder import EncoderConfig
from qalib.settings import settings
from qalib.study.run_cache import Run, stage
from qalib.study.session import Study
from qalib.training import TrainConfig

if TYPE_CHECKING:
    from qalib.inference import AnswerConfig, QuestionAnswerer
    from qalib.models.encoder import EncoderReader

TOPICS = {  # the stage module that loads the reader of a run, by the run's stage
    "train-encoder": "baseline",
    "train-bytes": "bytes",
    "train-skim": "block_skim",
    "train-words": "distillation",
    "train-student": "distillation",
    "student-encoder": "distillation",
    "student-bytes": "distillation",
}


# --- training --------------------------------------------------------------------------------


@settings
class EncoderTraining:
    """Everything that the weights of an encoder reader depend on, besides the data."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    windows: WindowConfig = field(default_factory=WindowConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    loss: Literal["mean", "marginal", "min"] = "mean"  # over several gold answers
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of the passages
    seed: int = 0


@stage("train-encoder")
def train_encoder(
    config: EncoderTraining, work: Path, data: Dataset, watch: Dataset | None = None
) -> dict:
    """Train an encoder reader on ``data``.

    After every epoch EM and F1 are logged on the held-out passages and on ``watch``; neither
    stops the training. Writes log.jsonl and weights.safetensors (the trained tensors).
    """
    from accelerate import Accelerator

    from qalib.checkpoints import save_weights, trained_tensors
    from qalib.data.batching import collate
    from qalib.data.windows import make_windows, training_windows
    from qalib.losses import span_loss
    from qalib.models.encoder import build_encoder
    from qalib.training import TrainingTask, train

    reader = build_encoder(config.encoder, config.seed)
    rest, held = hold_out(data, config.held_out) if config.held_out else (data, None)
    windows = training_windows(make_windows(rest.examples, reader.tokenizer, config.windows))
    pad = reader.tokenizer.pad_token_id or 0
    task = TrainingTask(
        lengths=[len(window) for window in windows],
        collate=lambda rows: collate([windows[i] for i in rows], pad, config.windows.null),
        loss=lambda output, batch: span_loss(
            output, batch.answer_spans, batch.answer_weights, config.loss
        ),
    )

    def after_epoch(epoch: int) -> dict:
        return {
            f"{name}_{metric}": value
            for name, dataset in {"held_out": held, "watch": watch}.items()
            if dataset
            for metric, value in reader_scores(reader, dataset, config.windows).items()
        }

    summary = train(reader, task, config.train, work, config.seed, after_epoch=after_epoch)
    if Accelerator(mixed_precision="no").is_main_process:
        save_weights(trained_tensors(reader), work / "weights.safetensors")
    return {"questions": len(rest), "windows": len(windows), **summary, **_last_scores(work)}


def _last_scores(work: Path) -> dict:
    """What was measured after the last epoch, possibly before the training was resumed."""
    lines = (work / "log.jsonl").read_text(encoding="utf-8").splitlines()
    epochs = [line for line in map(json.loads, lines) if "step" not in line]
    return {name: value for name, value in epochs[-1].items() if name != "epoch"} if epochs else {}


def reader_scores(reader: "EncoderReader", dataset: Dataset, windows: WindowConfig) -> dict:
    """EM and F1 of an encoder reader in memory."""
    from qalib.inference import AnswerConfig, QuestionAnswerer
    from qalib.metrics import score

    answerer = QuestionAnswerer(reader, AnswerConfig(windows=windows))
    return score(dataset, answerer.predictions(dataset.examples))


def profile_encoder(study: Study) -> Run:
    """The encoder reader of the study's profile, trained as notebook 00 does it."""
    config = replace(study.config("encoder", EncoderTraining), seed=study.seed)
    watch = every_fifth(study.data("test"))
    return study.run(train_encoder, config, data=study.data("train"), watch=watch)


def every_fifth(dataset: Dataset) -> Dataset:
    """Every fifth question, scored after each epoch to show the progress of a training."""
    return make_dataset(f"{dataset.name}-5", dataset.examples[::5], dataset.path)


def load_reader(run: Run) -> "EncoderReader":
    """The reader of a ``train-encoder`` run."""
    from qalib.checkpoints import load_weights, put_weights
    from qalib.models.encoder import build_encoder

    config, weights = run.settings(EncoderTraining), run.file("weights.safetensors")
    reader = build_encoder(config.encoder, config.seed)
    put_weights(reader, load_weights(weights), str(weights))
    return reader


def load_answerer(run: Run, settings: "AnswerConfig") -> "QuestionAnswerer":
    """A ``train-encoder`` run, ready to answer questions."""
    from qalib.inference import QuestionAnswerer

    return QuestionAnswerer(load_reader(run), settings)


# --- scoring ---------------------------------------------------------------------------------


@settings
class Evaluation:
    """``reader``: label of the reader in the records; ``settings``: how it decodes answers."""

    reader: str
    settings: Any = None  # AnswerConfig, ByteAnswerConfig or those of a stage module


@stage("evaluate", publish=("scores.safetensors", "ranks.json"))
def evaluate(
    config: Evaluation,
    work: Path,
    test: Dataset,
    weights: Run | Sequence[Run] | None = None,
    checkpoint: str | None = None,
) -> dict:
    """Score a reader on ``test``: EM, F1 and, if it gives several answers, p@1 to p@5.

    ``weights`` is the run that trained the reader, or a list of them for an ensemble;
    ``checkpoint`` the hash of the published one; with neither, ``config.reader`` names a baseline
    without weights. Writes predictions.json, scores.safetensors (see :func:`question_scores`) and
    ranks.json (rank of the right answer of every question, 0 if not among the first five).
    """
    from qalib.metrics import correct_ranks, precision_at_n, score

    begin = time.perf_counter()
    ranked, fraction = _answers(config, test, weights, checkpoint)
    seconds = time.perf_counter() - begin
    predictions = {id: texts[0] for id, texts in ranked.items()}
    (work / "predictions.json").write_text(json.dumps(predictions, ensure_ascii=False))
    metrics = {**score(test, predictions), "token_fraction": fraction}
    if getattr(config.settings, "n_best_size", 1) > 1:
        for n, share in enumerate(precision_at_n(test, ranked), start=1):
            metrics[f"p@{n}"] = 100 * share
        (work / "ranks.json").write_text(json.dumps(correct_ranks(test, ranked).tolist()))
    exact, overlap = write_scores(work / "scores.safetensors", test, predictions)
    metrics |= {"exact_match": 100 * float(exact.mean()), "f1": 100 * float(overlap.mean())}
    rate = {"seconds": round(seconds, 2), "questions_per_second": len(test) / seconds}
    return {**metrics, "questions": len(test), **rate}


def _answers(
    config: Evaluation, test: Dataset, weights: Run | Sequence[Run] | None, checkpoint: str | None
) -> tuple[dict[str, list[str]], float]:
    """Up to five distinct answers to every question, best first, and the mean token fraction."""
    from qalib.inference import QuestionAnswerer
    from qalib.metrics import normalize_answer
    from qalib.models.lexical import lexical_answers

    if not weights and not checkpoint:
        if config.reader != "lexical":
            raise QalibError(
                f"the reader {config.reader!r} needs weights: the run that trained it."
            )
        return {id: [text] for id, text in lexical_answers(test).items()}, 1.0
    if checkpoint:
        answerer = QuestionAnswerer.load(config=config.settings)
    else:
        answerer = answerer_of(weights, config.settings)
    predictions = answerer.predict(test.examples)
    ranked = {}
    for example, prediction in zip(test.examples, predictions, strict=True):
        distinct: dict[str, str] = {}
        for candidate in prediction.candidates:
            distinct.setdefault(normalize_answer(candidate.text), candidate.text)
        ranked[example.id] = list(distinct.values())[:5]
    return ranked, float(np.mean([prediction.token_fraction for prediction in predictions]))


def answerer_of(weights: Run | Sequence[Run], settings: Any):
    """What answers questions with the reader of a run, or with an ensemble of several."""
    first = weights if isinstance(weights, Run) else weights[0]
    module = importlib.import_module(f"qalib.study.stages.{TOPICS[first.stage]}")
    return module.load_answerer(weights, settings)


def write_scores(path: Path, test: Dataset, predictions: dict[str, str]) -> np.ndarray:
    """Save EM and F1 of every base question and return them.  (2, questions), 0 to 1

    A data set with adversarial variants has one score per base question, by the rule of the
    published sets.
    """
    from safetensors.numpy import save_file

    from qalib.metrics import adversarial_question_scores
    from qalib.metrics import question_scores as plain_scores

    variants = any("-high-conf" in example.id for example in test.examples)
    rule = adversarial_question_scores if variants else plain_scores
    exact, overlap = rule(test, predictions)
    save_file({"EM": exact.astype(bool), "F1": overlap.astype(np.float32)}, path)
    return np.stack([exact, overlap])


def question_scores(run: Run) -> dict[str, np.ndarray]:
    """EM and F1 of every base question, 0 to 100, in the order of the test set.

    -> {"EM": (questions,), "F1": (questions,)} float64
    """
    from safetensors.numpy import load_file

    scores = load_file(run.file("scores.safetensors"))
    return {name: 100 * scores[name].astype(np.float64) for name in ("EM", "F1")}
