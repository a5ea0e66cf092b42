"""Encoders with bf16 or int8 weights for inference on a CPU.

Private operators of torch are used in this file only: ``torch.ops.mkldnn._reorder_linear_weight``
and ``torch.ops.mkldnn._linear_pointwise``, by which torch freezes compiled models.
"""

import copy
import warnings

import torch
from torch import nn

CHUNK = 256  # rows


def to_bf16(model: nn.Module) -> nn.Module:
    """A copy whose encoder layers have bf16 weights, to be run under bf16 autocast.

    The result is that of autocast alone, which rounds the same weights again in every pass. On a
    CPU the weights are also packed for its matrix units. For inference only.
    """
    lighter = copy.deepcopy(model)
    for name in linear_layers(model):
        linear = lighter.get_submodule(name).to(torch.bfloat16)
        try:
            lighter.set_submodule(name, PrepackedLinear(linear))
        except (AttributeError, NotImplementedError, RuntimeError):
            continue  # this processor or this torch cannot pack weights; bf16 works anyway
    return lighter


def quantize(model: nn.Module) -> nn.Module:
    """A copy for a CPU whose encoder layers multiply in int8, to be run in float32.

    Weights are rounded once, with one scale per output, and inputs by the range of each call, so a
    row depends slightly on the rest of its batch. For inference only.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the removal of its own quantization
        from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

        layers = dict.fromkeys(linear_layers(model), per_channel_dynamic_qconfig)
        return quantize_dynamic(model, layers)


class PrepackedLinear(nn.Module):
    """A linear layer in bf16 with weights packed for the CPU's matrix units.

    (..., in) any dtype -> (..., out) bf16, equal to ``linear`` up to the order of summation.
    Raises NotImplementedError, AttributeError or RuntimeError where packing is not available.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        if linear.weight.device.type != "cpu":
            raise NotImplementedError("weights are packed for CPUs only.")
        self.in_features, self.out_features = linear.in_features, linear.out_features
        with torch.no_grad():
            self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = None if linear.bias is None else linear.bias.detach()
        self(torch.zeros(1, self.in_features))  # fail here rather than in the middle of a batch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, rows = x.to(torch.bfloat16), x.numel() // self.in_features
        # For some hundred rows, and outputs neither narrow nor wider than the inputs, the library
        # leaves all cores but one idle: 4.2 microseconds a row of 3,072 to 768 instead of 2.1.
        idle = 2 * CHUNK <= rows < 6 * CHUNK and 512 < self.out_features <= self.in_features
        flat = pad_rows(x)
        parts = [self._multiply(part) for part in (flat.split(CHUNK) if idle else [flat])]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        return whole[:rows].view(*x.shape[:-1], self.out_features)

    def _multiply(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def pad_rows(states: torch.Tensor) -> torch.Tensor:
    """Pad the number of rows to one of few values.  (..., D) -> (T, D), T not below the rows given

    Only in bf16 on a CPU, where the library compiles a kernel, one to two milliseconds, for every
    new number of rows. The added rows are undefined, at most 1/16 of them beyond 128 rows.
    """
    rows = states.flatten(0, -2)
    if rows.dtype != torch.bfloat16 or rows.device.type != "cpu":
        return rows
    missing = -len(rows) % max(8, 2 ** (len(rows).bit_length() - 5))
    if not missing:
        return rows
    filled = rows.new_empty(len(rows) + missing, rows.shape[1])
    filled[: len(rows)] = rows
    return filled


def linear_layers(model: nn.Module) -> list[str]:
    """Names of the linear layers in the encoder's layers, a ModuleList in all model types."""
    body = model.base_model
    lists = [name for name, module in body.named_modules() if isinstance(module, nn.ModuleList)]
    prefix = next(name for name, module in model.named_modules() if module is body)
    return [
        f"{prefix}.{name}" if prefix else name
        for name, module in body.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(tuple(f"{x}." for x in lists))
    ]
