"""Trained skimmers on disk: ``skim.json`` and ``skim.safetensors``.

``skim.json`` holds the settings, the model's shape, the SHA-256 of ``skim.safetensors`` and of the
span head of the skimmer's reader, the calibration, and digests of training passages. The two files
may be in a folder of their own or beside the model.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from pydantic import Field
from torch import nn

from qalib.checkpoints import load_weights, save_weights
from qalib.data.formats import parse_json, read_bytes
from qalib.data.schema import file_sha256
from qalib.errors import QalibError
from qalib.files import write_atomically
from qalib.paths import ROOT
from qalib.settings import build, settings
from qalib.skim.predictors import ModelShape
from qalib.skim.skimmer import SkimConfig, Skimmer

DEFAULT_SKIMMER = ROOT / "data" / "checkpoints" / "skim-minilm-l6-squad"
SETTINGS, WEIGHTS = "skim.json", "skim.safetensors"
FORMAT = 2  # of skim.json


@settings
class Measurement:
    """Number of answers that a threshold keeps whole, on questions it was not chosen on."""

    data: str
    questions: Annotated[int, Field(ge=1)]  # with an answer in a block
    kept: Annotated[int, Field(ge=0)]
    token_fraction: float  # share of the passage tokens that reach the last layer

    def __str__(self) -> str:
        from scipy.stats import binomtest

        test = binomtest(self.kept, self.questions)
        shares = (test.statistic, *test.proportion_ci(0.95, method="exact"))
        found, low, high = (f"{100 * share:.1f}" for share in shares)
        return (
            f"{self.data}: {self.kept:,} of {self.questions:,} answers kept whole, {found} % "
            f"(95 % interval {low} to {high}), in {100 * self.token_fraction:.0f} % of the text"
        )


@settings
class Calibration:
    """Layer and threshold of a skimmer, the recall required, and what was measured.

    ``measured``: first by cross-validation on the questions that the threshold was chosen on, then
    on further data. A skimmer that leaves short inputs whole keeps more.
    """

    layer: int
    threshold: float
    recall: float
    confidence: float | None
    measured: Annotated[tuple[Measurement, ...], Field(min_length=1)]

    @property
    def options(self) -> dict[str, tuple]:
        """For ``Skimmer.set_options``."""
        return {"prune_layers": (self.layer,), "thresholds": (self.threshold,)}

    def describe(self) -> str:
        """The requirement, the measurements and a caveat, one line each."""
        sure = "" if self.confidence is None else f" with confidence {self.confidence:g}"
        return "\n".join(
            [
                f"blocks scored below {self.threshold:.4f} at layer {self.layer} are pruned, "
                f"chosen for a recall of {self.recall:g}{sure}",
                f"cross-validated on {self.measured[0]}",
                *(f"measured on {other}" for other in self.measured[1:]),
                "on other text the recall may differ; calibrate on questions like your own",
            ]
        )


def save_skimmer(
    folder: str | Path,
    skimmer: Skimmer,
    model: nn.Module | None = None,
    calibration: dict | None = None,
    passages: Sequence[str] = (),
) -> None:
    """Write a skimmer into a folder, which is created if necessary.

    model: the reader's encoder, whose span head is hashed; calibration: of
    ``qalib.skim.calibration``, as a dict; passages: digests of a sample of the training passages.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(skimmer.state_dict(), folder / WEIGHTS)
    stored = {
        "format": FORMAT,
        "model": asdict(skimmer.shape),
        "config": asdict(skimmer.config),
        "reader": "" if model is None else head_hash(model),
        "sha256": file_sha256(folder / WEIGHTS),
        "calibration": calibration,
        "passages": list(passages),
    }
    write_atomically(folder / SETTINGS, json.dumps(stored, indent=2) + "\n")


def load_skimmer(folder: str | Path, model: nn.Module | None = None) -> Skimmer:
    """Read a skimmer, in evaluation mode.

    Raises QalibError if a file is missing or damaged, or if the skimmer belongs to another reader
    than that of ``model``.
    """
    folder = Path(folder)
    stored = read_settings(folder)
    place = str(folder / SETTINGS)
    try:
        config = build(stored["config"], SkimConfig, place)
        skimmer = Skimmer(config, ModelShape(**stored["model"]))
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise QalibError(f"{place}: cannot be read ({error!r}).") from None
    weights = folder / WEIGHTS
    tensors = load_weights(weights)
    if file_sha256(weights) != stored.get("sha256"):
        message = f"damaged (its checksum is not the one in {SETTINGS}); fetch it again."
        raise QalibError(f"{weights}: {message}")
    try:
        skimmer.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise QalibError(f"{weights}: does not fit its settings ({reason}).") from None
    if model is not None:
        skimmer.check_compatible(model)
        if stored.get("reader") not in ("", head_hash(model)):
            raise QalibError(
                f"{folder}: this skimmer was trained with another reader than the given one; use "
                "the reader that belongs to it."
            )
    return skimmer.eval()


def load_calibration(folder: str | Path) -> Calibration:
    """The calibration in a skimmer's folder. Raises QalibError if it is missing or unreadable."""
    content = read_settings(folder).get("calibration")
    if content is None:
        raise QalibError(
            f"{folder}: this skimmer has no threshold yet; choose one with `qalib skim calibrate`."
        )
    return build(content, Calibration, f"{Path(folder) / SETTINGS}, calibration")


def head_hash(model: nn.Module) -> str:
    """SHA-256 of a model's span head, which any fine-tuning changes."""
    digest = hashlib.sha256()
    for tensor in model.qa_outputs.state_dict().values():
        digest.update(tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def read_settings(folder: str | Path) -> dict:
    """Content of ``skim.json``. Raises QalibError if it is missing or has another format."""
    path = Path(folder) / SETTINGS
    if not path.is_file():
        raise QalibError(
            f"{folder}: no skimmer here; a folder of one holds {SETTINGS}, and `qalib skim train` "
            "writes it."
        )
    content = parse_json(read_bytes(path), path)
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise QalibError(
            f"{path}: format {found!r}, but this version of qalib reads {FORMAT}; use the version "
            "that wrote it."
        )
    return content
