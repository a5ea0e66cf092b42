"""The choice of a precision, and encoders with bf16 or int8 weights for inference on a CPU.

Only this file calls private operators of torch: ``torch.ops.mkldnn._reorder_linear_weight`` and
``torch.ops.mkldnn._linear_pointwise``, which torch itself uses when it freezes compiled models.
"""

import copy
import warnings

import torch
from torch import nn

CHUNK = 256  # rows


def choose_precision(wanted: str = "auto", device: str = "cpu") -> tuple[str, str]:
    """("bf16" or "fp32", reason). "auto": bf16 on a GPU with bf16 units or a CPU with AMX."""
    if wanted != "auto":
        return wanted, "as configured"
    if device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16", "the GPU has bf16 units"
    if device == "cpu" and torch.cpu._is_amx_tile_supported():
        return "bf16", "the processor has AMX"
    missing = {"cuda": "the GPU has no bf16 units", "cpu": "the processor has no AMX"}
    return "fp32", missing.get(device, f"bf16 was not tried on {device}")


def to_bf16(model: nn.Module) -> nn.Module:
    """A copy whose encoder layers have bf16 weights, to be run under bf16 autocast.

    The outputs equal those of autocast alone, which casts the same weights in every forward pass.
    On a CPU that supports it the weights are also packed for its matrix units. For inference only.
    """
    lighter = copy.deepcopy(model)
    for name in linear_layers(model):
        linear = lighter.get_submodule(name).to(torch.bfloat16)
        try:
            lighter.set_submodule(name, PrepackedLinear(linear))
        except (AttributeError, NotImplementedError, RuntimeError):
            continue  # no packing on this processor or in this torch: keep the plain bf16 layer
    return lighter


def quantize(model: nn.Module) -> nn.Module:
    """A copy for a CPU whose encoder layers multiply in int8, to be run in float32.

    Weights are quantized once, with one scale per output feature; inputs in every call, with one
    scale for the call, so a row depends slightly on the rest of its batch. For inference only.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao.quantization is deprecated
        from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

        layers = dict.fromkeys(linear_layers(model), per_channel_dynamic_qconfig)
        return quantize_dynamic(model, layers)


class PrepackedLinear(nn.Module):
    """A bf16 linear layer with weights packed for the CPU's matrix units.

    (..., in) of any dtype -> (..., out) bf16, equal to ``linear`` up to the order of summation.
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
        # In this range oneDNN uses a single core, unless the rows are split: 4.2 instead of 2.1
        # microseconds per row for 3,072 input and 768 output features.
        idle = 2 * CHUNK <= rows < 6 * CHUNK and 512 < self.out_features <= self.in_features
        flat = pad_rows(x)
        parts = [self._multiply(part) for part in (flat.split(CHUNK) if idle else [flat])]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        return whole[:rows].view(*x.shape[:-1], self.out_features)

    def _multiply(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def pad_rows(states: torch.Tensor) -> torch.Tensor:
    """Round the number of rows N up to one of a few values.  (..., D) -> (T, D), T >= N

    Only in bf16 on a CPU, where oneDNN compiles a kernel for every new number of rows, which takes
    one to two milliseconds. The added rows are uninitialised; for N >= 128 they are at most N / 16.
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
    """Names of the linear layers in an encoder's layers, a ModuleList in every model type."""
    body = model.base_model
    lists = [name for name, module in body.named_modules() if isinstance(module, nn.ModuleList)]
    prefix = next(name for name, module in model.named_modules() if module is body)
    return [
        f"{prefix}.{name}" if prefix else name
        for name, module in body.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(tuple(f"{x}." for x in lists))
    ]
