"""Copies of a model whose encoder layers keep their weights in fewer bits.

Both skim as the model itself does: packed rows of any number go through the same linear layers.
"""

import copy
import warnings

import torch
from torch import nn

from qalib.errors import QalibError


def quantize(model: nn.Module) -> nn.Module:
    """A copy for a CPU whose encoder layers multiply in int8.

    Weights are rounded once, with one scale per output; each call finds the range of its inputs
    ("dynamic"), which makes a row's numbers depend a little on what else is in the batch. To be
    run in float32, without autocast; for inference only. Raises QalibError if a skimmer is
    attached to the model.

    torch has announced that it will drop this way of quantizing; its successor is a package of its
    own. Both call the same kernels.
    """
    names = _linears(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the announcement
        from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

        return quantize_dynamic(model, dict.fromkeys(names, per_channel_dynamic_qconfig))


def halve(model: nn.Module) -> nn.Module:
    """A copy whose encoder layers keep their weights in bf16, to be run under bf16 autocast.

    The numbers are those of autocast alone, which rounds the same weights anew in every pass: at
    batch 1 that takes longer than the products themselves. Raises QalibError if a skimmer is
    attached to the model.
    """
    names, lighter = _linears(model), copy.deepcopy(model)
    for name in names:
        lighter.get_submodule(name).to(torch.bfloat16)
    return lighter


def _linears(model: nn.Module) -> list[str]:
    """Names of the linear layers inside the encoder's layers, which all families keep in a list."""
    if "forward" in vars(model):
        raise QalibError("a skimmer is attached to this model; detach it before copying the model.")
    body = model.base_model
    lists = [name for name, module in body.named_modules() if isinstance(module, nn.ModuleList)]
    prefix = next(name for name, module in model.named_modules() if module is body)
    return [
        f"{prefix}.{name}"
        for name, module in body.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(tuple(f"{x}." for x in lists))
    ]
