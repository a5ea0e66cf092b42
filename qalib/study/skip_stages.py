"""Notebook 02: a plain and a dense reader of equal size, how they learn, and the loss around them.

The recorded runs: gradients by layer, losses on a plane and on lines through the trained weights,
and short trainings for the choices of the loss, scored on passages held out of the training data.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qalib.errors import QalibError
from qalib.landscape import filter_direction, gradient_norms, losses_around, smoothness
from qalib.readers.byte_reader import ByteReader, build_byte_reader
from qalib.study.byte_stages import (
    ByteStudy,
    byte_task,
    sharpen,
    train_bytes,
    trained_reader,
    trained_variants,
    training_data,
    training_of,
    variant,
)
from qalib.study.entries import Run
from qalib.study.session import Study
from qalib.study.stages import note_data
from qalib.train import Task

READERS = ("plain", "dense")
ANSWERS = ("min", "mean", "random")  # the ways to count several gold answers
TOGETHER = 16  # questions of a batch around the weights; several batches, of several lengths
Runs = Mapping[str, Sequence[Run]]  # by reader, one run a seed


@dataclass(frozen=True)
class Landscape:
    """Where around its trained weights a reader's loss is measured, and on how much."""

    points: int = 13  # along each direction, the solution in the middle
    reach: float = 1.0  # of the last of them; at 1 a direction is as long as the weights
    directions: int = 3  # lines through every solution; a plane takes the first two
    questions: int = 64  # of the training data
    batches: int = 4  # of training, for the gradients
    seed: int = 0  # of the directions, and of the questions

    def __post_init__(self):
        if self.points < 3 or self.points % 2 == 0:
            wanted = "odd and at least 3, so that the solution is in the middle"
            raise QalibError(f"points must be {wanted}, not {self.points}.")
        for name in ("reach", "directions", "questions", "batches"):
            if not getattr(self, name) > 0:
                raise QalibError(f"{name} must be above 0, not {getattr(self, name)}.")

    @property
    def steps(self) -> np.ndarray:
        """The places along a direction, 0 in the middle."""
        half = self.points // 2
        return np.arange(-half, half + 1) * (self.reach / half)


def train_readers(study: Study) -> dict[str, list[Run]]:
    """The plain and the dense reader, one run for each seed."""
    return {name: trained_variants(study, name) for name in READERS}


def gradients(study: Study, readers: Runs) -> dict[str, list[Run]]:
    """Gradient norms by layer of every run: ``start``, before its training, and ``trained``."""
    return {name: [_gradients(study, run) for run in runs] for name, runs in readers.items()}


def surfaces(study: Study, readers: Runs) -> dict[str, Run]:
    """The loss on a plane through the weights of each reader's first run, and its smoothness.

    ``losses``: rows are places along the second direction, columns along the first.
    """
    return {name: _surface(study, runs[0]) for name, runs in readers.items()}


def slices(study: Study, readers: Runs) -> dict[str, list[Run]]:
    """The loss on lines through the weights of every run: ``lines``, each with its smoothness."""
    return {name: [_slices(study, run) for run in runs] for name, runs in readers.items()}


def _gradients(study: Study, trained: Run) -> Run:
    asked, config = study.section("landscape", Landscape), training_of(trained)

    def compute() -> dict:
        task = byte_task(training_data(study), config)
        plan = task.batches(asked.seed, 0)[: asked.batches]
        readers = {
            "start": build_byte_reader(config.reader, config.seed),
            "trained": trained_reader(trained),
        }
        return {
            when: gradient_norms(*_placed(reader, task, plan), task.loss)
            for when, reader in readers.items()
        }

    settings = {"batches": asked.batches, "seed": asked.seed}
    return _look(study, "gradients", settings, trained, compute)


