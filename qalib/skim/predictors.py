"""Block predictors: modules that score how likely each passage block is to hold the answer.

    predictor = build_predictor(PredictorConfig("combined"), ModelShape(6, 12, 384), layer=3)
    logits = predictor(inputs)  # (B, K)

Notation: B batch, K blocks, N real blocks of a whole batch, H heads, S block size, D width,
C channels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, batch_norm, gelu, linear

from qalib.decoding import mask_logits
from qalib.errors import QalibError
from qalib.models.bf16 import pad_rows
from qalib.settings import settings
from qalib.skim import features
from qalib.skim.activations import LayerActivations, PredictorInputs
from qalib.skim.blocks import Blocks
from qalib.skim.features import block_max, block_mean

FeatureKind = Literal[
    "question", "handcrafted", "lexical", "late_interaction", "tokens", "combined"
]
Part = Literal["paper", "question", "late_interaction", "lexical", "position", "tokens", "match"]
PARTS = ("question", "late_interaction", "lexical", "position", "tokens")
FIXED = ("paper", "question", "late_interaction", "lexical", "position")  # without parameters
TOKEN_FEATURES = 4  # per token, in the part "tokens"
MATCH_HEADS, MATCH_WIDTH = 4, 16  # of the part "match"


@settings
class PredictorConfig:
    """Settings of a predictor and its blocks; those that its kind does not use are ignored.

    cnn, cnn-eq3      Block-Skim's module, as released and as in Eq. 3 of the paper
    handcrafted       logistic regression on the six attention features of the paper's probe
    question, late_interaction, tokens, combined    MLP on features, see ``FeaturePredictor``
    lexical, random                                 baselines
    """

    kind: Literal["cnn", "cnn-eq3", FeatureKind, "random"] = "question"
    block_size: Annotated[int, Field(ge=1)] = 32  # tokens
    hidden: Annotated[int, Field(ge=0)] = 64  # width of the MLP; 0: logistic regression
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1  # after the hidden layer
    neighbours: Annotated[int, Field(ge=0)] = 1  # blocks read on each side (combined)
    parts: Annotated[tuple[Part, ...], Field(min_length=1)] = PARTS  # features read (combined)
    seed: int = 0  # (random)

    def __post_init__(self):
        if len(set(self.parts)) < len(self.parts):
            raise QalibError(f"parts names a part twice: {', '.join(self.parts)}.")


@dataclass(frozen=True)
class ModelShape:
    """Size of the encoder that a predictor is built for."""

    layers: int
    heads: int
    width: int
    model_type: str = ""  # of its config in transformers


class BlockPredictor(nn.Module):
    """Scores every block; the sigmoid of its logit is the probability that it holds the answer.

    ``layers``: number of the layer whose activations it reads, or empty. Activations, blocks and
    input ids cover the same positions: those left when it is run.
    """

    def __init__(self, layers: tuple[int, ...] = ()):
        super().__init__()
        self.layers = layers

    def forward(self, inputs: PredictorInputs) -> Tensor:
        """Logits (B, K) float32; the lowest finite number for blocks that a row does not have.

        Autocast is disabled: logarithms and norms need float32, at a negligible cost beside the
        encoder. In eval mode a row's logits depend on that row alone.
        """
        with torch.autocast(inputs.input_ids.device.type, enabled=False):
            logits = self.score(inputs)
        return mask_logits(logits, inputs.blocks.real)

    def score(self, inputs: PredictorInputs) -> Tensor:
        """Logits (B, K) float32, finite; arbitrary for missing blocks."""
        return self.score_features(self.block_features(inputs), inputs.blocks.real)

    def block_features(self, inputs: PredictorInputs) -> Tensor:
        """Features of each block on its own.  -> (B, K, C)"""
        raise NotImplementedError

    def score_features(self, x: Tensor, real: Tensor) -> Tensor:
        """Logits from the features of each block.  (B, K, C), (B, K) bool -> (B, K)"""
        raise NotImplementedError


class BlockNorm(nn.BatchNorm1d):
    """Batch norm over real blocks.  (N, C) or (N, C, M) -> same

    In training the input holds real blocks only, so padding never enters the statistics. Fewer than
    two values per channel have no variance; then the running statistics are used, as in eval mode.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() < 2 * x.shape[1]:
            return batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(x)


