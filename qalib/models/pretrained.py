"""Readers in checkpoint folders, stored as adapters of a pretrained encoder.

A folder holds ``qalib.json`` (encoder, windows, SHA-256 of the weights), the adapter in the format
of ``peft`` (adapter_config.json and adapter_model.safetensors, fp16) and a model card. The change
of every weight matrix is stored at low rank, W + B A; biases, norms, small embeddings and the span
head are stored in full; word embeddings are not trained. Plain Hugging Face model folders load too.
"""

import json
import shutil
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from qalib.checkpoints import load_weights, save_weights
from qalib.data.formats import parse_json, read_bytes
from qalib.data.schema import file_sha256
from qalib.data.windows import WindowConfig
from qalib.errors import QalibError
from qalib.models.encoder import (
    MINILM,
    MINILM_HUB,
    EncoderConfig,
    EncoderReader,
    build_encoder,
    quiet,
)
from qalib.paths import ROOT
from qalib.settings import build

DEFAULT_CHECKPOINT = ROOT / "data" / "checkpoints" / "minilm-l6-squadshifts"
SETTINGS, WEIGHTS = "qalib.json", "adapter_model.safetensors"
LINEAR = r".*\.layer\.\d+\..*(query|key|value|dense)"  # the matrices of a BERT layer
WHOLE = ["qa_outputs", "LayerNorm", "position_embeddings", "token_type_embeddings"]
CARD = """---
library_name: transformers
pipeline_tag: question-answering
---
# {name}

A model for extractive question answering, trained with qalib. `qalib answer --model FOLDER` answers
with it, and `AutoModelForQuestionAnswering.from_pretrained` of transformers loads it.
"""

T = TypeVar("T")


def low_rank(change: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best rank-R approximation B A of a weight change.  (M, N) -> (M, R), (R, N)"""
    u, s, v = torch.linalg.svd(change.float(), full_matrices=False)
    scale = s[:rank].sqrt()
    return u[:, :rank] * scale, scale[:, None] * v[:rank]


def save_reader(
    folder: Path,
    encoder: EncoderConfig,
    windows: WindowConfig,
    trained: dict[str, Tensor],
    rank: int,
) -> None:
    """Write a checkpoint folder from the trained tensors, by parameter name."""
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    reader = build_encoder(encoder)
    base = {name: p.detach().clone() for name, p in reader.named_parameters()}
    lora = LoraConfig(
        r=rank, lora_alpha=rank, target_modules=LINEAR, bias="lora_only", modules_to_save=WHOLE
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers
        adapter = get_peft_model(reader.encoder, lora)
    tensors = {}
    for key in get_peft_model_state_dict(adapter):
        name = key.replace("base_model.model.", "encoder.", 1).replace(".base_layer.", ".")
        if name.endswith(".lora_A.weight"):
            weight = name.replace(".lora_A.weight", ".weight")
            left, right = low_rank(trained[weight] - base[weight], rank)
            tensors[key], tensors[key.replace("lora_A", "lora_B")] = right, left
        elif not name.endswith(".lora_B.weight"):
            tensors[key] = trained[name]
    folder.mkdir(parents=True, exist_ok=True)
    lora.base_model_name_or_path = MINILM_HUB if encoder.name == MINILM else encoder.name
    lora.save_pretrained(folder)
    save_weights({n: t.to(torch.float16) for n, t in tensors.items()}, folder / WEIGHTS)
    sha256 = file_sha256(folder / WEIGHTS)
    settings = {"encoder": asdict(encoder), "windows": asdict(windows), "sha256": sha256}
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def save_model(
    folder: str | Path, reader: EncoderReader, windows: WindowConfig, card: str = ""
) -> None:
    """Write a model folder that transformers loads, with its windows and ``card`` (README.md).

    Raises QalibError if the folder exists and is not empty. It is written under another name and
    renamed, so it is complete or not there.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise QalibError(f"{folder}: exists already; name a new folder, or remove it first.")
    partial = folder.with_name(folder.name + ".saving")  # .partial may hold a run's checkpoints
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with quiet():
        reader.encoder.save_pretrained(partial)
    reader.tokenizer.save_pretrained(partial)
    settings = json.dumps({"windows": asdict(windows)}, indent=2)
    (partial / SETTINGS).write_text(settings + "\n", encoding="utf-8")
    (partial / "README.md").write_text(card or CARD.format(name=folder.name), encoding="utf-8")
    partial.replace(folder)


def load_reader(model: str | Path = "", new_head: bool = False) -> EncoderReader:
    """The reader in a checkpoint folder, or the default reader, with its adapter merged.

    Raises QalibError if the folder or its weights are missing, damaged or of another model.
    """
    folder = Path(model or DEFAULT_CHECKPOINT)
    if model == MINILM:
        return build_encoder(EncoderConfig(train_embeddings=True))
    if "encoder" not in (_settings(folder) if (folder / SETTINGS).exists() else {}):
        if (folder / "config.json").exists():
            return build_encoder(EncoderConfig(name=str(folder), train_embeddings=True))
        raise QalibError(
            f"{folder}: no checkpoint here; a folder of one holds {SETTINGS} or config.json."
        )
    reader = build_encoder(_config(EncoderConfig, _settings(folder), "encoder", folder))
    weights = folder / WEIGHTS
    load_weights(weights)  # raises a clear error if they are missing or not safetensors
    if file_sha256(weights) != checkpoint_hash(folder):
        raise QalibError(
            f"{weights}: damaged (its checksum is not the one in {SETTINGS}); check it out again."
        )
    return _merge(reader, folder)


def _merge(reader: EncoderReader, folder: Path) -> EncoderReader:
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            adapted = PeftModel.from_pretrained(reader.encoder, str(folder))
    except (KeyError, RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise QalibError(f"{folder}: the adapter does not fit its encoder ({reason}).") from None
    reader.encoder = adapted.merge_and_unload()
    return reader


def windows_of(model: str | Path = "") -> WindowConfig:
    """The windows that the reader of a checkpoint folder was trained on."""
    folder = Path(model or DEFAULT_CHECKPOINT)
    if not (folder / SETTINGS).exists():
        return WindowConfig()
    return _config(WindowConfig, _settings(folder), "windows", folder)


def checkpoint_hash(folder: Path) -> str:
    """SHA-256 of the weights in a checkpoint folder, as its settings give it."""
    sha256 = _settings(folder).get("sha256")
    if not isinstance(sha256, str):
        raise QalibError(f"{folder / SETTINGS}: names no sha256 of its weights.")
    return sha256


def _settings(folder: Path) -> dict:
    settings = parse_json(read_bytes(folder / SETTINGS), folder / SETTINGS)
    if not isinstance(settings, dict):
        raise QalibError(f"{folder / SETTINGS}: not a JSON object.")
    return settings


def _config(kind: type[T], stored: dict, key: str, folder: Path) -> T:
    if key not in stored:
        raise QalibError(f"{folder / SETTINGS}: {key!r} is missing.")
    return build(stored[key], kind, f"{folder / SETTINGS}, {key}")
