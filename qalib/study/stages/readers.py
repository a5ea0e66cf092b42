"""The readers of notebooks 06 and 10: a base encoder, a small one, and what it learns from it."""

from dataclasses import field, replace
from typing import Annotated, Literal

from pydantic import Field

from qalib.data.schema import Dataset, hold_out
from qalib.distill.distractors import MiningConfig
from qalib.distill.teacher_cache import TeacherCacheConfig
from qalib.losses import DistillConfig
from qalib.settings import settings
from qalib.study.run_cache import Run
from qalib.study.session import Study
from qalib.study.stages.baseline import (
    AdapterTraining,
    EncoderTraining,
    train_adapter,
    train_encoder,
)
from qalib.study.stages.distillation import cache_teachers

Size = Literal["base", "small"]


@settings
class ReadersStudy:
    """Section [readers] of a profile: a base encoder, a small one, and what it learns from it.

    Rates are compared on held-out passages of the section [readers_squad].
    """

    base: EncoderTraining = field(default_factory=EncoderTraining)
    small: EncoderTraining = field(default_factory=EncoderTraining)
    base_rates: tuple[float, ...] = (4e-4,)
    small_rates: tuple[float, ...] = (1e-3,)
    base_rank: int = 64
    small_rank: int = 88
    shallow: tuple[int, ...] = (2, 4, 6)  # layers of the small encoder
    shallow_rank: int = 192
    full_rate: float = 3e-4  # where all weights are trained
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.05
    seeds: Annotated[int, Field(ge=1)] = 1
    loss: DistillConfig = field(
        default_factory=lambda: DistillConfig(margin_weight=0.0, attention_weight=0.0)
    )

    def training(self, size: Size, rate: float, seed: int) -> AdapterTraining:
        """A reader of one size."""
        one = getattr(self, size)
        one = replace(one, train=replace(one.train, learning_rate=rate), held_out=self.held_out)
        return AdapterTraining(replace(one, seed=seed), getattr(self, f"{size}_rank"))


def reader_data(study: Study) -> tuple[Dataset, Dataset]:
    """What the readers of [readers] are trained on, and held-out passages to choose by."""
    plan = study.config("readers", ReadersStudy)
    watch = hold_out(study.data("train", "readers_squad"), plan.held_out)[1]
    return study.data("train", "readers_data"), watch


def train_reader(
    study: Study,
    size: Size,
    rate: float,
    seed: int = 0,
    cache: Run | None = None,
    squad_only: bool = False,
) -> Run:
    """A reader of [readers]; ``cache``: the outputs of its teacher."""
    plan, (data, watch) = study.config("readers", ReadersStudy), reader_data(study)
    config = plan.training(size, rate, seed)
    config = replace(config, loss=plan.loss) if cache else config
    data = study.data("train", "readers_squad") if squad_only else data
    return study.run(train_adapter, config, data=data, watch=watch, cache=cache)


def best_reader(study: Study, size: Size) -> Run:
    """The reader with the learning rate that is best on the held-out passages."""
    rates = getattr(study.config("readers", ReadersStudy), f"{size}_rates")
    return max(
        (train_reader(study, size, rate) for rate in rates), key=lambda run: run.metrics["watch_f1"]
    )


def teacher_cache(study: Study) -> Run:
    """What the best base reader predicts for the training data."""
    config = TeacherCacheConfig(MiningConfig(k=1), attention=False)
    data, _ = reader_data(study)
    return study.run(cache_teachers, config, data=data, teachers=[best_reader(study, "base")])


def taught_reader(study: Study, seed: int = 0) -> Run:
    """The small reader that learns from the best base reader, too."""
    rate = best_reader(study, "small").settings(AdapterTraining).base.train.learning_rate
    return train_reader(study, "small", rate, seed, teacher_cache(study))


def shallow_reader(study: Study) -> Run:
    """Every second layer of the small encoder, taught by the best base reader."""
    plan, (data, watch) = study.config("readers", ReadersStudy), reader_data(study)
    best = best_reader(study, "small").settings(AdapterTraining)
    config = replace(best, layers=plan.shallow, rank=plan.shallow_rank, loss=plan.loss)
    return study.run(train_adapter, config, data=data, watch=watch, cache=teacher_cache(study))


def full_reader(study: Study) -> Run:
    """The small reader with all of its weights trained: what the low rank costs."""
    plan, (data, watch) = study.config("readers", ReadersStudy), reader_data(study)
    config = plan.training("small", plan.full_rate, 0).base
    return study.run(train_encoder, config, data=data, watch=watch)