class BlockScorer(nn.Module):
    """Batch norm and a small MLP from block features to a logit; linear if ``hidden`` is 0.

    Batch norm rather than layer norm: the features differ in kind and scale (log attention of every
    head, cosines, shares), so each needs its own scale, and layer norm would remove their common
    level, which is informative.
    """

    def __init__(self, channels: int, hidden: int = 0, dropout: float = 0.0):
        super().__init__()
        self.norm = BlockNorm(channels, affine=False)  # the linear layer has scale and shift
        last = nn.Linear(hidden or channels, 1)
        if hidden:
            first = nn.Linear(channels, hidden), nn.GELU(), nn.Dropout(dropout)
            self.layers = nn.Sequential(*first, last)
        else:
            self.layers = last

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """(B, K, C), (B, K) bool -> (B, K)"""
        return _by_block(lambda x: self.layers(self.norm(x)), x, real, self.training)


def _by_block(score: Callable, x: Tensor, real: Tensor, training: bool) -> Tensor:
    """Apply ``score``, (N, ...) -> (N, 1), to (real) blocks.  (B, K, ...), (B, K) bool -> (B, K)"""
    if not training:  # running statistics, which missing blocks cannot affect
        return score(x.flatten(0, 1)).view(real.shape)
    return x.new_zeros(real.shape).masked_scatter(real, score(x[real]))


# --- Block-Skim's module: a small CNN over a block's attention to itself ---
#
# The paper and the released code differ; both forms are here and end in one logit. The softmax over
# two logits z_0, z_1 of the released code is the sigmoid of z_1 - z_0, which is linear in the same
# features, so both represent the same functions.


def _pool(maps: Tensor) -> Tensor:
    """Average pooling by 2; a 1 x 1 map stays as it is.  (N, H, S, S) -> (.., S / 2)"""
    return avg_pool2d(maps, 2) if maps.shape[-1] > 1 else maps


class ConvNormReLU(nn.Module):
    """3 x 3 convolution, batch norm and ReLU.  (N, H, S, S) -> same"""

    def __init__(self, heads: int):
        super().__init__()
        self.conv = nn.Conv2d(heads, heads, 3, padding=1)
        self.norm = BlockNorm(heads)

    def forward(self, maps: Tensor) -> Tensor:
        maps = self.conv(maps)
        return self.norm(maps.flatten(2)).view_as(maps).relu()


