"""Notebook 02's tables: what plain and dense readers are made of, and their runs as rows."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from qalib.landscape import layer_of
from qalib.metrics import PairedBootstrap
from qalib.readers.byte_reader import ByteReader, ByteReaderConfig
from qalib.study.byte_stages import training_data
from qalib.study.compare import scores, seeds_gain  # noqa: F401, the notebook asks here
from qalib.study.entries import Run
from qalib.study.session import Study
from qalib.study.skip_stages import READERS, Landscape, Runs
from qalib.study.stages import read_log

PARTS = ("embed", "encoder", "attention", "mixer", "span")  # of a reader, in the order of use
MEASURES = ("rise", "roughness", "concave")


def layers(config: ByteReaderConfig) -> pd.DataFrame:
    """What each layer of a convolutional reader reads and writes, and its parameters."""
    with torch.device("meta"):  # shapes only
        reader = ByteReader(config)
    sizes: dict[str, int] = {}
    for name, parameter in reader.named_parameters():
        sizes[layer_of(name)] = sizes.get(layer_of(name), 0) + parameter.numel()
    rows = []
    for part in ("encoder", "mixer"):
        for number, layer in enumerate(getattr(reader, part).layers, start=1):
            reads = ["text"] if layer.text is not None else []
            reads += [str(layer.features.in_channels)] if layer.features is not None else []
            name = f"{part} {number}"
            rows.append((name, " + ".join(reads), layer.width, sizes.pop(name)))
    rows += [(name, "", "", size) for name, size in sizes.items()]
    return pd.DataFrame(rows, columns=["layer", "reads", "writes", "parameters"]).set_index("layer")


def loss_curves(readers: Runs) -> pd.DataFrame:
    """Training losses, some 200 of each run.  columns reader, seed, step, loss

    Batches differ in difficulty, so a loss is the mean of the last twenty-fifth of the log.
    """
    parts = []
    for name, runs in readers.items():
        for run in runs:
            log = pd.DataFrame([line for line in read_log(run) if "loss" in line])
            log["loss"] = log["loss"].rolling(max(1, len(log) // 25), min_periods=1).mean()
            log = log[:: -max(1, len(log) // 200)][::-1]  # the last one is kept
            parts.append(log[["step", "loss"]].assign(reader=name, seed=run.config["seed"]))
    return pd.concat(parts, ignore_index=True)


def steps_needed(curves: pd.DataFrame) -> list[float]:
    """After what share of its steps dense has the training loss that plain ends with, by seed.

    1 where it never gets there.
    """
    shares = []
    for _, of_seed in curves.groupby("seed"):
        plain, dense = (of_seed[of_seed["reader"] == name] for name in READERS)
        there = dense.loc[dense["loss"] <= plain["loss"].iloc[-1], "step"]
        shares.append(float(there.iloc[0] / dense["step"].iloc[-1]) if len(there) else 1.0)
    return shares


def gradients(found: Runs) -> pd.DataFrame:
    """``gradients`` runs as rows, layers in the order of a forward pass.

    columns reader, seed, when (start, trained), layer, gradient
    """
    rows = [
        (name, seed, when, layer, norm)
        for name, runs in found.items()
        for seed, run in enumerate(runs)
        for when in ("start", "trained")
        for layer, norm in sorted(run.metrics[when].items(), key=lambda item: _place(item[0]))
    ]
    return pd.DataFrame(rows, columns=["reader", "seed", "when", "layer", "gradient"])


def _place(layer: str) -> tuple[int, int]:
    part, _, number = layer.partition(" ")
    return PARTS.index(part), int(number or 0)


def surfaces(found: Mapping[str, Run]) -> pd.DataFrame:
    """``landscape-plane`` runs as rows.  columns reader, a, b, loss"""
    parts = []
    for name, run in found.items():
        steps = Landscape(**run.config).steps
        b, a = np.meshgrid(steps, steps, indexing="ij")
        points = {"reader": name, "a": a.ravel(), "b": b.ravel()}
        parts.append(pd.DataFrame({**points, "loss": np.ravel(run.metrics["losses"])}))
    return pd.concat(parts, ignore_index=True)


def slices(found: Runs) -> pd.DataFrame:
    """``landscape-lines`` runs as rows.  columns reader, seed, direction, a, loss"""
    parts = []
    for name, runs in found.items():
        for seed, run in enumerate(runs):
            steps = Landscape(**run.config).steps
            for direction, line in enumerate(run.metrics["lines"]):
                about = {"reader": name, "seed": seed, "direction": direction}
                parts.append(pd.DataFrame({**about, "a": steps, "loss": line["losses"]}))
    return pd.concat(parts, ignore_index=True)


def smoothness(found: Runs) -> pd.DataFrame:
    """rise, roughness and concave, mean of all ``landscape-lines`` of a run.  index reader, seed"""
    rows = {
        (name, seed): pd.DataFrame(run.metrics["lines"])[list(MEASURES)].mean()
        for name, runs in found.items()
        for seed, run in enumerate(runs)
    }
    return pd.DataFrame(rows).T.rename_axis(["reader", "seed"])


def gain(study: Study, scored: Runs, metric: str) -> PairedBootstrap:
    """How far dense is above plain on the test questions; ``metric``: EM or F1."""
    return seeds_gain(study, scored, metric, "dense")


def sweep(study: Study, runs: Sequence[Run], choice: str) -> pd.DataFrame:
    """EM and F1 on the held-out passages, with their standard errors.  index ``choice``

    The error is that of a share of the questions; an F1 has at most that.
    """
    rows = {}
    for run in runs:
        held_out = len(training_data(study)) - run.metrics["questions"]
        found = {"EM": run.metrics["held_out_exact_match"], "F1": run.metrics["held_out_f1"]}
        errors = {f"{m} error": (p * (100 - p) / held_out) ** 0.5 for m, p in found.items()}
        rows[run.config[choice]] = found | errors
    return pd.DataFrame(rows).T.rename_axis(choice)
