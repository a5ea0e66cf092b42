"""Checkpoints of a training run and weights on disk: safetensors and JSON, written atomically.

``folder/checkpoint-000200/`` holds model.safetensors, optimizer.safetensors, state.json and one
random-<rank>.safetensors per process. It is written under a temporary name and renamed at the end,
so a checkpoint is either complete or absent.
"""

import json
import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

from qalib.errors import QalibError


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that training can change: trainable parameters and all buffers, by name."""
    moved = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return moved | dict(model.named_buffers())


def save_weights(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors to a safetensors file, completely or not at all."""
    from safetensors.torch import save_file

    partial = path.with_name(path.name + ".partial")
    ready = {name: t.detach().to("cpu").contiguous().clone() for name, t in tensors.items()}
    save_file(ready, partial)
    partial.replace(path)


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file. Raises QalibError if it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise QalibError(f"{path}: no such weights file.")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise QalibError(f"{path}: damaged weights ({error}); fetch or train them again.") from None


def put_weights(model: nn.Module, tensors: dict[str, Tensor], source: str = "weights") -> None:
    """Copy tensors into parameters and buffers by name. Raises QalibError if one does not fit."""
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape:
            here = tuple(own[name].shape) if name in own else "nothing"
            raise QalibError(
                f"{source}: {name!r} of shape {tuple(tensor.shape)} does not fit this model, "
                f"which has {here} there; use the model that the weights were made for."
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def save_checkpoint(folder: Path, step: int, model, optimizer, state: dict, accelerator) -> None:
    """Write ``checkpoint-<step>``, then remove the older ones; every process must call this.

    A complete checkpoint exists at all times: a second one of the same step is named "...-again".
    """
    target = folder / f"checkpoint-{step:06d}"
    if target.exists():
        target = folder / f"{target.name}-again"
    partial = folder / f"{target.name}.partial"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    random = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        random["cuda"] = torch.cuda.get_rng_state()
    save_weights(random, partial / f"random-{accelerator.process_index}.safetensors")
    if accelerator.is_main_process:
        save_weights(trained_tensors(model), partial / "model.safetensors")
        tensors = {  # keys: parameter index and name
            f"{number}.{name}": torch.as_tensor(value)
            for number, entry in optimizer.state_dict()["state"].items()
            for name, value in entry.items()
        }
        save_weights(tensors, partial / "optimizer.safetensors")
        (partial / "state.json").write_text(json.dumps(state))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        partial.replace(target)
        for old in folder.glob("checkpoint-*"):
            if old != target:
                shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in ``folder``, or None."""
    found = [p for p in sorted(folder.glob("checkpoint-*")) if p.suffix != ".partial"]
    return found[-1] if found else None


def load_checkpoint(path: Path, model, optimizer, accelerator) -> dict:
    """Restore model, optimiser and random state; return the saved ``state``.

    Raises QalibError if the checkpoint does not fit the model or was saved by another number of
    processes.
    """
    put_weights(model, load_weights(path / "model.safetensors"), str(path))
    _restore_optimizer(optimizer, load_weights(path / "optimizer.safetensors"))
    saved = len(list(path.glob("random-*.safetensors")))
    if saved != accelerator.num_processes:
        raise QalibError(f"{path}: saved by {saved} processes; resume with as many.")
    state = load_weights(path / f"random-{accelerator.process_index}.safetensors")
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    return json.loads((path / "state.json").read_text())


def _restore_optimizer(optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    whole = optimizer.state_dict()
    optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})