class BlockSkimCNN(BlockPredictor):
    """Block-Skim's CNN on the attention within each block, in two forms:

    released        conv 3x3, norm, ReLU, pool;  the same again;  linear
    ``equation_3``  pool, conv 3x3;  pool, conv 3x3;  conv 1x1 to one channel;  linear

    Blocks shorter than S are padded with zeros; of longer ones the first S tokens are used. In both
    forms each 3x3 convolution has batch norm (the paper does not say where) and each convolution
    ReLU. Sources: Block-Skim (AAAI 2022), Eq. 3, and facts about its released code.
    """

    def __init__(self, heads: int, size: int, layer: int, equation_3: bool = False):
        super().__init__((layer,))
        self.size, self.equation_3 = size, equation_3
        half = max(1, size // 2)
        quarter = max(1, half // 2)
        self.first, self.second = ConvNormReLU(heads), ConvNormReLU(heads)
        self.last = nn.Linear((1 if equation_3 else heads) * quarter**2, 1)
        if equation_3:
            self.merge = nn.Conv2d(heads, 1, 1)

    def score(self, inputs: PredictorInputs) -> Tensor:
        attention = inputs.layers[self.layers[0]].attention
        maps = attention.diagonal_blocks(inputs.blocks, self.size).float()  # (B, H, K, S, S)
        maps, real = maps.transpose(1, 2), inputs.blocks.real
        return _by_block(lambda x: self.last(self.features(x)), maps, real, self.training)

    def features(self, maps: Tensor) -> Tensor:
        """(N, H, S, S) -> (N, F)"""
        if self.equation_3:
            return self.merge(self.second(_pool(self.first(_pool(maps))))).relu().flatten(1)
        return _pool(self.second(_pool(self.first(maps)))).flatten(1)


# --- predictors on features ---


class FeaturePredictor(BlockPredictor):
    """Small MLP on features of a block and, for kind "combined", of the other blocks.

    The parts ``FIXED`` are the functions of ``features``; ``tokens`` is :class:`TokenScorer` and
    ``match`` :class:`TokenMatch`. With ``context`` the MLP also reads x_k - mean_j x_j, the
    difference of a block's features from the row's mean, for the block and ``neighbours`` blocks on
    each side: blocks must be compared, and what the question names is often next to the answer.
    """

    def __init__(
        self, config: PredictorConfig, shape: ModelShape, layer: int, parts: tuple[str, ...]
    ):
        super().__init__((layer,))
        self.size = config.block_size
        self.parts, self.context = parts, config.kind == "combined"
        self.steps = [step for n in range(1, config.neighbours + 1) for step in (-n, n)]
        channels = sum(part_sizes(shape)[part] for part in parts)
        hidden = 0 if config.kind == "handcrafted" else config.hidden
        # ``clues`` is its name in checkpoints
        scorer = TokenScorer(shape.width, hidden or TOKEN_FEATURES) if "tokens" in parts else None
        self.clues = scorer
        self.match = TokenMatch(shape.width) if "match" in parts else None
        columns = 2 + len(self.steps) if self.context else 1
        self.scorer = BlockScorer(channels * columns, hidden, config.dropout)

    def score_features(self, x: Tensor, real: Tensor) -> Tensor:
        if self.context:
            difference = features.relative(x, real)
            around = [features.neighbour(difference, real, step) for step in self.steps]
            x = torch.cat([x, difference, *around], dim=2)
        return self.scorer(x, real)

    def block_features(self, inputs: PredictorInputs) -> Tensor:
        blocks, layer = inputs.blocks, inputs.layers[self.layers[0]]
        compute = {
            "paper": lambda: features.paper_features(layer, blocks).flatten(2),
            "question": lambda: features.question_features(layer, blocks, self.size),
            "late_interaction": lambda: features.late_interaction(layer.hidden, blocks),
            "lexical": lambda: features.word_overlap(inputs.input_ids, blocks)[..., None],
            "position": lambda: features.block_position(blocks),
            "tokens": lambda: self.clues(layer, blocks),
            "match": lambda: self.match(layer.hidden, blocks),
        }
        return torch.cat([f() for part, f in compute.items() if part in self.parts], dim=2)


class TokenScorer(nn.Module):
    """Learned features of tokens, pooled over each block.  -> (B, K, 2 TOKEN_FEATURES)

        f_j = W_2 gelu(W_1 [norm(h_j); norm(c_j)])   mean and maximum over a block's tokens j

    h_j is the layer's input, c_j the output of its attention.
    """

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inner, self.outer = nn.Linear(2 * width, hidden), nn.Linear(hidden, TOKEN_FEATURES)

    def forward(self, layer: LayerActivations, blocks: Blocks) -> Tensor:
        """See the class."""
        # float32 in training; at inference the wide products use the encoder's dtype, such as bf16.
        dtype = torch.float32 if self.training else layer.context.dtype
        weights = self.inner.weight.to(dtype).chunk(2, dim=1)  # two products avoid writing [h; c]
        given = linear(pad_rows(self.before(layer.hidden.float()).to(dtype)), weights[0])
        made = linear(pad_rows(self.after(layer.context.float()).to(dtype)), weights[1])
        both = (given + made)[: blocks.block_ids.numel()].view(*blocks.block_ids.shape, -1)
        tokens = self.outer(gelu(both.float() + self.inner.bias)).transpose(1, 2)
        pooled = torch.cat([block_mean(tokens, blocks), block_max(tokens, blocks)], dim=1)
        return pooled.transpose(1, 2)


class TokenMatch(nn.Module):
    """Late interaction of learned projections with M heads.  -> (B, K, 2 M)

        s_mqk = max_{j in k} (W_m h_q) (V_m h_j) / sqrt(d),   a_mq = softmax_q (u_m h_q)
        sum_q a_mq s_mqk   and   sum_q a_mq (s_mqk - max_k' s_mqk')

    q runs over question tokens, j over tokens of block k; h is layer-normed; d = MATCH_WIDTH.
    """

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.ask = nn.LayerNorm(width), nn.Linear(width, MATCH_HEADS)
        self.query, self.key = (nn.Linear(width, MATCH_HEADS * MATCH_WIDTH) for _ in range(2))

    def forward(self, hidden: Tensor, blocks: Blocks) -> Tensor:
        """(B, L, D) -> (B, K, 2 M)"""
        states = self.norm(hidden.float())
        positions, real = blocks.question_positions
        words = states.gather(1, positions[..., None].expand(-1, -1, states.shape[2]))  # (B, Q, D)
        query, key = (
            x.unflatten(2, (MATCH_HEADS, MATCH_WIDTH)).transpose(1, 2)
            for x in (self.query(words), self.key(states))
        )
        scores = query @ key.transpose(2, 3) * MATCH_WIDTH**-0.5  # (B, M, Q, L)
        best = block_max(scores.flatten(1, 2), blocks).unflatten(1, scores.shape[1:3])
        there = blocks.real[:, None, None]
        if not blocks.count:
            return best.new_zeros(len(best), 0, 2 * MATCH_HEADS)
        top = best.masked_fill(~there, best.min()).amax(dim=3, keepdim=True)
        weights = mask_logits(self.ask(words).transpose(1, 2), real[:, None]).softmax(dim=2)
        weights = weights * real[:, None]  # all zero for a question without tokens
        both = torch.cat([best, best - top], dim=1)  # (B, 2 M, Q, K)
        found = (weights.repeat(1, 2, 1)[..., None] * both).sum(dim=2)
        return found.transpose(1, 2) * blocks.real[..., None]


# --- baselines, which read no layer ---


class LexicalPredictor(BlockPredictor):
    """Word overlap alone, the baseline that every pruned reader must beat.

        logit_k = a + b overlap_k + c (overlap_{k-1} + overlap_{k+1})

    ``overlap`` is :func:`qalib.skim.features.word_overlap`. The three parameters start from a fit
    on questions about Wikipedia (32-token blocks) and can be trained.
    """

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor((-2.8, 4.2, 0.5)))

    def block_features(self, inputs: PredictorInputs) -> Tensor:
        return features.word_overlap(inputs.input_ids, inputs.blocks)[..., None]

    def score_features(self, overlap: Tensor, real: Tensor) -> Tensor:
        around = features.neighbour(overlap, real, -1) + features.neighbour(overlap, real, 1)
        a, b, c = self.weights
        return (a + b * overlap + c * around).squeeze(2)


class RandomPredictor(BlockPredictor):
    """Uniform random scores: the baseline that keeps a share of the blocks at random.

    A score is a hash of seed, question, the block's tokens and its number, so a block of a question
    always gets the same score, in any batch and whatever was pruned around it.
    """

    def __init__(self, seed: int):
        super().__init__()
        self.seed = seed

    def score(self, inputs: PredictorInputs) -> Tensor:
        blocks = inputs.blocks
        words = _hash(inputs.input_ids + 1)
        question = _hash((words * blocks.question).sum(dim=1, keepdim=True) + self.seed)
        content = features.block_sum(words[:, None], blocks)[:, 0]  # (B, K)
        number = torch.arange(blocks.count, device=words.device)
        draw = (_hash(_hash(content + question) + number).double() + 0.5) / 2**32
        return draw.logit().float()


def _hash(x: Tensor) -> Tensor:
    """32-bit hash of the lowest 32 bits of an int64. Constants: C. Wellons, lowbias32."""
    mask = 0xFFFFFFFF
    x = x & mask
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & mask
    x = ((x ^ (x >> 15)) * 0x846CA68B) & mask
    return x ^ (x >> 16)


# --- from settings to modules ---


def part_sizes(shape: ModelShape) -> dict[Part, int]:
    """Number of features in each part, in the order of ``FeaturePredictor.block_features``."""
    sizes = {"paper": 6 * shape.heads, "question": 10 * shape.heads, "late_interaction": 3}
    sizes |= {"lexical": 1, "position": 3, "tokens": 2 * TOKEN_FEATURES}
    return sizes | {"match": 2 * MATCH_HEADS}


def parts_of(config: PredictorConfig) -> tuple[Part, ...]:
    """Features that a kind reads; none if it reads no features."""
    match config.kind:
        case "handcrafted":
            return ("paper",)
        case "question" | "tokens" | "late_interaction" | "lexical" as part:
            return (part,)
        case "combined":
            return config.parts
    return ()


def reads_fixed_features(config: PredictorConfig) -> bool:
    """Whether a kind reads features that can all be computed before its training."""
    return set() < set(parts_of(config)) <= set(FIXED)


def build_predictor(config: PredictorConfig, shape: ModelShape, layer: int) -> BlockPredictor:
    """A predictor with fresh weights for a layer, counted from 1.

    Raises QalibError if the encoder has no such layer.
    """
    if not 1 <= layer <= shape.layers:
        raise QalibError(
            f"a predictor cannot stand at layer {layer} of {shape.layers}; layers count from 1."
        )
    match config.kind:
        case "cnn" | "cnn-eq3" as kind:
            return BlockSkimCNN(shape.heads, config.block_size, layer, kind == "cnn-eq3")
        case "lexical":
            return LexicalPredictor()
        case "random":
            return RandomPredictor(config.seed)
    return FeaturePredictor(config, shape, layer, parts_of(config))
