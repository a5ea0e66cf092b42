"""Block-Skim's own module: a small convolutional network over a block's attention to itself.

The paper and its released code differ; both forms are here. Both see the attention of a block's
tokens to each other, one channel a head, and never what they exchange with the question. Both end
in one logit; a softmax over two logits z_0, z_1, as in the released code, is the sigmoid of
z_1 - z_0, which is linear in the same features and hence the same family of functions.

Notation: N real blocks, H heads, S block size.
"""

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from qalib.skim.predictor import BlockNorm, Predictor, block_count, to_rows
from qalib.skim.views import Sight


def halved(maps: Tensor) -> Tensor:
    """Average pooling by 2, as long as there is something to pool.  (N, H, S, S) -> (.., S / 2)"""
    return avg_pool2d(maps, 2) if maps.shape[-1] > 1 else maps


def _half(side: int) -> int:
    return max(1, side // 2)


class Convolution(nn.Module):
    """3 x 3 convolution, batch norm and ReLU.  (N, H, S, S) -> same"""

    def __init__(self, heads: int):
        super().__init__()
        self.conv = nn.Conv2d(heads, heads, 3, padding=1)
        self.norm = BlockNorm(heads)

    def forward(self, maps: Tensor) -> Tensor:
        maps = self.conv(maps)
        return self.norm(maps.flatten(2)).view_as(maps).relu()


class Diagonal(Predictor):
    """The released form:  conv 3x3, norm, ReLU, pool;  the same again;  linear.

    A last block that is shorter than S is filled up with zeros, as its map is 0 there; of a block
    longer than S the first S tokens are seen. A block of one token has one attention value a head
    and nothing to pool: there the module is a small MLP over heads. Source: facts about the code
    of Block-Skim (AAAI 2022).
    """

    def __init__(self, heads: int, size: int, layer: int):
        super().__init__((layer,))
        self.heads, self.size = heads, size
        self.first, self.second = Convolution(heads), Convolution(heads)
        self.last = nn.Linear(self._flat(), 1)

    def _flat(self) -> int:
        return self.heads * _half(_half(self.size)) ** 2

    def score(self, sight: Sight) -> Tensor:
        """See :class:`Predictor`."""
        real = sight.blocks.real
        attention = sight.layers[self.layers[0]].attention
        maps = attention.diagonal(sight.blocks, self.size).float()  # (B, H, K, S, S)
        maps = maps.transpose(1, 2)
        if not self.training:  # nothing is counted, so blocks that do not exist do no harm
            return self.last(self.features(maps.flatten(0, 1))).view(real.shape)
        features = self.features(maps[real])  # (N, F)
        return to_rows(self.last(features).squeeze(1), real)

    def features(self, maps: Tensor) -> Tensor:
        """(N, H, S, S) -> (N, F)"""
        return halved(self.second(halved(self.first(maps)))).flatten(1)

    def sides(self) -> tuple[int, int]:
        """The sides of the maps that the two 3 x 3 convolutions run over."""
        return self.size, _half(self.size)

    def multiply_adds(self, length: int, question: int) -> float:
        """See :class:`Predictor`; 26.5 million for BERT-base at 512 tokens, 0.66 % of a layer."""
        first, second = (9 * self.heads**2 * side**2 for side in self.sides())
        return block_count(length, self.size) * (first + second + self.last.in_features)


class Equation(Diagonal):
    """The form of the paper's Eq. 3:  pool, conv 3x3;  pool, conv 3x3;  conv 1x1;  linear.

    Pooling comes first, which makes it a quarter as costly. ReLU follows every convolution and
    batch norm the two large ones, which the text says without saying where. The 1x1 convolution
    goes to one channel, as the unused one in the released code does.
    """

    def __init__(self, heads: int, size: int, layer: int):
        super().__init__(heads, size, layer)
        self.merge = nn.Conv2d(heads, 1, 1)

    def _flat(self) -> int:
        return _half(_half(self.size)) ** 2

    def features(self, maps: Tensor) -> Tensor:
        """(N, H, S, S) -> (N, F)"""
        maps = self.second(halved(self.first(halved(maps))))
        return self.merge(maps).relu().flatten(1)

    def sides(self) -> tuple[int, int]:
        """See :class:`Diagonal`."""
        return _half(self.size), _half(_half(self.size))

    def multiply_adds(self, length: int, question: int) -> float:
        """See :class:`Predictor`."""
        merge = block_count(length, self.size) * self.heads * self._flat()
        return super().multiply_adds(length, question) + merge
