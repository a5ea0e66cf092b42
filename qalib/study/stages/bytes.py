"""Stages of notebooks 01 to 03: train a byte-level reader and analyse it.

``train_bytes`` trains from random weights or from those of a run; ``gradients`` and ``landscape``
measure the loss of a trained reader.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

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
class Gradients:
    """On how many training batches gradients are measured; ``seed`` draws them."""

    batches: Count = 4
    seed: int = 0


@settings
class Landscape:
    """Where around trained weights the loss is measured, and on how many training questions."""

    kind: Literal["lines", "plane"] = "lines"
    points: Annotated[int, Field(ge=3)] = 13  # along a direction, from -1 to 1
    directions: Count = 3  # a plane has two
    questions: Count = 64
    seed: int = 0  # of the directions, and of the questions

    def __post_init__(self):
        if self.points % 2 == 0:
            raise QalibError(f"points must be odd, to include the solution, not {self.points}.")
        if self.kind == "plane" and self.directions != 2:
            raise QalibError(f"a plane has 2 directions, not {self.directions}.")

    @property
    def steps(self) -> np.ndarray:
        """The places along a direction, 0 in the middle.  (points,)"""
        half = self.points // 2
        return np.arange(-half, half + 1) * (1.0 / half)


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


# --- gradients and the loss around the weights ----------------------------------------------------


@stage("gradients")
def gradients(config: Gradients, work: Path, weights: Run, train: Dataset) -> dict:
    """Gradient norms by layer of a reader: ``start``, before its training, and ``trained``."""
    training = weights.settings(ByteTraining)
    task = byte_task(train, training)
    batches = [task.collate(rows) for rows in task.batches(config.seed, 0)[: config.batches]]
    before = build_byte_reader(training.reader, training.seed)
    return {
        "start": gradient_norms(before, batches, task.loss),
        "trained": gradient_norms(load_byte_reader(weights), batches, task.loss),
    }


def gradient_norms(model: nn.Module, batches: Sequence[ByteBatch], loss: Loss) -> dict[str, float]:
    """Norm of the gradient of a batch's mean loss by layer, averaged over the batches.

    Over all parameters of a layer together, without dropout.
    """
    model.eval()
    names, parameters = zip(*model.named_parameters(), strict=True)
    norms = dict.fromkeys(map(layer_of, names), 0.0)
    for batch in batches:
        squares = dict.fromkeys(norms, 0.0)
        found = torch.autograd.grad(loss(model(batch), batch).mean(), parameters)
        for name, gradient in zip(names, found, strict=True):
            squares[layer_of(name)] += gradient.square().sum().item()
        for layer, square in squares.items():
            norms[layer] += square**0.5 / len(batches)
    return norms


def layer_of(name: str) -> str:
    """The layer of a reader's parameter: "encoder 1", "mixer 5", "attention", "span", "embed"."""
    if match := re.match(r"(encoder|mixer)\.layers\.(\d+)\.", name):
        return f"{match[1]} {int(match[2]) + 1}"
    first = name.partition(".")[0]
    return "attention" if first in ("query", "key") else first


@stage("landscape")
def landscape(config: Landscape, work: Path, weights: Run, train: Dataset) -> dict:
    """The loss around the weights of a trained reader, along filter-normalised directions.

    ``losses`` of kind lines: (directions, points); of a plane: (points, points), a row per place
    along the second direction. Readers of the same training data see the same questions.
    """
    training = replace(weights.settings(ByteTraining), batch_size=LANDSCAPE_BATCH, answers="min")
    task, reader = byte_task(train, training), load_byte_reader(weights)
    plan = task.batches(config.seed, 0)[: -(-config.questions // LANDSCAPE_BATCH)]
    batches, steps = [task.collate(rows) for rows in plan], config.steps
    directions = [filter_direction(reader, config.seed + i) for i in range(config.directions)]
    if config.kind == "plane":
        places = [(a, b) for b in steps for a in steps]
        losses = losses_around(reader, directions, places, batches, task.loss)
        return {"losses": losses.reshape(len(steps), -1).tolist()}
    places = [(a,) for a in steps]
    lines = [losses_around(reader, [d], places, batches, task.loss) for d in directions]
    return {"losses": np.stack(lines).tolist()}


def filter_direction(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """A random direction whose filters have the norms of the model's filters, by parameter.

        d_f = |w_f| g_f / |g_f|,  g_f ~ N(0, 1)

    In front of a norm the scale of a filter has no effect, so a step of some length changes small
    weights much and large ones little; at w + d weights and noise are equally large in every reader
    (Li et al. 2018, https://arxiv.org/abs/1712.09913). A filter leads to one output: a channel of a
    convolution, a row of a matrix. In a convolution of one-hot text every symbol has a filter for
    each channel, as most symbols never occur and would take most of a common norm. Vectors (biases,
    scale and shift of norms) do not move.
    """
    draws = torch.Generator().manual_seed(seed)
    direction = {}
    for name, parameter in model.named_parameters():
        weights = parameter.detach()
        noise = torch.randn(weights.shape, generator=draws).to(weights)
        if weights.ndim == 1:
            direction[name] = torch.zeros_like(weights)
            continue
        one_hot = name.endswith(".table")  # (K, symbols, width)
        axes = (0,) if one_hot else tuple(range(1, weights.ndim))
        norms = [torch.linalg.vector_norm(w, dim=axes, keepdim=True) for w in (weights, noise)]
        direction[name] = noise * (norms[0] / norms[1])
    return direction


@torch.no_grad()
def losses_around(
    model: nn.Module,
    directions: Sequence[Mapping[str, Tensor]],
    places: Sequence[Sequence[float]],
    batches: Sequence[ByteBatch],
    loss: Loss,
) -> np.ndarray:
    """The mean loss of all questions at w + sum_i place_i direction_i, without dropout.

    places (n, directions) -> (n,) float64. The model keeps its weights.
    """
    model.eval()
    questions, means = sum(map(len, batches)), []
    for place in places:
        moved = {name: weights.detach().clone() for name, weights in model.named_parameters()}
        for amount, direction in zip(place, directions, strict=True):
            for name, weights in moved.items():
                weights.add_(direction[name], alpha=amount)
        read = partial(functional_call, model, moved)
        means.append(sum(loss(read(batch), batch).sum() for batch in batches).item() / questions)
    return np.array(means)
