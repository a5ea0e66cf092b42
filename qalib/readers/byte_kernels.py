"""The inner loops of the byte-level readers, written for few passes over the memory.

Each computes what torch's own operations would, and is tested against them; between the
convolutions those took longer than the convolutions themselves.

Notation: N rows, L positions, K kernel. Hidden maps are (N, L, channels), which Conv2d calls
channels last: on a CPU its fastest layout, and no copy is needed to get there.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qalib.data.byte_features import SYMBOLS


def look_up(ids: Tensor, real: Tensor, table: Tensor, dilation: int = 1) -> Tensor:
    """``TextConvolution`` by its table (K, 256, width).  ids, real (N, L) -> (N, L, width)"""
    kernel, _, width = table.shape
    table = F.pad(table, (0, 0, 0, 1)).flatten(0, 1)  # row 256 of each tap: no text, zero
    reach = kernel // 2 * dilation
    ids = F.pad(ids.masked_fill(~real, SYMBOLS), (reach, reach), value=SYMBOLS)
    seen = ids.unfold(1, 2 * reach + 1, 1)[..., ::dilation]  # (N, L, K)
    rows = seen + torch.arange(kernel, device=ids.device) * (SYMBOLS + 1)
    return F.embedding_bag(rows.flatten(0, 1), table, mode="sum").view(*real.shape, width)


def convolve(x: Tensor, weight: Tensor, dilation: int = 1) -> Tensor:
    """x (N, L, inputs), weight (width, inputs, 1, K) -> (N, L, width), zero beyond the row"""
    x = x.transpose(1, 2).unsqueeze(2)  # (N, inputs, 1, L), channels last in memory
    made = F.conv2d(x, weight, padding="same", dilation=(1, dilation))
    return made.squeeze(2).transpose(1, 2)


class NormReluDropout(nn.Module):
    """Instance norm over a row's real positions, ReLU, dropout.

        y(l) = dropout(relu((x(l) - mean) / sqrt(variance + epsilon) * scale + shift))

    Mean and variance are a row's own, channel by channel. So every position knows about the whole
    row: only without the norm is a convolutional reader local.
    """

    def __init__(self, width: int, dropout: float = 0.0, normalise: bool = True):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))
        self.normalise, self.dropout = normalise, dropout

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """x (N, L, width), real (N, L) -> (N, L, width), zero at padding; statistics in fp32"""
        real = real[:, :, None].to(x.dtype)
        dropped = self.dropout if self.training else 0.0
        return _NormReluDropout.apply(x, real, self.scale, self.shift, self.normalise, dropped)


class _NormReluDropout(torch.autograd.Function):
    """``NormReluDropout`` with its gradient by hand, in few passes over the memory.

    Composed of torch's own operations it took longer than the convolutions it stands between.
    Dropout costs a random byte a value, at a rate rounded to 1/256.
    """

    EPSILON = 1e-5

    @staticmethod
    def forward(ctx, x, real, scale, shift, normalise, rate):
        x, dropped = x * real, round(256 * rate)
        keep = 256 / (256 - dropped)  # k relu(z) = relu(k z): dropout's factor goes in front
        slope, offset = keep * scale.expand(len(x), 1, -1), keep * shift
        count = mean = deviation = None
        if normalise:
            precise = torch.promote_types(x.dtype, torch.float32)
            count = real.sum(dim=1, keepdim=True, dtype=precise).clamp(min=1)
            wide = x.to(precise, copy=True)
            mean = wide.sum(dim=1, keepdim=True) / count
            square = wide.square_().sum(dim=1, keepdim=True) / count
            variance = (square - mean.square()).clamp(min=0)
            deviation = (variance + _NormReluDropout.EPSILON).sqrt()
            slope = slope / deviation
            offset = offset - mean * slope
        y = torch.addcmul(offset.to(x.dtype), x, slope.to(x.dtype)).relu_().mul_(real)
        if dropped:
            y.mul_(_kept(y.shape, dropped, y.device).to(y.dtype))
        ctx.save_for_backward(x, y, real, slope, mean, deviation, count)
        ctx.keep = keep
        return y

    @staticmethod
    def backward(ctx, gradient):
        """With g = dy where y > 0, slope = k scale / deviation and z = (x - mean) / deviation,

        dshift = k sum g,  dscale = k sum g z,  dx = slope (g - (sum g + z sum g z) / count)
        """
        x, y, real, slope, mean, deviation, count = ctx.saved_tensors
        g = torch.ops.aten.threshold_backward(gradient.to(y.dtype), y, 0)  # 0: dropped or padded
        ones = real.transpose(1, 2)  # a product with it sums over the positions
        total, along = (ones @ g).to(slope.dtype), (ones @ (g * x)).to(slope.dtype)
        dx = g * slope.to(x.dtype)
        if mean is not None:
            along = (along - mean * total) / deviation
            by_x = -slope * along / (deviation * count)
            everywhere = -slope * total / count - by_x * mean
            dx.addcmul_(x, by_x.to(x.dtype)).addcmul_(real, everywhere.to(x.dtype))
        dscale, dshift = (ctx.keep * part.sum(dim=(0, 1)) for part in (along, total))
        return dx, None, dscale, dshift, None, None


def _kept(shape: torch.Size, dropped: int, device: torch.device) -> Tensor:
    """Random 0 and 1, int8, 0 with probability dropped / 256; eight random bytes at a draw."""
    draws = torch.empty(-(-shape.numel() // 8), dtype=torch.int64, device=device)
    draws = draws.random_(-(2**63), None).view(torch.int8)[: shape.numel()].view(shape)
    least = dropped - 128
    return draws.clamp_(least - 1, least).sub_(least - 1)


def flip(x: Tensor, real: Tensor) -> Tensor:
    """Reverse the real positions of every row and leave padding where it is.  (N, L, D), (N, L)"""
    place = torch.arange(x.shape[1], device=x.device)
    source = torch.where(real, real.sum(dim=1, keepdim=True) - 1 - place, place)
    row = torch.arange(len(x), device=x.device)[:, None] * x.shape[1]
    return _Rearrange.apply(x, (row + source).flatten())


class _Rearrange(torch.autograd.Function):
    """Rows in another order, for an order that undoes itself: so backwards is forwards again.

    Copying whole rows both ways is several times faster than gather and its scattered gradient.
    """

    @staticmethod
    def forward(ctx, x: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return x.flatten(0, 1).index_select(0, order).view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (order,) = ctx.saved_tensors
        return gradient.flatten(0, 1).index_select(0, order).view_as(gradient), None
