"""The stage of notebooks 01 to 03: train a byte-level reader, from scratch or from a run."""

import math
import statistics
from collections.abc import Callable
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from qalib.data.bytes import ByteBatch, ByteConfig, QuestionRows, passage_features
from qalib.data.schema import Dataset, Example, hold_out
from qalib.errors import QalibError
from qalib.inference import ByteAnswerConfig, ByteQuestionAnswerer, choose_device
from qalib.losses import gaussian_span_loss
from qalib.metrics import question_scores
from qalib.models import byte_reader
from qalib.models.lexical import STOP_WORD, WORD
from qalib.settings import settings
from qalib.study.run_cache import Run, stage
from qalib.study.session import Study
from qalib.study.stages.baseline import put_trained, save_trained
from qalib.training import TrainConfig, TrainingTask, make_optimizer, train

Count = Annotated[int, Field(ge=1)]
DISTANCES = {"0-25": 25, "25-50": 50, "50-100": 100, "100-200": 200, ">200": math.inf}
VARIANTS: dict[str, dict] = {  # the settings in which each differs from plain
    "plain": {},
    "dense": {"encoder": "dense", "mixer": "dense"},
    "dense, plain": {"encoder": "dense"},
    "plain, dense": {"mixer": "dense"},
    "dilated": {"encoder": "dilated", "mixer": "dilated"},
    "recurrent": {"encoder": "lstm", "mixer": "lstm"},
    "plain, recurrent": {"mixer": "lstm"},
    "dense, recurrent": {"encoder": "dense", "mixer": "lstm"},
}
OPTIONS: dict[str, dict] = {  # appended to the name of a variant after a colon
    "first keys": {"keys": "first"},
    "valid": {"convolutions": "valid"},
    "positions": {"positions": "sin"},
    "independent keys": {"key_init_scale": 0.0},
}


# --- settings -------------------------------------------------------------------------------------


