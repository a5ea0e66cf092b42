"""Stages of notebook 00: train an encoder reader, and score any reader on a test set."""

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
from qalib.training import TrainConfig, encoder_task, make_accelerator, train_and_score

if TYPE_CHECKING:
    from qalib.inference import AnswerConfig, QuestionAnswerer
    from qalib.models.encoder import EncoderReader

ANSWERERS = {  # what makes an answerer of a run, f(run, settings), by the stage of the run
    "train-encoder": "baseline.encoder_answerer",
    "train-bytes": "bytes.byte_answerer",
    "train-skim": "block_skim.skim_answerer",
    "train-words": "distillation.word_answerer",
    "train-student": "distillation.word_answerer",
    "student-encoder": "distillation.word_answerer",
    "student-bytes": "distillation.word_answerer",
}


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
    """Train an encoder reader on ``data``; writes log.jsonl and weights.safetensors.

    After every epoch EM and F1 are logged on the held-out passages and on ``watch``; neither
    stops the training.
    """
    from qalib.checkpoints import save_weights, trained_tensors
    from qalib.models.encoder import build_encoder

    reader = build_encoder(config.encoder, config.seed)
    rest, held = hold_out(data, config.held_out) if config.held_out else (data, None)
    task, _ = encoder_task(reader, rest.examples, config.windows, config.loss)
    summary = train_and_score(
        reader,
        task,
        config.train,
        work,
        config.windows,
        {"held_out": held, "watch": watch},
        config.seed,
    )
    if make_accelerator().is_main_process:
        save_weights(trained_tensors(reader), work / "weights.safetensors")
    return {"questions": len(rest), **summary}


def profile_encoder(study: Study) -> Run:
    """The encoder reader of the study's profile, trained as notebook 00 does it."""
    config = replace(study.config("encoder", EncoderTraining), seed=study.seed)
    watch = make_dataset("every fifth", study.data("test").examples[::5])
    return study.run(train_encoder, config, data=study.data("train"), watch=watch)


def load_encoder_reader(run: Run) -> "EncoderReader":
    """The reader of a ``train-encoder`` run."""
    from qalib.checkpoints import load_weights, put_weights
    from qalib.models.encoder import build_encoder

    config, weights = run.settings(EncoderTraining), run.file("weights.safetensors")
    reader = build_encoder(config.encoder, config.seed)
    put_weights(reader, load_weights(weights), str(weights))
    return reader


def encoder_answerer(run: Run, settings: "AnswerConfig") -> "QuestionAnswerer":
    """A ``train-encoder`` run, ready to answer questions."""
    from qalib.inference import QuestionAnswerer

    return QuestionAnswerer(load_encoder_reader(run), settings)


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

    ``weights``: the run that trained the reader, or a list of them for an ensemble;
    ``checkpoint``: the hash of the published reader; with neither it is the lexical baseline.
    ``skimmer``: the hash of the published skimmer, with which the published reader then answers.
    Writes predictions.json, scores.safetensors (see :func:`recorded_scores`) and ranks.json (the
    rank of the first correct answer to every question, 0 if it is not among five).

    Raises QalibError if ``test`` is only the content hash of a data set: such runs are recorded.
    """
    from safetensors.numpy import save_file

    from qalib.metrics import correct_ranks, question_scores, score

    if isinstance(test, str):
        raise QalibError(
            f"the data set {test[:12]} is not part of the kit; its results exist as records only."
        )
    begin = time.perf_counter()
    ranked, fraction = _answers(config, test, weights, checkpoint, skimmer)
    seconds = time.perf_counter() - begin
    predictions = {id: texts[0] for id, texts in ranked.items()}
    (work / "predictions.json").write_text(json.dumps(predictions, ensure_ascii=False))
    exact, overlap = question_scores(test, predictions)
    scores = {"EM": exact.astype(bool), "F1": overlap.astype(np.float32)}
    save_file(scores, work / "scores.safetensors")
    metrics = {**score(test, predictions), "token_fraction": fraction, "questions": len(test)}
    if getattr(config.settings, "n_best_size", 1) > 1:
        ranks = correct_ranks(test, ranked)
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
    from qalib.inference import QuestionAnswerer
    from qalib.metrics import normalize_answer
    from qalib.models.lexical import lexical_answers

    if weights:
        answerer = answerer_of(weights, config.settings)
    elif skimmer:
        from qalib.skim.reader import load_skim_answerer

        answerer = load_skim_answerer(config=config.settings)
    elif checkpoint:
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
            distinct.setdefault(normalize_answer(candidate.text), candidate.text)
        ranked[example.id] = list(distinct.values())[:5]
    return ranked, float(np.mean([prediction.token_fraction for prediction in predictions]))


def answerer_of(weights: Run | Sequence[Run], settings: Any):
    """What answers questions with the reader of a run, or with an ensemble of several."""
    first = weights if isinstance(weights, Run) else weights[0]
    module, function = ANSWERERS[first.stage].split(".")
    module = importlib.import_module(f"qalib.study.stages.{module}")
    return getattr(module, function)(weights, settings)


def recorded_scores(run: Run) -> dict[str, np.ndarray]:
    """EM and F1 of every question of an ``evaluate`` run, 0 to 100, in the order of the test set.

    -> {"EM": (questions,), "F1": (questions,)} float64
    """
    from safetensors.numpy import load_file

    scores = load_file(run.file("scores.safetensors"))
    return {name: 100 * scores[name].astype(np.float64) for name in ("EM", "F1")}
