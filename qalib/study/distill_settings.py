"""What a profile asks for of answer distillation: sections ``distill`` and ``distill_data``."""

from dataclasses import dataclass, field

from qalib.data.squad import Dataset
from qalib.data.word_features import WordConfig
from qalib.distill.distractors import MiningConfig
from qalib.distill.losses import DistillConfig
from qalib.errors import QalibError
from qalib.readers.encoder_reader import MINILM
from qalib.readers.mnemonic_reader import MnemonicConfig
from qalib.study.session import Study
from qalib.train import TrainConfig

LONGEST = 20  # word pieces of an answer; the paper's words are a little longer


@dataclass(frozen=True)
class WordTraining:
    """All that the weights of a word-level reader depend on, next to the data."""

    reader: MnemonicConfig = field(default_factory=MnemonicConfig)
    text: WordConfig = field(default_factory=WordConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    smoothing: float = 0.0  # share of the gold label that goes to all positions alike
    held_out: float = 0.0  # share of the passages kept back and scored after every epoch
    seed: int = 0

    def __post_init__(self):
        for name in ("smoothing", "held_out"):
            if not 0 <= getattr(self, name) < 1:
                value = getattr(self, name)
                raise QalibError(f"{name} must be from 0 to below 1, not {value}.")
        if self.reader.embedding != MINILM:
            raise QalibError(
                f"the study's readers have the embedding {MINILM!r}, which needs no vectors of "
                f"its own, not {self.reader.embedding!r}."
            )


@dataclass(frozen=True)
class DistillStudy:
    """What notebooks 08 and 09 train: one reader, several teachers, students of them."""

    base: WordTraining = field(default_factory=WordTraining)  # of teachers and students alike
    teachers: int = 4
    seeds: int = 1  # of the plain reader and of the student with all losses
    choices: tuple[tuple[float, int], ...] = ()  # (learning rate, epochs) tried; held out: below
    held_out: float = 0.1
    loss: DistillConfig = field(default_factory=DistillConfig)
    mining: MiningConfig = field(default_factory=lambda: MiningConfig(max_length=LONGEST))
    folds: int = 0  # of the teachers that mine out-of-fold; 0 = no such row
    ablation_epochs: int = 0  # of the readers of the ablations; 0 = as ``base``
    row_seeds: int = 1  # of each of them
    counts: tuple[int, ...] = ()  # teachers of the students with fewer than all
    smoothing: float = 0.1  # of the control with smoothed labels

    def __post_init__(self):
        if not 1 <= self.seeds <= self.teachers:
            raise QalibError(
                f"distill: seeds must be from 1 to the {self.teachers} teachers, which are the "
                f"single readers too, not {self.seeds}."
            )
        if self.row_seeds < 1:
            raise QalibError(f"distill: row_seeds must be at least 1, not {self.row_seeds}.")
        for count in self.counts:
            if not 1 <= count < self.teachers:
                raise QalibError(
                    f"distill: counts must be from 1 to below the {self.teachers} teachers, "
                    f"not {count}."
                )
        if self.folds not in (0, *range(2, 10)):
            raise QalibError(f"distill: folds must be 0, or from 2 to 9, not {self.folds}.")
        if any(rate <= 0 or epochs < 1 for rate, epochs in self.choices):
            raise QalibError("distill: choices are pairs of a learning rate above 0 and epochs.")


def asked(study: Study) -> DistillStudy:
    """The profile's section."""
    return study.section("distill", DistillStudy)


def training_data(study: Study) -> Dataset:
    """What teachers and the students of the main table learn from."""
    return study.data("train", "distill_data")


def ablation_data(study: Study) -> Dataset:
    """What the students of the ablations learn from: all of the above, or a part of it."""
    return study.data("train", "distill_ablations")


def answer_settings():
    """How spans are decoded."""
    from qalib.answer import AnswerConfig

    return AnswerConfig(max_answer_tokens=LONGEST)
