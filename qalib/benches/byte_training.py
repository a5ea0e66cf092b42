"""The byte-level page, literally, against the reader of this kit: same weights, same work, one run.

``bench_byte_readers`` climbs from the page as it stands to the kit, one change at a time, with all
rivals taking turns on the same batches, so that only ratios are read; shows that they learn alike;
and measures what every variant of the reader costs at equal parameters. All on the CPU.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from qalib.byte_answer import ByteAnswerer
from qalib.data.byte_batches import QuestionRows
from qalib.data.byte_features import passage_features
from qalib.data.squad import Example
from qalib.errors import QalibError
from qalib.gaussian_loss import gaussian_span_loss
from qalib.readers.byte_cost import multiply_adds
from qalib.readers.byte_reader import (
    ByteReader,
    ByteReaderConfig,
    build_byte_reader,
    count_parameters,
)
from qalib.readers.literal_byte_reader import LiteralReader
from qalib.train import TrainConfig, choose_precision, make_optimizer


@dataclass(frozen=True)
class ByteBench:
    """What is measured: almanac passages, the page's batches, the plain reader."""

    rounds: int = 5  # in each of which every rival takes one step, after one to warm up
    steps: int = 8  # of the loss curves
    questions: int = 1024  # of the almanac
    length: int = 800  # characters of a passage, about
    batch: int = 64  # questions of a step
    reader: ByteReaderConfig = field(default_factory=ByteReaderConfig)
    seed: int = 0

    def __post_init__(self):
        for name in ("rounds", "steps", "questions", "batch"):
            if getattr(self, name) < 1:
                raise QalibError(f"{name} must be at least 1, not {getattr(self, name)}.")


@dataclass(frozen=True)
class Rival:
    """One way to train the plain convolutional reader."""

    name: str
    literal: bool
    remember: bool = False  # the literal reader keeps one-hot tensors of the last texts
    once: bool = False  # and encodes a passage once for all its questions
    precision: str = "fp32"

    def reader(self, config: ByteReaderConfig, seed: int) -> nn.Module:
        """This rival's reader; all rivals start from the weights of ``seed``."""
        reader = build_byte_reader(config, seed)
        return LiteralReader(reader, self.remember, self.once) if self.literal else reader


def rivals() -> list[Rival]:
    """From the page as it stands to the kit; fp32 twice on a processor without bf16 units."""
    best = choose_precision("auto", "cpu")[0]
    return [
        Rival("the page, literally, fp32", True),
        Rival("+ one-hot text remembered", True, remember=True),
        Rival("+ each passage encoded once", True, remember=True, once=True),
        Rival(f"+ {best}", True, remember=True, once=True, precision=best),
        Rival("the kit, fp32", False),
        Rival(f"the kit, {best}", False, precision=best),
    ]


class Work:
    """Questions in batches, the same ones in the same order for everyone."""

    def __init__(self, examples: list[Example], config: ByteBench):
        self.examples = examples
        self.rows = QuestionRows(passage_features(examples))
        self.plan = self.rows.batches(config.batch, config.seed, 0)

    def learner(self, reader: nn.Module, precision: str) -> Callable[[int], float]:
        """A function that trains on batch ``turn`` and returns the loss before the update."""
        optimizer = make_optimizer(reader, TrainConfig(learning_rate=1e-3))
        reader.train()

        def step(turn: int) -> float:
            batch = self.rows.collate(self.plan[turn % len(self.plan)])
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                output = reader(batch)
            loss = gaussian_span_loss(output, batch.spans, batch.weights, sigma=2.0).mean()
            loss.backward()
            nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            return loss.item()

        return step

    def answerer(self, reader: ByteReader) -> Callable[[int], object]:
        """A function that answers the questions of batch ``turn``."""
        answerer = ByteAnswerer(reader)

        def answer(turn: int) -> object:
            chosen = self.plan[turn % len(self.plan)]
            return answerer.answer_many([self.examples[self.rows.example(r)] for r in chosen])

        return answer

    def take_turns(self, doers: list[Callable], rounds: int) -> list[list[float]]:
        """Questions per second of everyone in every round, after one turn to warm up."""
        speeds: list[list[float]] = [[] for _ in doers]
        for turn in range(1 + rounds):
            for column, do in zip(speeds, doers, strict=True):
                begin = time.perf_counter()
                do(turn)
                seconds = time.perf_counter() - begin
                column.append(len(self.plan[turn % len(self.plan)]) / seconds)
        return [column[1:] for column in speeds]


