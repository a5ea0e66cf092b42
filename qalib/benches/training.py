"""Wall-clock benchmarks. Rivals take turns within one run, so that only ratios are read.

``bench_train_steps`` climbs from the defaults of transformers to the loop of this kit one change
at a time, on the same questions. What counts is real tokens per second: padding is not work done.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from qalib.attention import use_byte_dropout
from qalib.data.batches import collate, training_batches
from qalib.data.features import Window
from qalib.losses import span_loss
from qalib.readers.encoder_reader import EncoderConfig, EncoderReader, build_encoder
from qalib.train import TrainConfig, choose_precision, make_optimizer


@dataclass(frozen=True)
class TrainBench:
    """What is timed: ``steps`` steps a rival and round, after one step to warm up."""

    rounds: int = 5
    steps: int = 3
    tokens_per_batch: int = 4096
    questions: int = 2000
    seed: int = 0


@dataclass(frozen=True)
class Rival:
    """One way to train, and what it changed against the one before."""

    name: str
    bf16: bool = False
    attention_dropout: float = 0.1
    frozen_words: bool = False
    attention: str = "sdpa"
    byte_dropout: bool = False
    buckets: bool = False


def rivals() -> list[Rival]:
    """From the defaults of transformers to the loop of the kit, one change at a time."""
    return [
        Rival("transformers defaults: fp32, SDPA, dropout 0.1, random batches"),
        Rival("+ bf16", bf16=True),
        Rival("+ attention dropout 0", True, 0.0),
        Rival("+ word embeddings frozen", True, 0.0, True),
        Rival("+ attention as two matrix products", True, 0.0, True, "qalib"),
        Rival("+ dropout from random bytes", True, 0.0, True, "qalib", True),
        Rival("+ batches of like length (the kit)", True, 0.0, True, "qalib", True, True),
    ]


def bench_train_steps(windows: list[Window], config: TrainBench) -> list[dict]:
    """Tokens per second of every rival: one row each with median, spread and ratio to the first.

    On a processor without bf16 units the bf16 rows run in fp32, as training would.
    """
    lines = rivals()
    steppers = [_stepper(rival, windows, config) for rival in lines]
    speeds: list[list[float]] = [[] for _ in lines]
    for step in steppers:
        step(0)  # warm-up
    for turn in range(config.rounds):
        for column, step in zip(speeds, steppers, strict=True):
            column.append(step(1 + turn))
    return [
        {
            "name": rival.name,
            "tokens_per_second": round(statistics.median(column)),
            "lowest": round(min(column)),
            "highest": round(max(column)),
            "ratio": round(
                statistics.median(a / b for a, b in zip(column, speeds[0], strict=True)), 2
            ),
        }
        for rival, column in zip(lines, speeds, strict=True)
    ]


def _stepper(rival: Rival, windows: list[Window], config: TrainBench) -> Callable[[int], float]:
    """A function that trains for some steps and returns real tokens per second."""
    reader = _reader(rival, config.seed)
    optimizer = make_optimizer(reader, TrainConfig())
    precision = choose_precision("auto")[0] if rival.bf16 else "fp32"
    lengths = [len(window) for window in windows]
    plan = _batches(rival, lengths, config)

    def run(turn: int) -> float:
        chosen = [plan[(turn * config.steps + s) % len(plan)] for s in range(config.steps)]
        reader.train()
        begin, tokens = time.perf_counter(), 0
        for indices in chosen:
            batch = collate([windows[i] for i in indices])
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                output = reader(batch)
            span_loss(output, batch.spans, batch.weights).mean().backward()
            nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            tokens += batch.tokens
        return tokens / (time.perf_counter() - begin)

    return run


def _reader(rival: Rival, seed: int) -> EncoderReader:
    config = EncoderConfig(
        attention_dropout=rival.attention_dropout, train_embeddings=not rival.frozen_words
    )
    reader = build_encoder(config, seed, fast_dropout=False)
    reader.encoder.set_attn_implementation(rival.attention)
    if rival.byte_dropout:
        use_byte_dropout(reader.encoder)
    return reader


def _batches(rival: Rival, lengths: list[int], config: TrainBench) -> list[list[int]]:
    """Batches of like length, or as many random questions as fill the budget on the average."""
    if rival.buckets:
        return training_batches(lengths, config.tokens_per_batch, config.seed, 0)
    order = np.random.default_rng(config.seed).permutation(len(lengths)).tolist()
    rows = max(1, int(config.tokens_per_batch / np.mean(lengths)))
    return [order[i : i + rows] for i in range(0, len(order) - rows + 1, rows)]
