"""Load readers from a model folder, the Hugging Face hub or a run, and save them.

:func:`save_model` writes a plain transformers folder, with the window settings in ``qalib.json``.

A published reader is an adapter. Its folder holds ``qalib.json`` (encoder, windows, SHA-256 of the
weights, passage digests), the adapter in the format of ``peft``, in fp16, and a model card. Weight
matrices of the layers were trained as low-rank changes, W + B A; biases, norms, small embeddings
and the span head are stored in full; word embeddings are not trained.
"""

import json
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from qalib.checkpoints import load_weights, put_weights, save_weights
from qalib.data.formats import parse_json, read_bytes
from qalib.data.schema import file_sha256
from qalib.data.windows import WindowConfig, fit_windows
from qalib.errors import QalibError
from qalib.models import folders
from qalib.models.bf16 import linear_layers
from qalib.models.encoder import EncoderConfig, EncoderReader, build_encoder, quiet
from qalib.paths import ROOT, store_dir
from qalib.settings import build

DEFAULT_CHECKPOINT = ROOT / "data" / "checkpoints" / "minilm-l6-squad"
BASE_CHECKPOINT = ROOT / "data" / "checkpoints" / "mpnet-base-squad"
SETTINGS, ADAPTER, WEIGHTS = "qalib.json", "adapter_config.json", "adapter_model.safetensors"
LINEAR = r".*\.layer\.\d+\..*(query|key|value|dense|attn\.[qkvo])"  # layer names of BERT and MPNet
WHOLE = ["qa_outputs", "LayerNorm", "position_embeddings", "token_type_embeddings"]
WHOLE += ["relative_attention_bias"]
CARD = "---\nlibrary_name: transformers\npipeline_tag: question-answering\n---\n"


class LowRankChange(nn.Module):
    """W -> W + B A, with B (M, R) initially 0 (LoRA, Hu et al. 2021), for ``parametrize``."""

    def __init__(self, rows: int, columns: int, rank: int):
        super().__init__()
        self.left = nn.Parameter(torch.zeros(rows, rank))
        self.right = nn.Parameter(torch.empty(rank, columns).uniform_(-1, 1) * columns**-0.5)

    def forward(self, weight: Tensor) -> Tensor:
        """W (M, N) -> (M, N)"""
        return weight + self.left @ self.right


def train_low_rank(encoder: nn.Module, rank: int) -> None:
    """Freeze the weight matrices of an encoder's layers; a low-rank change of each is trained."""
    for name in linear_layers(encoder):
        linear = encoder.get_submodule(name)
        linear.weight.requires_grad_(False)
        change = LowRankChange(*linear.weight.shape, rank)
        parametrize.register_parametrization(linear, "weight", change)
        linear.forward = partial(low_rank_linear, linear)


def low_rank_linear(linear: nn.Linear, x: Tensor) -> Tensor:
    """x (..., N) -> W x + b + B (A x) (..., M): no gradient of the size of W is computed."""
    weight = linear.parametrizations.weight
    change = F.linear(F.linear(x, weight[0].right), weight[0].left)
    return F.linear(x, weight.original, linear.bias) + change


def merge_low_rank(encoder: nn.Module) -> None:
    """Undo :func:`train_low_rank`, with the sums W + B A as plain weights."""
    for name in linear_layers(encoder):
        linear = encoder.get_submodule(name)
        del linear.forward
        parametrize.remove_parametrizations(linear, "weight")


