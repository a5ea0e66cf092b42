"""The predictors: which kinds there are, how one is chosen and what it costs.

    predictor = build_predictor(PredictorConfig("combined"), ModelShape(6, 12, 384), layer=3)
    logits = predictor(sight)  # (B, K)

The kinds themselves are in ``convolution``, ``numbers`` and ``references``.
"""

from dataclasses import dataclass

from qalib.errors import QalibError
from qalib.skim.convolution import Diagonal, Equation
from qalib.skim.numbers import PARTS, Combined, Handcrafted
from qalib.skim.predictor import Predictor
from qalib.skim.references import Lexical, Oracle, Random

KINDS = (
    "diagonal",
    "equation",
    "question",
    "handcrafted",
    "lexical",
    "late",
    "tokens",
    "combined",
    "random",
    "oracle",
)


@dataclass(frozen=True)
class PredictorConfig:
    """Which predictor, for which blocks. ``dataclasses.asdict`` of it goes through JSON and back.

    ``kind``: one of ``KINDS``. What some kinds do not use is ignored by them.
    """

    kind: str = "question"
    block_size: int = 32  # tokens
    hidden: int = 64  # width of the MLP (question, late, tokens, combined); 0: a logistic layer
    dropout: float = 0.1  # of that width
    look_back: int = 0  # earlier layers looked at, too (late, combined)
    neighbours: int = 1  # blocks on each side looked at, too (combined)
    parts: tuple[str, ...] = PARTS  # what is looked at (combined)
    seed: int = 0  # (random)

    def __post_init__(self):
        object.__setattr__(self, "parts", tuple(self.parts))
        if self.kind not in KINDS:
            raise QalibError(f"no predictor {self.kind!r}; the kinds are {', '.join(KINDS)}.")
        for name, least in (("block_size", 1), ("hidden", 0), ("look_back", 0), ("neighbours", 0)):
            if getattr(self, name) < least:
                raise QalibError(
                    f"{name} of a predictor is at least {least}, not {getattr(self, name)}."
                )
        if not 0 <= self.dropout < 1:
            raise QalibError(f"dropout of a predictor is from 0 to below 1, not {self.dropout}.")
        if not self.parts or set(self.parts) - set(PARTS):
            raise QalibError(
                f"parts of a predictor are some of {', '.join(PARTS)}, not {self.parts}."
            )


@dataclass(frozen=True)
class ModelShape:
    """What a predictor has to know of its encoder."""

    layers: int
    heads: int
    width: int


def build_predictor(config: PredictorConfig, shape: ModelShape, layer: int) -> Predictor:
    """A fresh predictor that decides at ``layer``, counted from 1.

    Raises QalibError if the encoder has no such layer.
    """
    if not 1 <= layer <= shape.layers:
        raise QalibError(
            f"a predictor cannot stand at layer {layer} of {shape.layers}; layers count from 1."
        )
    return _build(config, shape, layer)


def _build(config: PredictorConfig, shape: ModelShape, layer: int) -> Predictor:
    heads, size = shape.heads, config.block_size
    several = tuple(range(max(1, layer - config.look_back), layer + 1))
    mlp = {"size": size, "hidden": config.hidden, "dropout": config.dropout}
    match config.kind:
        case "diagonal":
            return Diagonal(heads, size, layer)
        case "equation":
            return Equation(heads, size, layer)
        case "handcrafted":
            return Handcrafted(heads, size, layer)
        case "question":
            return Combined(heads, shape.width, layers=(layer,), parts=("question",), **mlp)
        case "late":
            return Combined(heads, shape.width, layers=several, parts=("late",), **mlp)
        case "tokens":
            return Combined(heads, shape.width, layers=(layer,), parts=("tokens",), **mlp)
        case "combined":
            return Combined(
                heads,
                shape.width,
                layers=several,
                parts=config.parts,
                context=True,
                neighbours=config.neighbours,
                **mlp,
            )
        case "lexical":
            return Lexical()
        case "random":
            return Random(config.seed)
    return Oracle()


def multiply_adds(
    config: PredictorConfig, shape: ModelShape, length: int, question: int = 16
) -> float:
    """What one passage of ``length`` tokens costs the predictor, for a question of so many.

    Counted without the attention probabilities, which the layer computes anyway, and at a layer
    deep enough to look back from. Compare ``layer_multiply_adds``.
    """
    return build_predictor(config, shape, shape.layers).multiply_adds(length, question)


def layer_multiply_adds(shape: ModelShape, length: int) -> float:
    """One encoder layer with a feed-forward part of 4 D: 12 N D^2 + 2 N^2 D."""
    return 12.0 * length * shape.width**2 + 2.0 * length**2 * shape.width
