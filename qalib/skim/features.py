"""Block features from attention, hidden states and words: the inputs of predictors.

Notation: B batch, H heads, L positions, K blocks, Q question tokens, D width, C channels.

Attention from one set of tokens to another is Eq. 2 of the Block-Skim paper,

    A(X -> Y) = mean_{i in X} sum_{j in Y} P_ij

(the paper divides by b - a, one less than the number of tokens in the block [a, b]; the mean is
used here). Features are float32, and 0 for blocks that a row does not have (log ``FLOOR`` in
:func:`question_features`).
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from qalib.skim.activations import LayerActivations
from qalib.skim.blocks import NO_BLOCK, Blocks


def block_sum(values: Tensor, blocks: Blocks) -> Tensor:
    """Sum over every block's positions.  (B, C, L) -> (B, C, K), dtype kept"""
    index = blocks.slots[:, None].expand_as(values)
    sums = values.new_zeros(*values.shape[:2], blocks.count + 1)
    return sums.scatter_add(2, index, values)[..., :-1]


def block_mean(values: Tensor, blocks: Blocks) -> Tensor:
    """Mean over every block's positions.  (B, C, L) -> (B, C, K) float32"""
    return block_sum(values.float(), blocks) / blocks.sizes[:, None].clamp(min=1)


def block_max(values: Tensor, blocks: Blocks) -> Tensor:
    """Maximum over every block's positions.  (B, C, L) -> (B, C, K) float32"""
    values = values.float()
    index = blocks.slots[:, None].expand_as(values)
    lowest = values.new_full((*values.shape[:2], blocks.count + 1), torch.finfo(values.dtype).min)
    most = lowest.scatter_reduce(2, index, values, "amax")[..., :-1]
    return most.masked_fill(~blocks.real[:, None], 0.0)


def first_position(blocks: Blocks) -> Tensor:
    """[CLS], the first position.  (B, L) bool"""
    first = torch.zeros_like(blocks.question)
    first[:, :1] = blocks.block_ids[:, :1] == NO_BLOCK
    return first


def paper_features(layer: LayerActivations, blocks: Blocks) -> Tensor:
    """The six features per head of the paper's probe.  -> (B, K, H, 6)

    Block to question, question to block, block to [CLS], [CLS] to block, block to [SEP], [SEP] to
    block. All lie between 0 and 1; 0 where the set is empty. Source: Block-Skim, section 3, Eq. 2.
    """
    sets = torch.stack([blocks.question, first_position(blocks), blocks.separators], dim=1)
    to_set = block_mean(layer.attention.attention_to(sets).flatten(1, 2), blocks)  # (B, 3 H, K)
    from_set = block_sum(layer.attention.attention_from(sets).float().flatten(1, 2), blocks)
    six = torch.stack([to_set, from_set], dim=2).unflatten(1, (-1, 3))  # (B, H, 3, 2, K)
    return six.flatten(2, 3).permute(0, 3, 1, 2)


FLOOR = 1e-6  # added to attention before its logarithm
TINY = 1e-12  # norm of a vector of zeros


def question_features(layer: LayerActivations, blocks: Blocks, size: int) -> Tensor:
    """Log attention between a block and the question, [CLS] and itself.  -> (B, K, 10 H)

    Per token: attention to the question and to [CLS], from both, and to its own block (among the
    first ``size`` tokens of the block). Per block: mean and maximum over tokens. The logarithm is
    taken because attention spans orders of magnitude and its ratios are what matters.
    """
    sets = torch.stack([blocks.question, first_position(blocks)], dim=1)
    both = torch.stack(
        [layer.attention.attention_to(sets), layer.attention.attention_from(sets)], dim=1
    )
    per_token = both.permute(0, 3, 1, 2, 4).flatten(1, 3)  # (B, 2, H, 2, L) -> (B, 4 H, L)
    within = layer.attention.diagonal_blocks(blocks, size).float().sum(dim=-1)  # (B, H, K, S)
    sizes = blocks.sizes[:, None].clamp(1, size)  # (B, 1, K)
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
    """Cosine similarity of a block to the tokens of the question.  (B, L, D) -> (B, K, 3)

        s_qk = max_{j in k} cos(h_q, h_j)          the best match of question token q in block k
        mean_q s_qk,   max_q s_qk,   mean_q (s_qk - max_k' s_qk')

    The third compares the blocks of a passage with each other. Source: Khattab and Zaharia 2020
    (ColBERT), whose score is the sum over q; the first is its mean.
    """
    hidden = hidden.float()
    size = hidden.norm(dim=-1).clamp(min=TINY)  # (B, L)
    positions, real = blocks.question_positions
    words = hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[2]))  # (B, Q, D)
    cosines = words / size.gather(1, positions)[..., None] @ hidden.transpose(1, 2)
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
    """Share of the question's words that occur in a block, weighted by rarity.  -> (B, K)

        overlap_k = sum_t [t in block k] / n_t  /  sum_t [t in passage] / n_t

    t runs over the distinct word pieces of the question, n_t counts t in the passage, so a
    word that occurs everywhere is no evidence for any block. Between 0 and 1; needs no corpus.
    """
    positions, real = blocks.question_positions
    words = input_ids.gather(1, positions)  # (B, Q)
    same = (words[:, :, None] == words[:, None, :]) & real[:, None, :]
    repeats = same.sum(dim=2).clamp(min=1)  # occurrences in the question
    found = (words[:, :, None] == input_ids[:, None, :]) & blocks.passage[:, None]  # (B, Q, L)
    count = found.sum(dim=2)
    weight = (real & (count > 0)) / (repeats * count.clamp(min=1))  # (B, Q)
    shared = (block_max(found, blocks) * weight[..., None]).sum(dim=1)
    return shared / weight.sum(dim=1, keepdim=True).clamp(min=FLOOR)


def block_position(blocks: Blocks) -> Tensor:
    """Position and length of a block.  -> (B, K, 3)

    Its centre as a share of the passage's blocks, log of its number from 1, log of its tokens.
    """
    number = torch.arange(1, blocks.count + 1, device=blocks.block_ids.device).float()  # (K,)
    real = blocks.real
    last = pad(number * real, (1, 0)).amax(dim=1, keepdim=True).clamp(min=1)  # (B, 1)
    numbers = [
        ((number - 0.5) / last).expand(real.shape),
        number.log().expand(real.shape),
        blocks.sizes.clamp(min=1).float().log(),
    ]
    return torch.stack(numbers, dim=-1) * real[..., None]


def relative(values: Tensor, real: Tensor) -> Tensor:
    """Difference from the mean over the row's blocks.  (B, K, C), (B, K) bool -> (B, K, C)"""
    real = real[..., None]
    mean = (values * real).sum(dim=1, keepdim=True) / real.sum(dim=1, keepdim=True).clamp(min=1)
    return (values - mean) * real


def neighbour(values: Tensor, real: Tensor, step: int) -> Tensor:
    """Features of block k + step at block k.  (B, K, C), (B, K) bool -> (B, K, C)

    0 where there is no such block, because the passage ends or because it was pruned.
    """
    real = real[..., None]
    around = pad(values * real, (0, 0, abs(step), abs(step)))  # (B, K + 2 |step|, C)
    return around.narrow(1, abs(step) + step, values.shape[1]) * real