def _surface(study: Study, trained: Run) -> Run:
    asked = study.section("landscape", Landscape)

    def compute() -> dict:
        places = [(a, b) for b in asked.steps for a in asked.steps]
        losses = _losses(study, trained, asked)([asked.seed, asked.seed + 1], places)
        losses = losses.reshape(asked.points, asked.points)
        return {"losses": losses.tolist(), **smoothness(losses, asked.steps)}

    return _look(study, "landscape-plane", asked, trained, compute)


def _slices(study: Study, trained: Run) -> Run:
    asked = study.section("landscape", Landscape)

    def compute() -> dict:
        measure, lines = _losses(study, trained, asked), []
        for number in range(asked.directions):
            losses = measure([asked.seed + number], [(a,) for a in asked.steps])
            lines.append({"losses": losses.tolist(), **smoothness(losses, asked.steps)})
        return {"lines": lines}

    return _look(study, "landscape-lines", asked, trained, compute)


def _losses(study: Study, trained: Run, asked: Landscape) -> Callable:
    """A function from seeds of directions and places along them to losses.

    The questions are the same for every reader that learns from the same texts.
    """
    config = replace(training_of(trained), questions=TOGETHER, answers="min")
    task = byte_task(training_data(study), config)
    plan = task.batches(asked.seed, 0)[: -(-asked.questions // TOGETHER)]
    reader, batches = _placed(trained_reader(trained), task, plan)

    def measure(seeds: Sequence[int], places: Sequence[Sequence[float]]) -> np.ndarray:
        directions = [filter_direction(reader, seed) for seed in seeds]
        return losses_around(reader, directions, places, batches, task.loss)

    return measure


def _placed(reader: ByteReader, task: Task, plan: Sequence[Sequence[int]]) -> tuple:
    """A reader and its batches on the fastest device that there is."""
    from accelerate import Accelerator

    device = Accelerator(mixed_precision="no").device
    return reader.to(device), [task.collate(rows).to(device) for rows in plan]


def _look(
    study: Study, stage: str, settings: object, trained: Run, compute: Callable[[], dict]
) -> Run:
    """The run of a stage that looks at trained weights on the training data."""
    train = training_data(study)

    def noted(work: Path) -> dict:
        note_data(work, train)
        return compute()

    inputs = {"weights": trained.key, "train": train.content_sha256}
    run = study.store.get_or_run(stage, settings, noted, inputs=inputs, force=study.force)
    return study.keep(run)


def sigma_sweep(study: Study) -> list[Run]:
    """A short training of the dense reader for every width of the Gaussian targets."""
    return [_short(study, sigma=sigma) for sigma in study.section("bytes", ByteStudy).sigmas]


def sharpened_sweep(study: Study) -> list[Run]:
    """The short training of the base's sigma; after more steps of the same; or with sigma 0."""
    wide = _short(study)
    return [wide, sharpen(study, wide, training_of(wide).sigma), sharpen(study, wide)]


def answer_sweep(study: Study) -> list[Run]:
    """A short training of the dense reader for every way to count several gold answers."""
    return [_short(study, answers=answers) for answers in ANSWERS]


def start_sweep(study: Study) -> list[Run]:
    """A short training of the dense reader with unrelated queries and keys, and as the others."""
    alike = variant(study.section("bytes", ByteStudy).base, "dense").reader.alike
    return [_short(study, alike=value) for value in (0.0, alike)]


def _short(study: Study, alike: float | None = None, **changes) -> Run:
    """The dense reader, trained for the steps of the sweeps on what they do not hold out."""
    asked = study.section("bytes", ByteStudy)
    config = variant(asked.base, "dense")
    rate = asked.rates.get("dense", config.train.learning_rate)
    steps = asked.sweep_steps or config.train.max_steps
    train = replace(config.train, learning_rate=rate, max_steps=steps)
    if alike is not None:
        changes["reader"] = replace(config.reader, alike=alike)
    config = replace(config, train=train, held_out=asked.held_out, seed=study.seed, **changes)
    return study.keep(train_bytes(study.store, training_data(study), config, force=study.force))
