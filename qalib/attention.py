"""Two exchanges inside an unmodified encoder that make training on a CPU several times faster.

Neither changes what is computed beyond rounding. Measured by ``python -m qalib bench train``.

- Attention. The fused CPU kernel is fast forwards but slow backwards;
  two bf16 matrix products and a softmax are faster in training. Evaluation keeps the fused one.
- Dropout. Drawing one Bernoulli variable per activation is slow; one random byte
  per activation is enough, at a rate rounded to 1/256.

Notation: B batch, H heads, L tokens, D head width.
"""

import torch
from torch import Tensor, nn

ATTENTION = "qalib"


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options
) -> tuple[Tensor, None]:
    """softmax(Q K^T / sqrt(D)) V.  query, key, value (B, H, L, D) -> (B, L, H, D)

    Written out while training on a CPU without attention dropout, the fused kernel otherwise.
    ``mask``: boolean, true = visible, or additive, broadcastable to (B, H, L, L).
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    options.setdefault("is_causal", False)  # encoders look both ways
    plain = module.training and query.device.type == "cpu" and not options.get("dropout")
    if not plain or key.shape[1] != query.shape[1]:
        return sdpa_attention_forward(module, query, key, value, mask, **options)
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    scores = (query * scale) @ key.transpose(-1, -2)  # (B, H, L, L)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    return (scores.softmax(dim=-1) @ value).transpose(1, 2).contiguous(), None


def register_attention() -> str:
    """Make ``attention`` known to transformers; returns its name. Safe to call again."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    return ATTENTION


class ByteDropout(nn.Module):
    """Dropout from one random byte per value: x_i / (1 - q) if byte_i >= 256 q, else 0.

    The rate q is ``p`` rounded to 1/256. On other devices than a CPU this is ordinary dropout.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        cut = round(self.p * 256)
        if not self.training or cut == 0:
            return x
        if x.device.type != "cpu":
            return nn.functional.dropout(x, self.p)
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        noise = words.view(torch.uint8)[: x.numel()].view(x.shape)
        return torch.where(noise >= cut, x * (256 / (256 - cut)), x.new_zeros(()))

    def extra_repr(self) -> str:
        return f"p={self.p}"


def use_byte_dropout(model: nn.Module) -> None:
    """Replace every ``nn.Dropout`` inside ``model`` by ``ByteDropout`` of the same rate."""
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, ByteDropout(child.p))
