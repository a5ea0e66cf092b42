"""Readers in checkpoint folders: what training changed, next to the encoder it was changed in.

A folder holds ``qalib.json`` (encoder, windows, name and SHA-256 of the weights), the weights
themselves (safetensors, fp16) and a model card. Only what training moved is kept; the rest comes
from the encoder the folder names. A plain Hugging Face model folder is read as it is.
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from qalib.checkpoints import load_weights, put_weights, save_weights
from qalib.data.features import WindowConfig
from qalib.data.squad import file_sha256, parse_json, read_bytes
from qalib.errors import QalibError
from qalib.paths import ROOT
from qalib.readers.encoder_reader import EncoderConfig, EncoderReader, build_encoder

SHIPPED = ROOT / "data" / "checkpoints" / "minilm-l6-squadshifts"
SETTINGS, WEIGHTS = "qalib.json", "weights.safetensors"


def save_reader(
    folder: Path, encoder: EncoderConfig, windows: WindowConfig, tensors: dict[str, Tensor]
) -> None:
    """Write a checkpoint folder: moved tensors as fp16, settings with their checksum."""
    folder.mkdir(parents=True, exist_ok=True)
    halved = {n: t.to(torch.float16) for n, t in tensors.items() if t.is_floating_point()}
    save_weights(halved, folder / WEIGHTS)
    settings = {
        "encoder": asdict(encoder),
        "windows": asdict(windows),
        "weights": {"file": WEIGHTS, "sha256": file_sha256(folder / WEIGHTS)},
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def load_reader(folder: str | Path = "") -> EncoderReader:
    """The reader in a checkpoint folder, the shipped one by default.

    Raises QalibError if the folder or its weights are missing, damaged or of another model.
    """
    folder = Path(folder or SHIPPED)
    if not (folder / SETTINGS).exists():
        if (folder / "config.json").exists():
            return build_encoder(EncoderConfig(name=str(folder), train_embeddings=True))
        raise QalibError(
            f"{folder}: no checkpoint here; a folder of one holds {SETTINGS} or config.json."
        )
    settings = _settings(folder)
    reader = build_encoder(_config(EncoderConfig, settings, "encoder", folder))
    weights = folder / WEIGHTS
    if weights.is_file() and file_sha256(weights) != checkpoint_hash(folder):
        raise QalibError(
            f"{weights}: damaged (its checksum is not the one in {SETTINGS}); check it out again."
        )
    put_weights(reader, load_weights(weights), str(weights))
    return reader


def windows_of(folder: str | Path = "") -> WindowConfig:
    """How the reader of a checkpoint folder cuts its inputs; the default for a plain model."""
    folder = Path(folder or SHIPPED)
    if not (folder / SETTINGS).exists():
        return WindowConfig()
    return _config(WindowConfig, _settings(folder), "windows", folder)


def checkpoint_hash(folder: Path) -> str:
    """SHA-256 of the weights in a checkpoint folder, as its settings give it."""
    try:
        return _settings(folder)["weights"]["sha256"]
    except (KeyError, TypeError):
        raise QalibError(f"{folder / SETTINGS}: names no weights with a sha256.") from None


def _settings(folder: Path) -> dict:
    settings = parse_json(read_bytes(folder / SETTINGS), folder / SETTINGS)
    if not isinstance(settings, dict):
        raise QalibError(f"{folder / SETTINGS}: not a JSON object.")
    return settings


def _config(kind: type, settings: dict, key: str, folder: Path):
    try:
        return kind(**settings[key])
    except (KeyError, TypeError) as error:
        raise QalibError(f"{folder / SETTINGS}: {key!r} cannot be read ({error}).") from None
