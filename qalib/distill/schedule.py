"""Joint or stage-wise: which losses are learnt when, with as many steps in all either way."""

from dataclasses import dataclass, replace

from qalib.distill.losses import DistillConfig
from qalib.errors import QalibError

KINDS = ("joint", "stage-wise")


@dataclass(frozen=True)
class Stage:
    """So many steps of training with these losses. Each stage is a training run of its own."""

    name: str
    steps: int
    config: DistillConfig


@dataclass(frozen=True)
class Schedule:
    """All losses at once (Equation 1), or attention alone before the others (section 4.5).

    ``first``: the share of the steps that attention alone is given. The paper does not tell it.
    """

    kind: str = "joint"
    first: float = 0.25

    def __post_init__(self):
        if self.kind not in KINDS:
            raise QalibError(f"kind must be one of {', '.join(KINDS)}, not {self.kind!r}.")
        if not 0 < self.first < 1:
            raise QalibError(f"first must be a share between 0 and 1, not {self.first}.")

    def stages(self, config: DistillConfig, steps: int) -> list[Stage]:
        """The stages, in order; their steps add up to ``steps``.

        Raises QalibError if there are no attention and other losses, or no steps, to part.
        """
        if self.kind == "joint":
            return [Stage("joint", steps, config)]
        if not config.delta or not any((config.ce, config.kd, config.gamma)):
            raise QalibError(
                "stage-wise training needs delta above 0, and one of the other losses."
            )
        if steps < 2:
            raise QalibError(f"stage-wise training needs at least 2 steps, not {steps}.")
        warm = min(steps - 1, max(1, round(self.first * steps)))
        return [
            Stage("attention", warm, replace(config, ce=0.0, kd=0.0, gamma=0.0)),
            Stage("answers", steps - warm, replace(config, delta=0.0)),
        ]