def save_reader(
    folder: Path,
    encoder: EncoderConfig,
    windows: WindowConfig,
    trained: dict[str, Tensor],
    rank: int,
    passages: Sequence[str] = (),
) -> None:
    """Write an adapter folder. ``trained``: tensors by name, after :func:`train_low_rank`."""
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    reader = build_encoder(encoder)
    lora = LoraConfig(
        r=rank, lora_alpha=rank, target_modules=LINEAR, bias="lora_only", modules_to_save=WHOLE
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers
        adapter = get_peft_model(reader.encoder, lora)
    tensors = {}
    for key in get_peft_model_state_dict(adapter):
        change = ".parametrizations.weight.0."
        name = _parameter(key).replace(".lora_A.weight", f"{change}right")
        tensors[key] = trained[name.replace(".lora_B.weight", f"{change}left")]
    folder.mkdir(parents=True, exist_ok=True)
    lora.base_model_name_or_path = folders.HUB.get(encoder.name, encoder.name)
    lora.save_pretrained(folder)
    save_weights({n: t.to(torch.float16) for n, t in tensors.items()}, folder / WEIGHTS)
    sha256 = file_sha256(folder / WEIGHTS)
    settings = {"encoder": asdict(encoder), "windows": asdict(windows), "sha256": sha256}
    _write_settings(folder, settings | {"passages": list(passages)})


def _parameter(key: str) -> str:
    """The name in an EncoderReader of a tensor in a peft file."""
    return key.replace("base_model.model.", "encoder.", 1).replace(".base_layer.", ".")


def save_model(
    folder: str | Path,
    reader: EncoderReader,
    windows: WindowConfig,
    card: str = "",
    passages: Sequence[str] = (),
) -> None:
    """Write a model folder that transformers can load, with its windows and ``card`` (README.md).

    ``passages``: digests of passages it was trained on (``data.schema.passage_digests``). Raises
    QalibError if the folder exists and is not empty. It is written completely or not at all.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise QalibError(f"{folder}: exists already; name a new folder, or remove it first.")
    partial = folder.with_name(folder.name + ".saving")  # .partial may hold a run's checkpoints
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with quiet():
        reader.encoder.save_pretrained(partial)
    reader.tokenizer.backend_tokenizer.no_truncation()  # set by its last call
    reader.tokenizer.backend_tokenizer.no_padding()
    reader.tokenizer.save_pretrained(partial)
    files = {path.name: file_sha256(path) for path in sorted(partial.iterdir())}
    settings = {"windows": asdict(windows), "passages": list(passages), "files": files}
    _write_settings(partial, settings)
    (partial / "README.md").write_text(card or CARD, encoding="utf-8", errors="backslashreplace")
    partial.replace(folder)


def load_reader(model: str | Path = "", new_head: bool = False) -> EncoderReader:
    """Load a model's reader in float32, with adapters merged and every parameter trainable.

    ``model``: "" or "minilm-l6-squad" for the published reader, "minilm-l6", a folder written by
    transformers, peft or :func:`save_model`, a run of ``train-encoder`` or ``train-adapter`` (its
    folder, or its name in the store), or a name on the hub.
    ``new_head``: allow a missing span head, which is initialised and named in ``untrained``.
    Raises QalibError if files are missing, damaged or do not fit, or if the head is not trained.
    """
    folder = model_path(model)
    settings = _settings(folder)
    for name, sha256 in settings.get("files", {}).items():
        if (folder / name).is_file() and file_sha256(folder / name) != sha256:
            raise QalibError(
                f"{folder / name}: damaged or changed since it was written (its SHA-256 is not the "
                f"one in {SETTINGS}); copy it again, or remove {SETTINGS} if the change is yours."
            )
    if "encoder" in settings:
        reader = _load_checkpoint(folder, settings)
    elif (folder / ADAPTER).is_file():
        reader = _load_adapter(folder)
    elif run := _run_settings(folder):
        reader = _load_run(folder, run)
    else:
        reader = build_encoder(EncoderConfig(name=str(folder.absolute()), train_embeddings=True))
    if reader.untrained and not new_head:
        raise QalibError(
            f"{folder}: this model has no trained question-answering head ({min(reader.untrained)} "
            f"is missing); train one first: qalib train DATA --model {model} --output FOLDER."
        )
    return reader.requires_grad_()


def model_path(model: str | Path = "") -> Path:
    """The local folder of a model, named as for :func:`load_reader`."""
    if not model:
        return DEFAULT_CHECKPOINT
    if not Path(model).is_dir():
        for place in (DEFAULT_CHECKPOINT.parent, store_dir()):  # published models, then runs
            if (place / model).is_dir():
                return place / model
    return folders.model_folder(str(model))


def _load_checkpoint(folder: Path, settings: dict) -> EncoderReader:
    """Load a folder of :func:`save_reader`: W + B A, and the other tensors as stored."""
    reader = build_encoder(
        build(settings.get("encoder"), EncoderConfig, f"{folder / SETTINGS}, encoder")
    )
    weights = folder / WEIGHTS
    tensors = {_parameter(key): tensor.float() for key, tensor in load_weights(weights).items()}
    if file_sha256(weights) != checkpoint_hash(folder):
        raise QalibError(
            f"{weights}: damaged (its checksum is not the one in {SETTINGS}); check it out again."
        )
    own = dict(reader.named_parameters())
    for name in [name for name in tensors if ".lora_A." in name]:
        right, left = tensors.pop(name), tensors.pop(name.replace("lora_A", "lora_B"))
        weight = name.replace(".lora_A", "")
        tensors[weight] = own[weight].detach() + left @ right
    put_weights(reader, tensors, str(weights))
    reader.untrained = frozenset()
    return reader


def _load_adapter(folder: Path) -> EncoderReader:
    """Load a peft folder: its base model, and the tokenizer saved with the adapter, if any."""
    from peft import PeftModel

    reader = build_encoder(EncoderConfig(name=str(_base(folder).absolute()), train_embeddings=True))
    if (folder / "tokenizer_config.json").is_file():
        rows = reader.encoder.get_input_embeddings().weight.shape[0]
        tokenizer = folders.load_tokenizer(folder, rows)
        reader = EncoderReader(reader.encoder, tokenizer, reader.untrained)
    tensors = load_weights(folder / WEIGHTS)  # raises a clear error if they are missing or damaged
    reader.untrained -= {key.removeprefix("base_model.model.") for key in tensors}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("error", "Found missing adapter keys")
            adapted = PeftModel.from_pretrained(reader.encoder, str(folder))
            reader.encoder = adapted.merge_and_unload()
    except Exception as error:  # peft passes on errors of any kind
        raise QalibError(
            f"{folder}: the adapter does not fit its encoder ({folders.first_line(error)})."
        ) from None
    return reader


def _base(folder: Path) -> Path:
    """The folder of a peft adapter's base model."""
    name = str(_read(folder / ADAPTER).get("base_model_name_or_path"))
    try:
        return folders.model_folder(name)
    except QalibError as error:
        raise QalibError(f"{folder}: the base of this adapter is missing: {error}") from None


def _load_run(folder: Path, run: dict) -> EncoderReader:
    """Load the reader of a ``train-encoder`` or ``train-adapter`` run."""
    own = run["config"]
    if run.get("stage") not in ("train-encoder", "train-adapter") or own.get("layers"):
        raise QalibError(
            f"{folder}: a run of the stage {run.get('stage')!r}; only those of 'train-encoder' and "
            "'train-adapter' with a whole encoder, and models of transformers, can be loaded."
        )
    place, weights = folder / "config.json", folder / "weights.safetensors"
    try:
        config = build(own.get("encoder"), EncoderConfig, f"{place}, encoder")
        reader, tensors = build_encoder(config, own.get("seed", 0)), load_weights(weights)
        if rank := own.get("rank"):
            train_low_rank(reader.encoder, rank)
        put_weights(reader, tensors, str(weights))
    except QalibError as error:
        raise QalibError(f"{folder}: the encoder of this run cannot be loaded: {error}") from None
    if rank:
        merge_low_rank(reader.encoder)
    reader.untrained -= {key.removeprefix("encoder.") for key in tensors}
    return reader


def windows_of(model: str | Path = "") -> WindowConfig:
    """The windows that a model was trained with, else the defaults, shortened if it takes less."""
    folder = model_path(model)
    settings = _settings(folder)
    if "encoder" in settings or "windows" in settings:
        return build(settings.get("windows"), WindowConfig, f"{folder / SETTINGS}, windows")
    if (folder / ADAPTER).is_file():
        return windows_of(_base(folder))
    if run := _run_settings(folder):
        place = f"{folder / 'config.json'} (train it again if an older version wrote it), windows"
        return build(run["config"].get("windows"), WindowConfig, place)
    return fit_windows(folders.position_limit(folders.load_config(folder)))


def passages_of(model: str | Path = "") -> list[str]:
    """Digests of passages that a model was trained on, [] if its folder records none."""
    found = _settings(model_path(model)).get("passages")
    return found if isinstance(found, list) else []


def checkpoint_hash(folder: Path) -> str:
    """The SHA-256 of the weights in a folder's ``qalib.json``. Raises QalibError if it has none."""
    sha256 = _settings(folder).get("sha256")
    if not isinstance(sha256, str):
        raise QalibError(f"{folder / SETTINGS}: names no sha256 of its weights.")
    return sha256


def check_published(sha256: str) -> None:
    """Raise QalibError if ``sha256`` is not that of the published reader's weights."""
    if sha256 != (here := checkpoint_hash(DEFAULT_CHECKPOINT)):
        raise QalibError(
            f"the published reader is {here[:12]}, not {sha256[:12]}; results of an earlier one "
            "exist as records only."
        )


def _settings(folder: Path) -> dict:
    """The content of ``qalib.json``, or {} if there is no such file."""
    return _read(folder / SETTINGS) if (folder / SETTINGS).exists() else {}


def _run_settings(folder: Path) -> dict:
    """The content of a run's ``config.json``, or {} for other folders."""
    path = folder / "config.json"
    stored = _read(path) if path.is_file() else {}
    if not isinstance(config := stored.get("config"), dict) or "stage" not in stored:
        return {}
    config |= config.get("base", {})  # train-adapter nests its encoder's settings there
    return stored


def _write_settings(folder: Path, settings: dict) -> None:
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _read(path: Path) -> dict:
    stored = parse_json(read_bytes(path), path)
    if not isinstance(stored, dict):
        raise QalibError(f"{path}: not a JSON object.")
    return stored
