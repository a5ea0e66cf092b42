"""The attention of a layer by the fused kernel, and of its map only what is asked for.

The kernel never writes the map down. It does know the logarithm of each row's sum, and with that
every single entry can be had again, at the price of one product of a query with a key:

    lse_i = log sum_j exp(s q_i k_j + bias_ij),   P_ij = exp(s q_i k_j + bias_ij - lse_i)

So the columns and rows of a question with Q tokens cost 2 H Q L d multiply-adds and the diagonal
blocks L S D, where the whole map costs L^2 D.

Notation: B batch, L positions, H heads, d head width, D = H d, s = 1 / sqrt(d), K blocks, S block
size, M positions of a set.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from qalib.skim.blocks import Blocks
from qalib.skim.views import block_positions


def attend_fused(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(s Q K^T + bias) V.  (B, L, H, d) x 3, bias to (B, H, L, L) -> (B, L, D)"""
    query, key, value = _for_kernel(query, key, value)
    return scaled_dot_product_attention(query, key, value, bias).transpose(1, 2).flatten(2)


def attend_with_sums(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As ``attend_fused``, and the log-sum-exp of every query.  -> (B, L, D), (B, H, L) float32

    Where torch has no kernel that gives the sums, or it refuses, they are computed in the open.
    """
    inputs = *_for_kernel(query, key, value), bias
    try:
        context, sums = _kernel(*inputs)
    except (AttributeError, NotImplementedError, RuntimeError):
        context, sums = attend_in_the_open(*inputs)
    return context.transpose(1, 2).flatten(2), sums


def _for_kernel(query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
    """(B, L, H, d) -> (B, H, L, d), all of one dtype: rotary positions may have widened two."""
    return [x.transpose(1, 2).to(value.dtype) for x in (query, key, value)]


def _kernel(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The kernels behind ``scaled_dot_product_attention`` that return their sums, too.

    They are no public interface of torch; a test holds them against ``attend_in_the_open``.
    """
    if query.device.type == "cpu":
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return flash(query, key, value, attn_mask=bias)
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    bias = None if bias is None else bias.expand(*query.shape[:3], -1)
    context, sums, *_ = efficient(query, key, value, bias, compute_log_sumexp=True)
    return context, sums[..., : query.shape[2]]  # it rounds the length up


def attend_in_the_open(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Context and sums by the formula.  (B, H, L, d) x 3 -> (B, H, L, d), (B, H, L) float32"""
    scores = (query.float() * query.shape[-1] ** -0.5) @ key.float().transpose(-1, -2)
    scores = scores if bias is None else scores + bias
    sums = scores.logsumexp(dim=-1)
    return (scores - sums[..., None]).exp().to(value.dtype) @ value, sums


@dataclass(frozen=True)
class FusedAttention:
    """What ``views.Attention`` asks for, from queries, keys and sums; the answers are float32.

    Products are computed in the dtype of queries and keys, as attention in the open would.
    """

    query: Tensor  # (B, L, H, d)
    key: Tensor  # (B, L, H, d)
    sums: Tensor  # (B, H, L), the log-sum-exp of every query's scores
    bias: Tensor | None = None  # to (B, H, L, L), what was added to the scores

    def into(self, sets: Tensor) -> Tensor:
        """See :class:`~qalib.skim.views.Attention`."""
        near = _chosen(sets)
        bias = None if self.bias is None else self.bias.index_select(3, near)
        key = _by_head(self.key.index_select(1, near))
        entries = self._entries(self._queries, key, bias, self.sums)  # (B, H, L, M)
        chosen = sets.index_select(2, near).float()[:, None]  # (B, 1, G, M)
        return chosen @ entries.transpose(2, 3)

    def out_of(self, sets: Tensor) -> Tensor:
        """See :class:`~qalib.skim.views.Attention`."""
        near = _chosen(sets)
        # A mask that is the same for all queries has one row, which stands for each of them.
        shared = self.bias is None or self.bias.shape[2] == 1
        bias = self.bias if shared else self.bias.index_select(2, near)
        query = _by_head(self.query.index_select(1, near))
        entries = self._entries(query, self._keys, bias, self.sums.index_select(2, near))
        chosen = sets.index_select(2, near).float()
        share = chosen / chosen.sum(dim=2, keepdim=True).clamp(min=1)
        return share[:, None] @ entries  # (B, 1, G, M) @ (B, H, M, L)

    def diagonal(self, blocks: Blocks, size: int) -> Tensor:
        """See :class:`~qalib.skim.views.Attention`."""
        return self.squares(*block_positions(blocks, size))

    def squares(self, places: Tensor, real: Tensor) -> Tensor:
        """The map of sets of positions with themselves.  (B, K, S), bool -> (B, H, K, S, S)

        ``places`` are positions, ``real`` says which of them are meant: 0 at all others.
        """
        rows, length, heads, width = self.query.shape
        count, size = places.shape[1:]
        map_of = torch.arange(rows * heads, device=places.device).view(rows, heads, 1, 1)
        cells = (map_of * length + places[:, None]).flatten()  # (B H K S), in B x H x L
        query, key = (
            x.flatten(0, 1).index_select(0, cells).view(rows * heads * count, size, width)
            for x in (self._queries, self._keys)
        )
        sums = self.sums.flatten().index_select(0, cells).view(rows, heads, count * size)
        bias = None
        if self.bias is not None:
            row = torch.arange(rows, device=places.device)[:, None, None, None]
            full = self.bias.expand(rows, -1, length, -1)
            bias = full[row, :, places[..., None], places[:, :, None, :]]  # (B, K, S, S, H or 1)
            bias = bias.movedim(-1, 1).flatten(2, 3)
        entries = self._entries(query, key, bias, sums).view(rows, heads, count, size, size)
        if real.all():
            return entries
        return entries.mul_((real[..., None] & real[..., None, :])[:, None])

    def _entries(self, query: Tensor, key: Tensor, bias: Tensor | None, sums: Tensor) -> Tensor:
        """exp(s q k + bias - lse).  (B H, m, d), (B H, n, d), (B, H, m) -> (B, H, m, n)

        Also for more and smaller maps of a head: (B H K, S, d) twice, with m = K S and n = S.
        """
        scores = torch.bmm(query, key.transpose(1, 2)).view(*sums.shape, key.shape[1])
        less = sums.neg()[..., None]
        # One pass over the scores where one number a query is all there is to add.
        less = less if bias is None else less + bias
        return torch.add(less, scores, alpha=query.shape[-1] ** -0.5).exp_()

    @cached_property
    def _queries(self) -> Tensor:
        """Head by head.  (B H, L, d)"""
        return _by_head(self.query)

    @cached_property
    def _keys(self) -> Tensor:
        """Head by head.  (B H, L, d)"""
        return _by_head(self.key)


def _by_head(values: Tensor) -> Tensor:
    """(B, L, H, d) -> (B H, L, d), for one row without a copy"""
    return values.transpose(1, 2).flatten(0, 1)


def _chosen(sets: Tensor) -> Tensor:
    """Positions that any set has chosen: the others need not be read.  (B, G, L) bool -> (M,)"""
    return sets.flatten(0, 1).any(dim=0).nonzero().squeeze(1)
