"""What attention, hidden states and words say about a block: the numbers that predictors read.

Notation: B batch, H heads, L positions, K blocks, Q question tokens, D width, C channels.

Attention is asked for as Eq. 2 of the Block-Skim paper puts it, from one set of tokens to another,

    A(X -> Y) = mean_{i in X} sum_{j in Y} P_ij

(the paper divides by b - a for the block [a, b], one less than its tokens; the mean is meant).
All functions give 0 for blocks that a row does not have (logarithms: that of ``FLOOR``), and
float32.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from qalib.skim.blocks import KEPT, Blocks
from qalib.skim.views import LayerView

SIX = (
    "block to question",
    "question to block",
    "block to [CLS]",
    "[CLS] to block",
    "block to [SEP]",
    "[SEP] to block",
)


def block_sum(values: Tensor, blocks: Blocks) -> Tensor:
    """Sum over every block's positions.  (B, C, L) -> (B, C, K), dtype kept"""
    index = blocks.slots[:, None].expand_as(values)
    sums = values.new_zeros(*values.shape[:2], blocks.count + 1)
    return sums.scatter_add(2, index, values)[..., :-1]


def block_mean(values: Tensor, blocks: Blocks) -> Tensor:
    """Mean over every block's positions.  (B, C, L) -> (B, C, K) float32"""
    return block_sum(values.float(), blocks) / blocks.sizes()[:, None].clamp(min=1)


def block_max(values: Tensor, blocks: Blocks) -> Tensor:
    """Maximum over every block's positions.  (B, C, L) -> (B, C, K) float32"""
    values = values.float()
    index = blocks.slots[:, None].expand_as(values)
    lowest = values.new_full((*values.shape[:2], blocks.count + 1), torch.finfo(values.dtype).min)
    most = lowest.scatter_reduce(2, index, values, "amax")[..., :-1]
    return most.masked_fill(~blocks.real[:, None], 0.0)


def first_position(blocks: Blocks) -> Tensor:
    """[CLS], the first position, which is always kept.  (B, L) bool"""
    first = torch.zeros_like(blocks.question)
    first[:, :1] = blocks.of[:, :1] == KEPT
    return first


def six_features(view: LayerView, blocks: Blocks) -> Tensor:
    """The six numbers per head that the paper's probe reads, named in ``SIX``.  -> (B, K, H, 6)

    From a block: the mean over its tokens of what they give to the set. To a block: what a token
    of the set gives to the whole block, on average over the set. All six lie between 0 and 1; 0
    where the set is empty. Source: Block-Skim, section 3 and Eq. 2.
    """
    sets = torch.stack([blocks.question, first_position(blocks), blocks.separators], dim=1)
    given, got = view.attention.into(sets), view.attention.out_of(sets)  # (B, H, 3, L)
    given = block_mean(given.flatten(1, 2), blocks).unflatten(1, given.shape[1:3])  # (B, H, 3, K)
    got = block_sum(got.float().flatten(1, 2), blocks).unflatten(1, got.shape[1:3])
    return torch.stack([given, got], dim=3).flatten(2, 3).permute(0, 3, 1, 2)


FLOOR = 1e-6  # added to attention before its logarithm
TINY = 1e-12  # what a vector of zeros is taken to be long
MASSES = ("to question", "from question", "to [CLS]", "from [CLS]", "within")


def question_features(view: LayerView, blocks: Blocks, size: int) -> Tensor:
    """Logarithms of what a block exchanges with the question, [CLS] and itself.  -> (B, K, 10 H)

    Per token: what it gives to the question and to [CLS], what they give to it, what it gives to
    its own block (among the first ``size`` tokens of the block). Per block: mean and maximum over
    tokens. Attention spans orders of magnitude and its ratios carry the meaning, hence the
    logarithm.
    """
    sets = torch.stack([blocks.question, first_position(blocks)], dim=1)
    both = torch.stack([view.attention.into(sets), view.attention.out_of(sets)], dim=1)
    per_token = both.permute(0, 3, 1, 2, 4).flatten(1, 3)  # (B, 2, H, 2, L) -> (B, 4 H, L)
    within = view.attention.diagonal(blocks, size).float().sum(dim=-1)  # (B, H, K, S)
    sizes = blocks.sizes()[:, None].clamp(1, size)  # (B, 1, K)
    masses = torch.cat(
        [
            block_mean(per_token, blocks),
            within.sum(dim=-1) / sizes,
            block_max(per_token, blocks),
            within.amax(dim=-1),
        ],
        dim=1,
    )  # (B, 10 H, K)
    return (masses + FLOOR).log().transpose(1, 2)


