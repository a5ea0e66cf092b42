"""Trained skimmers on disk: safetensors and JSON, alone or beside the model they belong to.

``skim.json`` holds the settings, the shape of the model and the SHA-256 of ``skim.safetensors``.
The same two files may lie in a folder that any user of transformers knows (config.json,
model.safetensors, tokenizer files): whoever loads that folder without this kit gets the model, and
with it the model and its skimmer.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from torch import nn

from qalib.checkpoints import load_weights, put_weights, save_weights
from qalib.data.squad import file_sha256, parse_json, read_bytes
from qalib.errors import QalibError
from qalib.paths import ROOT
from qalib.skim.predictors import ModelShape, build_predictor
from qalib.skim.settings import SkimConfig
from qalib.skim.skimmer import Skimmer

SKIMMER = ROOT / "data" / "checkpoints" / "skim-minilm-l6-squadshifts"  # the one that ships
SETTINGS, WEIGHTS = "skim.json", "skim.safetensors"
FORMAT = 1  # of skim.json


def save_skimmer(folder: str | Path, skimmer: Skimmer, reader: str = "") -> None:
    """Write a skimmer into a folder, which is made if it is not there.

    ``reader``: the checksum of the reader's weights that its predictors were trained beside.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(skimmer.state_dict(), folder / WEIGHTS)
    settings = {
        "format": FORMAT,
        "model": {"model_type": skimmer.model_type, **_shape(skimmer)},
        "config": asdict(skimmer.config),
        "reader": reader,
        "sha256": file_sha256(folder / WEIGHTS),
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def load_skimmer(
    folder: str | Path,
    model: nn.Module | None = None,
    build: Callable = build_predictor,
    reader: str = "",
) -> Skimmer:
    """Read a skimmer, in evaluation mode; ``build`` makes its predictors, if not the kit's own.

    Raises QalibError if a file is missing, damaged or of a later format, or if the skimmer was
    made for another kind or shape than that of ``model``, or beside another ``reader``, where
    they are given.
    """
    folder = Path(folder)
    settings = _settings(folder)
    made_for = _read(settings, "model", folder)
    try:
        kind = made_for.pop("model_type")
        config, shape = SkimConfig(**_read(settings, "config", folder)), ModelShape(**made_for)
        skimmer = Skimmer(config, shape, kind, build)
    except (KeyError, TypeError) as error:
        raise QalibError(f"{folder / SETTINGS}: cannot be read ({error}).") from None
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
        skimmer.fit(model)
    if reader and settings.get("reader") not in ("", reader):
        raise QalibError(
            f"{folder}: this skimmer was trained beside another reader than the one given; skim "
            "with the reader that belongs to it."
        )
    return skimmer.eval()


def skimmer_hash(folder: str | Path) -> str:
    """SHA-256 of the skimmer's weights in a folder, as its settings give it.

    Raises QalibError if there is no skimmer.
    """
    settings = _settings(Path(folder))
    return str(settings.get("sha256")) if isinstance(settings, dict) else ""


def save_together(folder: str | Path, model: nn.Module, tokenizer, skimmer: Skimmer) -> None:
    """Write model, tokenizer and skimmer into one folder, as transformers writes the first two.

    Raises QalibError if the skimmer was made for another model.
    """
    skimmer.fit(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_skimmer(folder, skimmer)


def load_together(folder: str | Path):
    """Read what ``save_together`` wrote: model and skimmer in evaluation mode, and the tokenizer.

    -> (model, tokenizer, skimmer). The skimmer is not attached. Raises QalibError if a file is
    missing or damaged.
    """
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    try:
        model = AutoModelForQuestionAnswering.from_pretrained(folder, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True)
    except Exception as error:  # transformers and safetensors have one for every kind of damage
        reason = str(error).strip().split("\n")[0]
        raise QalibError(
            f"{folder}: no model that can be loaded ({reason}); a folder of one holds config.json, "
            "model.safetensors and the files of its tokenizer."
        ) from None
    return model.eval(), tokenizer, load_skimmer(folder, model)


def _shape(skimmer: Skimmer) -> dict[str, int]:
    return {name: getattr(skimmer.shape, name) for name in ("layers", "heads", "width")}


def _settings(folder: Path) -> object:
    """What ``skim.json`` holds. Raises QalibError if it is not there."""
    if not (folder / SETTINGS).is_file():
        raise QalibError(f"{folder}: no skimmer here; a folder of one holds {SETTINGS}.")
    return parse_json(read_bytes(folder / SETTINGS), folder / SETTINGS)


def _read(settings: object, key: str, folder: Path) -> dict:
    """One part of ``skim.json``. Raises QalibError if it is not there or of a later format."""
    if not isinstance(settings, dict) or settings.get("format") != FORMAT:
        found = settings.get("format") if isinstance(settings, dict) else None
        raise QalibError(
            f"{folder / SETTINGS}: format {found!r}, but this version of qalib reads {FORMAT}; "
            "use the version that wrote it."
        )
    if not isinstance(settings.get(key), dict):
        raise QalibError(f"{folder / SETTINGS}: {key!r} is missing or no JSON object.")
    return dict(settings[key])
