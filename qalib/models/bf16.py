"""Copies of a model whose encoder layers keep their weights in fewer bits.

Both skim as the model itself does: packed rows of any number go through the same linear layers.
"""

import copy
import warnings

import torch
from torch import nn

from qalib.errors import QalibError

PORTION = 256  # rows


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


def to_bf16(model: nn.Module) -> nn.Module:
    """A copy whose encoder layers keep their weights in bf16, to be run under bf16 autocast.

    The numbers are those of autocast alone, which rounds the same weights anew in every pass: at
    batch 1 that takes longer than the products themselves. On a CPU the weights are laid out for
    its matrix units as well, which a plain product does anew in every pass, too, however few its
    rows are. For inference only. Raises QalibError if a skimmer is attached to the model.
    """
    names, lighter = _linears(model), copy.deepcopy(model)
    for name in names:
        linear = lighter.get_submodule(name).to(torch.bfloat16)
        try:
            lighter.set_submodule(name, PrepackedLinear(linear))
        except (AttributeError, NotImplementedError, RuntimeError):
            continue  # not on this processor, or not by this torch: bf16 it is all the same
    return lighter


class PrepackedLinear(nn.Module):
    """A linear layer in bf16 whose weights lie as the CPU's matrix units read them.

    (..., in) any dtype -> (..., out) bf16, what ``linear`` itself gives but for the order of its
    sums. Built on the operators by which torch freezes compiled models: without them, it raises.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        if linear.weight.device.type != "cpu":
            raise NotImplementedError("only a CPU wants other layouts.")
        self.in_features, self.out_features = linear.in_features, linear.out_features
        with torch.no_grad():
            self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = None if linear.bias is None else linear.bias.detach()
        self(torch.zeros(1, self.in_features))  # better now than in the middle of a batch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        x, rows = x.to(torch.bfloat16), x.numel() // self.in_features
        # For some hundred rows, and outputs neither narrow nor wider than the inputs, the library
        # leaves all cores but one idle: 4.2 microseconds a row of 3,072 to 768 in place of 2.1.
        idle = 2 * PORTION <= rows < 6 * PORTION and 512 < self.out_features <= self.in_features
        flat = pad_rows(x)
        parts = [self._multiply(part) for part in (flat.split(PORTION) if idle else [flat])]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        return whole[:rows].view(*x.shape[:-1], self.out_features)

    def _multiply(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def pad_rows(states: torch.Tensor) -> torch.Tensor:
    """Rows of states with others behind them, up to a number that comes often.  (..., D) -> (T, D)

    In bf16 on a CPU only, elsewhere T is what it was. What is added means nothing and is at most a
    sixteenth beyond 128 rows. For a number of rows that it has not met the library writes machine
    code, one to two milliseconds for a product that takes a tenth of one, and it remembers about a
    thousand products.
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
