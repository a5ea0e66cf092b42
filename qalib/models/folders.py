"""Folders with a Hugging Face model: where they are, and what they must hold.

Nothing is unpickled and no code of a model is run: weights are read from safetensors only.
"""

import json
from pathlib import Path

from qalib.errors import QalibError

WEIGHTS = "model.safetensors"
FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "bpe.codes"]  # what is downloaded
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model", "bpe.codes")
LFS = b"version https://git-lfs"
OFFSET = {  # types whose positions begin behind the padding token's number
    *("camembert", "data2vec-text", "ibert", "layoutlmv3", "lilt", "longformer", "luke"),
    *("markuplm", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl"),
    "xmod",
}


def find_model(name: str) -> Path:
    """The folder of this name, or that of a model on the Hugging Face hub, downloaded if it is new.

    Raises QalibError if there is neither.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise QalibError(f"{name}: a file; name the folder of a model.")
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=FILES, ignore_patterns="*/*"))
    except errors.HFValidationError:
        reason = "nor a name of the Hugging Face hub"
    except errors.GatedRepoError:
        reason = "and on the hub its licence must be accepted first (hf auth login)"
    except errors.RepositoryNotFoundError:
        reason = "and the hub has no public model of this name"
    except errors.LocalEntryNotFoundError:
        reason = "and the hub cannot be reached to download it"
    except (OSError, ValueError) as error:
        reason = f"and it cannot be downloaded from the hub ({first_line(error)})"
    raise QalibError(
        f"the model {name!r} is no folder here, {reason}; name a folder or a model on the hub."
    )


def check_files(folder: Path, weights: bool = True) -> None:
    """Raise QalibError if a file is missing, cut short or a pointer of Git LFS.

    ``weights``: whether there must be weights in safetensors.
    """
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.stat().st_size < 1024 and path.read_bytes().startswith(LFS):
            raise QalibError(
                f"{path}: a pointer of Git LFS, not the file itself; run `git lfs pull` there."
            )
    if not (folder / "config.json").is_file():
        raise QalibError(
            f"{folder}: no model here; the folder of one holds config.json or adapter_config.json."
        )
    if not any(next(folder.glob(name), None) for name in TOKENIZERS):
        raise QalibError(
            f"{folder}: no tokenizer here ({', '.join(TOKENIZERS)}); save that of the model it was "
            "trained from: AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER)."
        )
    for path in _weight_files(folder) if weights else ():
        check_safetensors(path)


def _weight_files(folder: Path) -> list[Path]:
    """The files of the weights, one or several shards. Raises QalibError if one is missing."""
    index = folder / f"{WEIGHTS}.index.json"
    names = {WEIGHTS}
    if not (folder / WEIGHTS).is_file() and index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError):
            raise QalibError(f"{index}: no index of weights; save the model again.") from None
    for name in sorted(map(str, names)):
        if not (folder / name).is_file():
            old = next((p.name for p in folder.glob("*.bin")), "")
            convert = (
                'convert them once: python -c "from transformers import AutoModelForQuestion'
                f"Answering as M; M.from_pretrained('{folder}').save_pretrained('{folder}')\"."
            )
            held = f"{old} is read by no command here, being a pickle; " if old else ""
            raise QalibError(f"{folder / name}: no such weights; {held}{convert}")
    return [folder / name for name in sorted(names)]


def check_safetensors(path: Path) -> None:
    """Raise QalibError if a safetensors file is damaged or shorter than its header says."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        raise QalibError(f"{path}: damaged weights ({error}); copy them again.") from None


def load_config(folder: Path):
    """The configuration in a folder, as transformers reads it. Raises QalibError if it cannot."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # what is in a JSON file can make anything fail
        raise QalibError(
            f"{folder / 'config.json'}: no configuration that transformers can read "
            f"({first_line(error)})."
        ) from None


def load_tokenizer(folder: Path, rows: int):
    """The fast tokenizer in a folder, for a model with ``rows`` rows of word embeddings.

    Raises QalibError if it cannot be loaded, has no character offsets, or is another model's.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises nothing narrower
        raise QalibError(
            f"{folder}: its tokenizer cannot be loaded ({first_line(error)})."
        ) from None
    if not tokenizer.is_fast:
        raise QalibError(
            f"{folder}: its tokenizer {type(tokenizer).__name__} gives no character offsets; use a "
            "model with a fast tokenizer."
        )
    if not 0.75 * rows <= len(tokenizer) <= rows:  # models round their number of rows up
        raise QalibError(
            f"{folder}: a tokenizer of {len(tokenizer):,} tokens does not belong to a model with "
            f"embeddings of {rows:,}; save that of the model it was trained from beside it."
        )
    return tokenizer


def position_limit(config) -> int | None:
    """The longest input of a model in tokens, or None where positions are not limited.

    RoBERTa and its kin number positions from ``pad_token_id + 1``. Inputs are padded to a multiple
    of 8, so the limit is one.
    """
    limit = getattr(config, "max_encoder_position_embeddings", None)  # LED
    limit = limit or getattr(config, "max_position_embeddings", None)
    relative = getattr(config, "position_biased_input", True) is False  # some DeBERTa-v2
    if not isinstance(limit, int) or limit < 1 or relative:
        return None
    if config.model_type in OFFSET:
        limit -= (config.pad_token_id or 0) + 1
    return limit // 8 * 8


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its class where there is none."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
