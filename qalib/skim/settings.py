"""How a model is skimmed: which layers judge blocks, which of them leave some out, and when."""

from collections.abc import Mapping
from dataclasses import dataclass

from qalib.errors import QalibError
from qalib.skim.predictors import PredictorConfig

RESTORE = ("minus-infinity", "forward")


@dataclass(frozen=True)
class SkimConfig:
    """Settings of a ``Skimmer``; layers count from 1.

    ``restore``: what the head says where the model did not read on: "minus-infinity", no answer
    there (the minimum of float32); or "forward", the head applied to the hidden states that the
    skim layer was given (section 4.3 of the Block-Skim paper).

    ``drop``: rows that need not be read (``Skimmer.run``: ``optional``) leave at the first skim
    point if no block of theirs reaches this probability; 0 drops none.
    """

    predictor: PredictorConfig | Mapping  # a mapping is read as the settings of one
    layers: tuple[int, ...]  # those with a predictor
    skim_at: tuple[int, ...] = ()  # those where blocks are left out
    thresholds: tuple[float, ...] = ()  # one for each of them, 0 to 1; 0 keeps every block
    min_keep: int = 1  # the best blocks that are kept in any case
    neighbours: int = 0  # blocks kept on each side of a kept one
    spare: float = 0.0  # the share of its tokens that a row has to be spared, or it goes on whole
    min_tokens: int = 0  # shorter rows go on whole, and in skimming are not judged at all
    drop: float = 0.0  # optional rows without a block that reaches this probability leave
    restore: str = RESTORE[0]
    answer_head: bool = False  # linear heads at these layers, whose logits skipped blocks get
    detach_views: bool = False  # nothing that predictors or heads learn reaches the encoder

    def __post_init__(self):
        for name in ("layers", "skim_at", "thresholds"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if isinstance(self.predictor, Mapping):
            object.__setattr__(self, "predictor", _predictor_config(self.predictor))
        for name in ("layers", "skim_at"):
            numbers = getattr(self, name)
            whole = all(isinstance(n, int) and n >= 1 for n in numbers)
            if not whole or sorted(set(numbers)) != list(numbers):
                raise QalibError(f"{name} must be layer numbers from 1 up, not {numbers}.")
        if missing := set(self.skim_at) - set(self.layers):
            raise QalibError(
                f"skim_at names layer {min(missing)}, which has no predictor; the layers with one "
                f"are {self.layers}."
            )
        if len(self.thresholds) != len(self.skim_at):
            raise QalibError(
                f"{len(self.skim_at)} skim points need as many thresholds, not "
                f"{len(self.thresholds)}."
            )
        if not all(0 <= t <= 1 for t in self.thresholds):
            raise QalibError(f"thresholds are probabilities, 0 to 1, not {self.thresholds}.")
        if self.min_keep < 0 or self.neighbours < 0:
            raise QalibError(
                f"min_keep ({self.min_keep}) and neighbours ({self.neighbours}) count blocks; "
                "give 0 or more."
            )
        if not 0 <= self.drop <= 1:
            raise QalibError(f"drop is a probability, 0 to 1, not {self.drop:g}.")
        if not 0 <= self.spare <= 1 or self.min_tokens < 0:
            raise QalibError(
                f"spare ({self.spare}) is a share, 0 to 1, and min_tokens ({self.min_tokens}) "
                "counts tokens; give 0 to shorten every row."
            )
        if self.restore not in RESTORE:
            raise QalibError(
                f"restore must be {' or '.join(map(repr, RESTORE))}, not {self.restore!r}."
            )

    @property
    def threshold_at(self) -> dict[int, float]:
        """The threshold of every skim point, by layer."""
        return dict(zip(self.skim_at, self.thresholds, strict=True))


def _predictor_config(settings: Mapping) -> PredictorConfig:
    try:
        return PredictorConfig(**settings)
    except TypeError as error:
        raise QalibError(f"the predictor's settings cannot be read ({error}).") from None
