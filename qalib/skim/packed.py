"""Forward pass of a batch whose rows may get shorter from layer to layer.

The rows are concatenated in one tensor. In training they keep their padding; at inference it is
left out (*packed*), and attention is computed for consecutive rows of equal length together (CPU)
or for all rows, padded (GPU).

    P = softmax(s Q K^T + bias),   context = P V

In training the map P is computed. At inference the kernel returns the log-sum-exp of each query's
scores instead, from which any entry of P can be recomputed with one dot product:

    lse_i = log sum_j exp(s q_i k_j + bias_ij),   P_ij = exp(s q_i k_j + bias_ij - lse_i)

Notation: B batch, L positions of the input, L' of the longest row after pruning, T tokens left in
all rows (B L' with padding), R rows of a group, M positions of its longest row, t its tokens (R M
with padding), D width, H heads, d = D / H, s = 1 / sqrt(d), K blocks, S block size, G sets.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from qalib.skim.activations import FullAttention, LayerActivations
from qalib.skim.adapters import EncoderAdapter, LayerAdapter
from qalib.skim.blocks import Blocks, true_positions

MIN_LOGIT = torch.finfo(torch.float32).min  # a logit that is never chosen

# --- attention: context alone, with the whole map, with log-sum-exps ---


def fused_attention(
    layer: LayerAdapter, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> tuple[Tensor, None]:
    """Context only, with the fastest kernel.  (B, L, H, d) x 3 -> (B, L, D)"""
    mask = layer.bias(query, key, mask)
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    dropout = layer.dropout if layer.attention.training else 0.0
    context = F.scaled_dot_product_attention(query, key, value, mask, dropout)
    return context.transpose(1, 2).flatten(2), None


def eager_attention(
    layer: LayerAdapter, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> tuple[Tensor, FullAttention]:
    """Context and the attention map before dropout.  (B, L, H, d) x 3 -> (B, L, D), map"""
    mask = layer.bias(query, key, mask)
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    probabilities = (scores if mask is None else scores + mask).softmax(dim=-1)
    used = torch.dropout(probabilities, layer.dropout, layer.attention.training)
    return (used @ value).transpose(1, 2).flatten(2), FullAttention(probabilities)


def attention_with_lse(
    layer: LayerAdapter, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> tuple[Tensor, "FusedAttention"]:
    """Context, and a map computed on demand.  (B, L, H, d) x 3 -> (B, L, D), map

    Uses ``_formula_with_lse`` where torch has no kernel that returns the log-sum-exp.
    """
    mask = layer.bias(query, key, mask)
    inputs = *(x.transpose(1, 2) for x in (query, key, value)), mask
    try:
        context, lse = _kernel_with_lse(*inputs)
    except (AttributeError, NotImplementedError, RuntimeError):
        context, lse = _formula_with_lse(*inputs)
    return context.transpose(1, 2).flatten(2), FusedAttention(query, key, lse, mask)


def _kernel_with_lse(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Context and log-sum-exp.  (B, H, L, d) x 3 -> (B, H, L, d), (B, H, L) float32

    Not public in torch; a test compares them with ``_formula_with_lse``.
    """
    if query.device.type == "cpu":
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return flash(query, key, value, attn_mask=bias)
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    bias = None if bias is None else bias.expand(*query.shape[:3], -1)
    context, lse, *_ = efficient(query, key, value, bias, compute_log_sumexp=True)
    return context, lse[..., : query.shape[2]]  # the kernel rounds the length up