def late_interaction(hidden: Tensor, blocks: Blocks) -> Tensor:
    """How well a block answers to each word of the question.  (B, L, D) -> (B, K, 3)

        s_qk = max_{j in k} cos(h_q, h_j)          the best match of question token q in block k
        mean_q s_qk,   max_q s_qk,   mean_q (s_qk - max_k' s_qk')

    The third compares the blocks of a passage with each other. Source: Khattab and Zaharia 2020
    (ColBERT), whose sum over q of s_qk is the first.
    """
    hidden = hidden.float()
    size = hidden.norm(dim=-1).clamp(min=TINY)  # (B, L)
    positions, real = blocks.asked
    asked = hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[2]))  # (B, Q, D)
    cosines = asked / size.gather(1, positions)[..., None] @ hidden.transpose(1, 2)
    best = block_max(cosines / size[:, None], blocks)  # (B, Q, K)
    if not blocks.count:
        return best.new_zeros(len(best), 0, 3)
    top = best.masked_fill(~blocks.real[:, None], -1.0).amax(dim=2, keepdim=True)
    share = (real / real.sum(dim=1, keepdim=True).clamp(min=1))[..., None]  # (B, Q, 1)
    numbers = torch.stack(
        [
            (share * best).sum(dim=1),
            best.masked_fill(~real[..., None], -1.0).amax(dim=1),
            (share * (best - top)).sum(dim=1),
        ],
        dim=-1,
    )
    return numbers * blocks.real[..., None]


def word_overlap(input_ids: Tensor, blocks: Blocks) -> Tensor:
    """The share of the question's words that a block repeats, rare ones first.  -> (B, K)

        overlap_k = sum_t [t in block k] / n_t  /  sum_t [t in passage] / n_t

    t runs over the distinct word pieces of the question, n_t counts t in the passage: a word that
    stands everywhere tells nothing about where to look. Between 0 and 1; needs no corpus.
    """
    positions, real = blocks.asked
    asked = input_ids.gather(1, positions)  # (B, Q)
    same = (asked[:, :, None] == asked[:, None, :]) & real[:, None, :]
    repeats = same.sum(dim=2).clamp(min=1)  # how often the question says it
    found = (asked[:, :, None] == input_ids[:, None, :]) & blocks.passage[:, None]  # (B, Q, L)
    count = found.sum(dim=2)
    weight = (real & (count > 0)) / (repeats * count.clamp(min=1))  # (B, Q)
    shared = (block_max(found, blocks) * weight[..., None]).sum(dim=1)
    return shared / weight.sum(dim=1, keepdim=True).clamp(min=FLOOR)


def placement(blocks: Blocks) -> Tensor:
    """Where a block stands and how long it is.  -> (B, K, 3)

    Its middle as a share of the passage's blocks, log of its number from 1, log of its tokens.
    """
    number = torch.arange(1, blocks.count + 1, device=blocks.of.device).float()  # (K,)
    real = blocks.real
    last = pad(number * real, (1, 0)).amax(dim=1, keepdim=True).clamp(min=1)  # (B, 1)
    numbers = [
        ((number - 0.5) / last).expand(real.shape),
        number.log().expand(real.shape),
        blocks.sizes().clamp(min=1).float().log(),
    ]
    return torch.stack(numbers, dim=-1) * real[..., None]


def relative(values: Tensor, blocks: Blocks) -> Tensor:
    """How far a block's numbers lie from the mean over its row's blocks.  (B, K, C) -> same"""
    real = blocks.real[..., None]
    mean = (values * real).sum(dim=1, keepdim=True) / real.sum(dim=1, keepdim=True).clamp(min=1)
    return (values - mean) * real


def beside(values: Tensor, blocks: Blocks, step: int) -> Tensor:
    """The numbers of block k + step at block k.  (B, K, C) -> same

    0 where there is no such block, be it that the passage ends or that it is gone already.
    """
    real = blocks.real[..., None]
    around = pad(values * real, (0, 0, abs(step), abs(step)))  # (B, K + 2 |step|, C)
    return around.narrow(1, abs(step) + step, blocks.count) * real