@settings
class ByteTraining:
    """Everything that the weights of a byte-level reader depend on, besides the data.

    A batch is ``batch_size`` questions; ``train.tokens_per_batch`` is not used.
    """

    reader: byte_reader.ByteReaderConfig = field(default_factory=byte_reader.ByteReaderConfig)
    text: ByteConfig = field(default_factory=ByteConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    batch_size: Count = 64
    optimizer: Literal["adam", "sgd"] = "adam"  # sgd: with Nesterov momentum
    momentum: Annotated[float, Field(gt=0, lt=1)] = 0.9  # of sgd
    sigma: Annotated[float, Field(ge=0)] = 2.0  # of the Gaussian targets, in positions
    answers: Literal["min", "mean"] = "min"  # the loss over several gold answers
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0  # fraction of the passages
    seed: int = 0


@settings
class ByteStudy:
    """What notebooks 01 to 03 train: several readers in one set-up, with one or more seeds."""

    base: ByteTraining = field(default_factory=ByteTraining)  # of the plain convolutional reader
    rates: tuple[float, ...] = (1e-3,)  # learning rates tried for each reader
    seeds: Count = 1
    several: tuple[str, ...] = ("plain", "dense")  # variants trained with ``more_seeds`` seeds
    more_seeds: Count = 1
    variants: tuple[str, ...] = ("plain", "dense", "dilated", "recurrent", "plain, recurrent")
    recurrent: str = "recurrent"  # the variant that is compared with plain
    page: str = "recurrent"  # the one compared with the byte-level page's recurrent reader
    sweep_steps: int = 0  # training steps per rate tried; 0 = those of ``base``
    finetune_steps: Count = 1  # with sigma 0, before a reader is evaluated
    finetune_rate: float = 1e-3
    gradient_batches: Count = 4

    def seeds_of(self, name: str) -> int:
        """The number of seeds with which a variant is trained."""
        return self.more_seeds if name in self.several else self.seeds


# --- training -------------------------------------------------------------------------------------


@stage("train-bytes")
def train_bytes(config: ByteTraining, work: Path, data: Dataset, start: Run | None = None) -> dict:
    """Train a byte-level reader on ``data``, from random weights or those of the run ``start``.

    Writes log.jsonl and weights.safetensors. With ``held_out``, log and metrics include the scores
    on the held-out passages, see :func:`held_out_scores`.
    """
    rest, held = hold_out(data, config.held_out) if config.held_out else (data, None)
    reader = byte_reader.build_byte_reader(config.reader, config.seed)
    if start is not None:
        put_trained(reader, start)
    task, optimizer = byte_task(rest, config), byte_optimizer(reader, config)
    score = held_out_scores(reader, held, config) if held else None
    summary = train(
        reader, task, config.train, work, config.seed, after_epoch=score, optimizer=optimizer
    )
    counts = {"questions": len(task.lengths), "parameters": save_trained(reader, work)}
    return {**counts, **summary, **(score() if score else {})}


def held_out_scores(
    reader: byte_reader.ByteReader, held: Dataset, config: ByteTraining
) -> Callable[..., dict[str, float]]:
    """A function that computes loss, EM, F1, and EM by :func:`distance_bin` on ``held``."""
    task = byte_task(held, config)
    bins = np.array([distance_bin(example) for example in held])
    decoding = ByteAnswerConfig(text=config.text, precision=config.train.precision)

    @torch.no_grad()
    def scores(epoch: int = 0) -> dict[str, float]:
        answerer = ByteQuestionAnswerer(reader, decoding)  # sets evaluation mode
        exact, overlap = question_scores(held, answerer.predictions(held.examples))
        batches = [task.collate(rows).to(answerer.device) for rows in task.batches(0, 0)]
        loss = sum(task.loss(reader(batch), batch).sum().item() for batch in batches)
        found = {"loss": loss / len(held)}
        found |= {"exact_match": 100 * exact.mean(), "f1": 100 * overlap.mean()}
        for name in (*DISTANCES, "none"):
            if (bins == name).any():
                found[f"em_{name}"] = 100 * exact[bins == name].mean()
        return {f"held_out_{name}": float(value) for name, value in found.items()}

    return scores


def distance_bin(example: Example) -> str:
    """The bin of ``DISTANCES`` for a question, "none" if the passage has none of its words.

    The distance is the median, over the question's content words that the passage has outside the
    first answer, of the number of characters from that answer to the word's nearest occurrence.
    """
    if not example.answers:
        return "none"
    answer = example.answers[0]
    asked = {m[0].lower() for m in WORD.finditer(example.question)}
    nearest: dict[str, int] = {}
    for match in WORD.finditer(example.context):
        word = match[0].lower()
        gap = max(match.start() - answer.end, answer.start - match.end())
        if word in asked and gap >= 0 and word[0].isalnum() and not STOP_WORD.fullmatch(word):
            nearest[word] = min(gap, nearest.get(word, gap))
    far = statistics.median(nearest.values()) if nearest else math.nan
    return next((name for name, edge in DISTANCES.items() if far < edge), "none")


def variant(base: ByteTraining, name: str, size: float = 1.0) -> ByteTraining:
    """Training of a variant, such as "dense: valid", with ``size`` times the base's parameters.

    Raises QalibError for an unknown name.
    """
    kind, _, option = name.partition(": ")
    if kind not in VARIANTS or option not in ("", *OPTIONS):
        raise QalibError(f"no byte-level reader is called {name!r}; see VARIANTS and OPTIONS.")
    reader = replace(base.reader, **VARIANTS[kind], **OPTIONS.get(option, {}))
    wanted = round(size * byte_reader.count_parameters(base.reader))
    return replace(base, reader=byte_reader.match_width(reader, wanted))


def at_best_rate(study: Study, setup: ByteStudy, plan: ByteTraining, data: Dataset) -> ByteTraining:
    """The plan with the learning rate whose short training has the lowest held-out loss."""
    plans = [replace(plan, train=replace(plan.train, learning_rate=r)) for r in setup.rates]
    if len(plans) == 1:
        return plans[0]
    steps = setup.sweep_steps or plan.train.max_steps
    short = [replace(plan, train=replace(plan.train, max_steps=steps)) for plan in plans]
    losses = [study.run(train_bytes, s, data=data).metrics["held_out_loss"] for s in short]
    return plans[int(np.argmin(losses))]


def byte_task(data: Dataset, config: ByteTraining) -> TrainingTask:
    """Training on Gaussian targets for start and end, in batches of ``batch_size`` questions."""
    rows = QuestionRows(passage_features(data.examples, config.text))

    def loss(output, batch: ByteBatch) -> Tensor:
        gold = batch.answer_spans, batch.answer_weights
        return gaussian_span_loss(output, *gold, config.sigma, config.answers)

    def batches(seed: int, epoch: int) -> list[list[int]]:
        return rows.batches(config.batch_size, seed, epoch)

    return TrainingTask(rows.lengths, rows.collate, loss, batches)


def byte_optimizer(reader: byte_reader.ByteReader, config: ByteTraining) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum as for the final model of the byte-level page."""
    if config.optimizer == "adam":
        return make_optimizer(reader, config.train)
    return torch.optim.SGD(
        reader.parameters(),
        lr=config.train.learning_rate,
        momentum=config.momentum,
        nesterov=True,
        weight_decay=config.train.weight_decay,
    )


def load_byte_reader(run: Run) -> byte_reader.ByteReader:
    """The reader of a ``train-bytes`` run, in evaluation mode."""
    return put_trained(byte_reader.build_byte_reader(run.settings(ByteTraining).reader), run).eval()


def byte_answerer(run: Run, config: ByteAnswerConfig) -> ByteQuestionAnswerer:
    """The answerer of a ``train-bytes`` run."""
    return ByteQuestionAnswerer(load_byte_reader(run).to(choose_device()), config)
