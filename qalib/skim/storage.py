"""Trained skimmers on disk: ``skim.json`` and ``skim.safetensors``.

``skim.json`` holds the settings, the shape of the model and the SHA-256 of ``skim.safetensors``.
The two files may be in a folder of their own, or beside the checkpoint of the model.
"""

import json
from dataclasses import asdict
from pathlib import Path

from torch import nn

from qalib.checkpoints import load_weights, put_weights, save_weights
from qalib.data.formats import parse_json, read_bytes
from qalib.data.schema import file_sha256
from qalib.errors import QalibError
from qalib.paths import ROOT
from qalib.settings import build as build_settings
from qalib.skim.predictors import ModelShape
from qalib.skim.skimmer import SkimConfig, Skimmer

DEFAULT_SKIMMER = ROOT / "data" / "checkpoints" / "skim-minilm-l6-squadshifts"
SETTINGS, WEIGHTS = "skim.json", "skim.safetensors"
FORMAT = 2  # of skim.json and calibration.json


def save_skimmer(folder: str | Path, skimmer: Skimmer, reader_hash: str = "") -> None:
    """Write a skimmer into a folder, which is created if necessary.

    ``reader_hash``: checksum of the weights of the reader that its predictors were trained with.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(skimmer.state_dict(), folder / WEIGHTS)
    settings = {
        "format": FORMAT,
        "model": {"model_type": skimmer.model_type, **asdict(skimmer.shape)},
        "config": asdict(skimmer.config),
        "reader": reader_hash,
        "sha256": file_sha256(folder / WEIGHTS),
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def load_skimmer(
    folder: str | Path, model: nn.Module | None = None, reader_hash: str = ""
) -> Skimmer:
    """Read a skimmer, in evaluation mode.

    Raises QalibError if a file is missing, damaged or of another format, or if the skimmer was
    made for another kind or shape than that of ``model``, or for another reader, where given.
    """
    folder = Path(folder)
    settings = _settings(folder)
    place = str(folder / SETTINGS)
    try:
        model_type = settings["model"].pop("model_type")
        shape = ModelShape(**settings["model"])
        config = build_settings(settings["config"], SkimConfig, place)
    except (AttributeError, KeyError, TypeError) as error:
        raise QalibError(f"{place}: cannot be read ({error!r}).") from None
    skimmer = Skimmer(config, shape, model_type)
    tensors = load_weights(folder / WEIGHTS)
    if file_sha256(folder / WEIGHTS) != settings.get("sha256"):
        raise QalibError(
            f"{folder / WEIGHTS}: damaged (its checksum is not the one in {SETTINGS}); fetch it "
            "again."
        )
    if missing := set(skimmer.state_dict()) - set(tensors):
        raise QalibError(f"{folder / WEIGHTS}: {min(missing)!r} is missing; fetch it again.")
    put_weights(skimmer, tensors, str(folder / WEIGHTS))
    if model is not None:
        skimmer.check_compatible(model)
    if reader_hash and settings.get("reader") not in ("", reader_hash):
        raise QalibError(
            f"{folder}: this skimmer was trained with another reader than the given one; use the "
            "reader that belongs to it."
        )
    return skimmer.eval()


def skimmer_hash(folder: str | Path) -> str:
    """SHA-256 of the skimmer's weights in a folder, from its settings.

    Raises QalibError if there is no skimmer.
    """
    return str(_settings(Path(folder)).get("sha256"))


def _settings(folder: Path) -> dict:
    """Content of ``skim.json``. Raises QalibError if it is missing or of another format."""
    if not (folder / SETTINGS).is_file():
        raise QalibError(f"{folder}: no skimmer here; its folder must contain {SETTINGS}.")
    return read_format(folder / SETTINGS)


def read_format(path: Path) -> dict:
    """Content of a JSON file of this format. Raises QalibError for another format."""
    content = parse_json(read_bytes(path), path)
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise QalibError(
            f"{path}: format {found!r}, but this version of qalib reads {FORMAT}; use the version "
            "that wrote it."
        )
    return content