def bench_byte_readers(
    examples: list[Example], config: ByteBench, variants: Mapping[str, ByteReaderConfig]
) -> dict:
    """Speed of the rivals, their loss curves, and what each of ``variants`` costs.

    ``rows``      the rivals: training questions per second and the ratio to the first
    ``loss_...``  losses of four rivals over the same steps, without dropout; ``deviation`` is the
                  largest relative one of each from the literal curve
    ``variants``  parameters, multiply-adds ("macs") of one question at the mean lengths
                  ``passage`` and ``question``, training and answering questions per second
    """
    work = Work(examples, config)
    passage = round(statistics.mean(len(example.context) for example in examples))
    question = round(statistics.mean(len(example.question) for example in examples))
    return {
        "rows": race(work, config),
        **loss_curves(work, config),
        "variants": variant_costs(work, config, variants, (passage, question)),
        "passage": passage,
        "question": question,
    }


def race(work: Work, config: ByteBench) -> list[dict]:
    """Training speed of every rival: median, spread, and the median of its ratios to the first."""
    lines = rivals()
    readers = [rival.reader(config.reader, config.seed) for rival in lines]
    pairs = zip(readers, lines, strict=True)
    learners = [work.learner(reader, rival.precision) for reader, rival in pairs]
    speeds = work.take_turns(learners, config.rounds)
    return [
        {
            "name": rival.name,
            "questions_per_second": round(statistics.median(column), 1),
            "lowest": round(min(column), 1),
            "highest": round(max(column), 1),
            "ratio": round(
                statistics.median(a / b for a, b in zip(column, speeds[0], strict=True)), 2
            ),
        }
        for rival, column in zip(lines, speeds, strict=True)
    ]


def loss_curves(work: Work, config: ByteBench) -> dict:
    """The same steps without dropout, where all rivals compute the same but for rounding.

    Training makes rounding grow, so the literal reader that encodes passages once is there for
    scale: it differs from the first in nothing but the order of sums.
    """
    first, _, once, _, fp32, bf16 = rivals()
    chosen = {"literal": first, "literal_once": once, "ours_fp32": fp32, "ours_bf16": bf16}
    calm, curves = replace(config.reader, dropout=0.0), {}
    for name, rival in chosen.items():
        step = work.learner(rival.reader(calm, config.seed), rival.precision)
        curves[name] = [step(turn) for turn in range(config.steps)]
    literal = curves["literal"]
    deviation = {
        name: max(abs(a - b) / b for a, b in zip(curve, literal, strict=True))
        for name, curve in curves.items()
    }
    return {**{f"loss_{name}": curve for name, curve in curves.items()}, "deviation": deviation}


def variant_costs(
    work: Work,
    config: ByteBench,
    variants: Mapping[str, ByteReaderConfig],
    lengths: tuple[int, int],
) -> list[dict]:
    """Size, arithmetic and speed of several readers, which take turns, in bf16 where it pays."""
    precision = choose_precision("auto", "cpu")[0]
    readers = [build_byte_reader(reader, config.seed) for reader in variants.values()]
    training = work.take_turns([work.learner(r, precision) for r in readers], config.rounds)
    answering = work.take_turns([work.answerer(r) for r in readers], config.rounds)
    return [
        {
            "variant": name,
            "parameters": count_parameters(reader),
            "macs": multiply_adds(reader, *lengths),
            "train_questions_per_second": round(statistics.median(trained), 1),
            "answer_questions_per_second": round(statistics.median(answered), 1),
        }
        for (name, reader), trained, answered in zip(
            variants.items(), training, answering, strict=True
        )
    ]