def _formula_with_lse(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As ``_kernel_with_lse``, from the definition."""
    scores = (query.float() * query.shape[-1] ** -0.5) @ key.float().transpose(-1, -2)
    scores = scores if bias is None else scores + bias
    lse = scores.logsumexp(dim=-1)
    return (scores - lse[..., None]).exp().to(value.dtype) @ value, lse


@dataclass(frozen=True)
class FusedAttention:
    """``FullAttention`` recomputed from queries, keys and log-sum-exps; results are float32.

    ``squares`` replaces ``diagonal_blocks``. Products are in the dtype of queries and keys.
    """

    query: Tensor  # (B, L, H, d)
    key: Tensor  # (B, L, H, d)
    lse: Tensor  # (B, H, L), log-sum-exp of every query's scores
    bias: Tensor | None = None  # broadcasts to (B, H, L, L), added to the scores

    def attention_to(self, sets: Tensor) -> Tensor:
        near = _members(sets)
        bias = None if self.bias is None else self.bias.index_select(3, near)
        key = _by_head(self.key.index_select(1, near))
        entries = self._entries(self._queries, key, bias, self.lse)  # (B, H, L, M)
        chosen = sets.index_select(2, near).float()[:, None]  # (B, 1, G, M)
        return chosen @ entries.transpose(2, 3)

    def attention_from(self, sets: Tensor) -> Tensor:
        near = _members(sets)
        # A mask that is the same for all queries has a single row, so none need be selected.
        shared = self.bias is None or self.bias.shape[2] == 1
        bias = self.bias if shared else self.bias.index_select(2, near)
        query = _by_head(self.query.index_select(1, near))
        entries = self._entries(query, self._keys, bias, self.lse.index_select(2, near))
        chosen = sets.index_select(2, near).float()
        share = chosen / chosen.sum(dim=2, keepdim=True).clamp(min=1)
        return share[:, None] @ entries  # (B, 1, G, M) @ (B, H, M, L)

    def squares(self, positions: Tensor, real: Tensor) -> Tensor:
        """Attention within sets of positions, 0 where not ``real``.

        (B, K, S) int64, (B, K, S) bool -> (B, H, K, S, S)
        """
        rows, length, heads, width = self.query.shape
        count, size = positions.shape[1:]
        map_of = torch.arange(rows * heads, device=positions.device).view(rows, heads, 1, 1)
        cells = (map_of * length + positions[:, None]).flatten()  # (B H K S), in B x H x L
        query, key = (
            x.flatten(0, 1).index_select(0, cells).view(rows * heads * count, size, width)
            for x in (self._queries, self._keys)
        )
        lse = self.lse.flatten().index_select(0, cells).view(rows, heads, count * size)
        bias = None
        if self.bias is not None:
            row = torch.arange(rows, device=positions.device)[:, None, None, None]
            full = self.bias.expand(rows, -1, length, -1)
            bias = full[row, :, positions[..., None], positions[:, :, None, :]]
            bias = bias.movedim(-1, 1).flatten(2, 3)  # (B, K, S, S, H or 1) -> (B, .., K S, S)
        entries = self._entries(query, key, bias, lse).view(rows, heads, count, size, size)
        if real.all():
            return entries
        return entries.mul_((real[..., None] & real[..., None, :])[:, None])

    def _entries(self, query: Tensor, key: Tensor, bias: Tensor | None, lse: Tensor) -> Tensor:
        """exp(s q k + bias - lse).  (B H, m, d), (B H, n, d), (B, H, m) -> (B, H, m, n)"""
        scores = torch.bmm(query, key.transpose(1, 2)).view(*lse.shape, key.shape[1])
        shift = lse.neg()[..., None]
        # Without a bias only one number per query is added, in a single pass over the scores.
        shift = shift if bias is None else shift + bias
        return torch.add(shift, scores, alpha=query.shape[-1] ** -0.5).exp_()

    @cached_property
    def _queries(self) -> Tensor:
        return _by_head(self.query)  # (B H, L, d)

    @cached_property
    def _keys(self) -> Tensor:
        return _by_head(self.key)


def _by_head(values: Tensor) -> Tensor:
    """(B, L, H, d) -> (B H, L, d), without a copy if B is 1"""
    return values.transpose(1, 2).flatten(0, 1)


def _members(sets: Tensor) -> Tensor:
    """Positions in any set; the others need not be read.  (B, G, L) bool -> (M,)"""
    return sets.flatten(0, 1).any(dim=0).nonzero().squeeze(1)


# --- rows of different lengths ---


@dataclass(frozen=True)
class VarlenGroup:
    """Consecutive rows of a packed tensor as one padded tensor, each row from position 0.

    A packed tensor (T, ...) holds the tokens of B rows, row after row.
    """

    lengths: Sequence[int]  # of its rows
    row: int  # its first row in the batch
    token: int  # its first token in the packed tensor
    length: int  # M
    slots: Tensor | None = None  # (t,) int64, its tokens in the flat R x M; None: no padding

    @property
    def rows(self) -> slice:
        """Its rows in the batch."""
        return slice(self.row, self.row + len(self.lengths))

    @property
    def padded(self) -> bool:
        """Whether its rows are of different lengths."""
        return min(self.lengths) < self.length

    def pad(self, values: Tensor, fill: float | int = 0) -> Tensor:
        """Its rows as a padded tensor.  (T, ...) -> (R, M, ...)"""
        shape, count = (len(self.lengths), self.length), sum(self.lengths)
        if count < len(values):
            values = values[self.token : self.token + count]
        if self.padded:
            base = values.new_full((shape[0] * shape[1], *values.shape[1:]), fill)
            values = base.index_copy_(0, self.slots, values)
        return values.view(*shape, *values.shape[1:])

    def unpad(self, values: Tensor) -> Tensor:
        """Its tokens as a packed tensor.  (R, M, ...) -> (t, ...)"""
        flat = values.flatten(0, 1)
        return flat.index_select(0, self.slots) if self.padded else flat


def one_group(real: Tensor) -> VarlenGroup:
    """All rows as one group.  real (B, M) bool, true at the first positions of each row"""
    slots = real.flatten().nonzero().squeeze(1)
    return VarlenGroup(real.sum(dim=1).tolist(), 0, 0, real.shape[1], slots)


def equal_length_groups(lengths: Sequence[int]) -> list[VarlenGroup]:
    """Groups without padding: consecutive rows of equal length; empty rows are in no group."""
    groups, row, token = [], 0, 0
    for length, equal in groupby(lengths):
        count = len(list(equal))
        if length:
            groups.append(VarlenGroup([length] * count, row, token, length))
        row, token = row + count, token + count * length
    return groups


@dataclass(frozen=True)
class GroupedAttention:
    """Attention of a whole batch, group by group; 0 where a row has no such position."""

    groups: Sequence[tuple[VarlenGroup, FusedAttention]]
    rows: int  # B
    length: int  # L'

    def attention_to(self, sets: Tensor) -> Tensor:
        return self._join(lambda at, x: x.attention_to(sets[at.rows, :, : at.length]), self.length)

    def attention_from(self, sets: Tensor) -> Tensor:
        return self._join(
            lambda at, x: x.attention_from(sets[at.rows, :, : at.length]), self.length
        )

    def diagonal_blocks(self, blocks: Blocks, size: int) -> Tensor:
        positions, real = blocks.positions(size)
        return self._join(lambda at, x: x.squares(positions[at.rows], real[at.rows]), size)

    def _join(self, query: Callable[[VarlenGroup, FusedAttention], Tensor], last: int) -> Tensor:
        """Query every group, (R, ..., up to last) each.  -> (B, ..., last)"""
        found = [(at.rows, query(at, attention)) for at, attention in self.groups]
        first = found[0][1]
        if len(first) == self.rows and first.shape[-1] == last:
            return first
        joined = first.new_zeros(self.rows, *first.shape[1:-1], last)
        for rows, part in found:
            joined[rows, ..., : part.shape[-1]] = part
        return joined


# --- the pass ---


@dataclass
class ForwardPass:
    """State of a pass between two layers."""

    encoder: EncoderAdapter
    hidden: Tensor  # (T, D)
    cells: Tensor  # (T,) int64, indices of the tokens in the flat B x L input
    batch: VarlenGroup  # all rows, padded to L' as predictors see them
    blocks: Blocks  # (B, L')
    input_ids: Tensor  # (B, L'), arbitrary at padding
    pruned_logits: Tensor  # (B, L, 2) float32, start and end logits of pruned positions
    packed: bool
    groups: list[tuple[VarlenGroup, Tensor | None]] = field(init=False)  # with attention masks

    @classmethod
    def start(
        cls,
        encoder: EncoderAdapter,
        input_ids: Tensor,
        token_type_ids: Tensor | None,
        blocks: Blocks,
        packed: bool,
    ) -> "ForwardPass":
        """State before the first layer. Embeddings are computed on padded rows."""
        hidden = encoder.embed(input_ids, token_type_ids).flatten(0, 1)
        cells = torch.arange(input_ids.numel(), device=input_ids.device)
        logits = torch.full((*input_ids.shape, 2), MIN_LOGIT, device=hidden.device)
        batch = one_group(torch.ones_like(blocks.padding))
        state = cls(encoder, hidden, cells, batch, blocks, input_ids, logits, packed)
        if packed and blocks.padding.any():
            state._select(~blocks.padding)
        else:
            state._group()
        return state

    def attend(self, layer: LayerAdapter, record: bool) -> tuple[Tensor, LayerActivations | None]:
        """Context of a layer and, with ``record``, its activations.  -> (T, D)"""
        query_key_value = layer.qkv_proj(self.hidden)
        attend = fused_attention
        if record:
            attend = attention_with_lse if self.packed else eager_attention
        contexts, seen = [], []
        for group, mask in self.groups:
            context, entries = attend(layer, *map(group.pad, query_key_value), mask)
            contexts.append(group.unpad(context))
            seen.append((group, entries))
        if not contexts:
            return self.hidden, None  # only padding, so there is no context
        context = contexts[0] if len(contexts) == 1 else torch.cat(contexts)
        if not record:
            return context, None
        grouped = GroupedAttention(seen, len(self.pruned_logits), self.batch.length)
        states = self.batch.pad(self.hidden), self.batch.pad(context)
        return context, LayerActivations(grouped if self.packed else seen[0][1], *states)

    def prune_tokens(self, kept: Tensor, context: Tensor, logits: Tensor | None) -> Tensor:
        """Prune all blocks but ``kept``.  kept (B, K) bool, context (T, D) -> (T', D)

        ``logits`` (T, 2): stored for the tokens that are pruned; None leaves the minimum, "no
        answer there". Question and special tokens are always kept.
        """
        if torch.equal(kept, self.blocks.real):
            return context
        if logits is not None:
            self.pruned_logits = self.full_logits(logits)
        stays = self.blocks.to_positions(kept, True).bool() & ~self.blocks.padding
        return context.index_select(0, self._select(stays))

    def full_logits(self, logits: Tensor) -> Tensor:
        """Logits at their positions in the input, merged with those of pruned tokens.

        (T, 2) -> (B, L, 2) float32
        """
        here = self.batch.unpad(~self.blocks.padding)
        known = self.pruned_logits.flatten(0, 1)
        known = known.index_copy(0, self.cells[here], logits[here].float())
        return known.view_as(self.pruned_logits)

    def token_counts(self) -> Tensor:
        """Number of tokens that each row has left.  (B,) int64"""
        return (~self.blocks.padding).sum(dim=1)

    def _select(self, stays: Tensor) -> Tensor:
        """Keep some tokens only.  stays (B, L') bool -> (T',) int64, their indices in T"""
        positions, real = true_positions(stays)
        if self.packed:
            index = self.batch.unpad(stays).nonzero().squeeze(1)
        else:
            first = torch.arange(0, stays.numel(), stays.shape[1], device=stays.device)
            index = (first[:, None] + positions).flatten()
        self.hidden, self.cells = (x.index_select(0, index) for x in (self.hidden, self.cells))
        self.batch = one_group(real if self.packed else torch.ones_like(real))
        self.blocks = self.blocks.gather(positions, real)
        self.input_ids = self.input_ids.gather(1, positions)
        self._group()
        return index

    def _group(self) -> None:
        """Set the groups of rows whose attention is computed together, and their masks."""
        positions = self.cells % self.pruned_logits.shape[1]
        here = self.batch.unpad(~self.blocks.padding)
        groups = [self.batch]
        if self.packed and self.hidden.device.type == "cpu":
            # On a GPU the number of kernel launches dominates the cost, on a CPU the padding.
            groups = equal_length_groups(self.batch.lengths)
        device, dtype = self.hidden.device.type, self.hidden.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        self.groups = []
        for group in groups:
            places, real = group.pad(positions), group.pad(here, False)
            if (places == places[:1]).all():  # one mask for rows at equal positions
                places, real = places[:1], real[:1] if real.all() else real
            self.groups.append((group, self.encoder.attention_mask(places, real, dtype)))
