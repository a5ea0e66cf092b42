"""The stage of notebooks 01 to 03: train a byte-level reader, from random weights or a run's."""

from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from qalib.checkpoints import load_weights, put_weights, save_weights, trained_tensors
from qalib.data.bytes import ByteBatch, ByteConfig, QuestionRows, passage_features
from qalib.data.schema import Dataset, hold_out
from qalib.errors import QalibError
from qalib.inference import ByteAnswerConfig, ByteQuestionAnswerer
from qalib.losses import gaussian_span_loss
from qalib.metrics import score
from qalib.models.byte_reader import (
    ByteReader,
    ByteReaderConfig,
    build_byte_reader,
    count_parameters,
)
from qalib.settings import settings
from qalib.study.run_cache import Run, stage
from qalib.training import (
    TrainConfig,
    TrainingTask,
    make_accelerator,
    make_optimizer,
    train,
)

Count = Annotated[int, Field(ge=1)]
Loss = Callable[..., Tensor]  # of a ReaderOutput and its ByteBatch, one value per question
LANDSCAPE_BATCH = 16  # questions


# --- settings -------------------------------------------------------------------------------------


@settings
class ByteTraining:
    """Everything that the weights of a byte-level reader depend on, besides the data.

    A batch is ``batch_size`` questions; ``train.tokens_per_batch`` is not used.
    """

    reader: ByteReaderConfig = field(default_factory=ByteReaderConfig)
    text: ByteConfig = field(default_factory=ByteConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    batch_size: Count = 64
    optimizer: Literal["adam", "sgd"] = "adam"  # sgd: with Nesterov momentum
    momentum: float = 0.9
    sigma: Annotated[float, Field(ge=0)] = 2.0  # of the Gaussian targets, in positions
    answers: Literal["min", "mean", "random"] = "min"  # the loss over several gold answers
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0  # fraction of the passages
    seed: int = 0


@settings
class ByteStudy:
    """What notebooks 01 to 03 train: one set-up, several readers, some seeds."""

    base: ByteTraining = field(default_factory=ByteTraining)  # of the plain convolutional reader
    seeds: Count = 1  # of plain and dense; the other variants have one
    variants: tuple[str, ...] = ("plain", "dense", "dilated", "recurrent", "plain, recurrent")
    recurrent: str = "recurrent"  # the variant that is compared with plain
    page: str = "recurrent"  # the variant that is compared with the page's recurrent reader
    sigmas: tuple[float, ...] = (0.0, 2.0)  # of the sweep
    sweep_steps: int = 0  # training steps in a sweep; 0 = as ``base``
    held_out: float = 0.1  # fraction of the passages on which the sweeps are scored
    finetune_steps: Count = 1  # with sigma 0, before a reader is evaluated
    finetune_rate: float = 1e-3
    epoch_multiplier: Count = 1  # of the longer training of plain
    gradient_batches: Count = 4

    def __post_init__(self):
        for name in ("plain", "dense", self.recurrent, self.page):
            if name not in self.variants:
                raise QalibError(f"variants must include {name!r}, which others are compared with.")


@settings
class ByteFinal:
    """The final reader: trained further with clozes, then finished on the questions alone."""

    encoder: str = "dense"
    mixer: str = "dense"
    clozes: Count = 10  # of a passage, at most
    epochs: int = 1  # on questions and clozes
    dropout: float = 0.15  # of these and the last
    finish_epochs: int = 1  # with sigma 0
    finish_rate: float = 0.02  # of SGD; Adam has ``ByteStudy.finetune_rate``


@settings
class Robustness:
    """How notebook 01 perturbs a sample of the test questions."""

    questions: Annotated[int, Field(ge=2)] = 300  # of the test data, evenly spaced
    rates: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.05, 0.1, 0.2, 0.4)  # of typos
    seed: int = 0


# --- training -------------------------------------------------------------------------------------


@stage("train-bytes")
def train_bytes(config: ByteTraining, work: Path, data: Dataset, start: Run | None = None) -> dict:
    """Train a byte-level reader on ``data``, from random weights or those of the run ``start``.

    Writes log.jsonl and weights.safetensors. With ``held_out`` the metrics include EM and F1 on the
    passages held out.
    """
    rest, held = hold_out(data, config.held_out) if config.held_out else (data, None)
    reader = build_byte_reader(config.reader, config.seed)
    if start is not None:
        _put_weights(reader, start)
    task, optimizer = byte_task(rest, config), byte_optimizer(reader, config)
    summary = train(reader, task, config.train, work, config.seed, optimizer=optimizer)
    if make_accelerator().is_main_process:
        save_weights(trained_tensors(reader), work / "weights.safetensors")
    counts = {"questions": len(task.lengths), "parameters": count_parameters(reader)}
    scores = {}
    if held is not None:
        answerer = ByteQuestionAnswerer(reader, ByteAnswerConfig(text=config.text))
        found = score(held, answerer.predictions(held.examples))
        scores = {f"held_out_{metric}": value for metric, value in found.items()}
    return {**counts, **summary, **scores}


def byte_task(data: Dataset, config: ByteTraining) -> TrainingTask:
    """Gaussian targets for start and end, in batches of a fixed number of questions."""
    rows = QuestionRows(passage_features(data.examples, config.text))
    draws = torch.default_generator  # its state is part of a checkpoint

    def loss(output, batch: ByteBatch) -> Tensor:
        gold = batch.answer_spans, batch.answer_weights
        return gaussian_span_loss(output, *gold, config.sigma, config.answers, draws)

    def batches(seed: int, epoch: int) -> list[list[int]]:
        return rows.batches(config.batch_size, seed, epoch)

    return TrainingTask(rows.lengths, rows.collate, loss, batches)


def byte_optimizer(reader: ByteReader, config: ByteTraining) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum, which the page uses for its final model."""
    if config.optimizer == "adam":
        return make_optimizer(reader, config.train)
    return torch.optim.SGD(
        reader.parameters(),
        lr=config.train.learning_rate,
        momentum=config.momentum,
        nesterov=True,
        weight_decay=config.train.weight_decay,
    )


def load_byte_reader(run: Run) -> ByteReader:
    """The reader of a ``train-bytes`` run, in evaluation mode."""
    reader = build_byte_reader(run.settings(ByteTraining).reader)
    _put_weights(reader, run)
    return reader.eval()


def byte_answerer(run: Run, config: ByteAnswerConfig) -> ByteQuestionAnswerer:
    """A ``train-bytes`` run, ready to answer questions."""
    return ByteQuestionAnswerer(load_byte_reader(run), config)


def _put_weights(reader: nn.Module, run: Run) -> None:
    path = run.file("weights.safetensors")
    put_weights(reader, load_weights(path), str(path))
