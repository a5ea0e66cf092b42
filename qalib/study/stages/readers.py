"""The readers of notebooks 06 and 10: a base encoder, a small one, and what it learns from it."""

import itertools
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from qalib.data.augment import lengthen
from qalib.data.schema import Dataset, hold_out, make_dataset
from qalib.data.sources import load_data
from qalib.distill.distractors import MiningConfig
from qalib.distill.teacher_cache import TeacherCacheConfig
from qalib.inference import AnswerConfig
from qalib.losses import DistillConfig, SkimLossConfig
from qalib.models.encoder import build_encoder
from qalib.settings import settings
from qalib.skim.calibration import block_predictions, calibrate_threshold
from qalib.skim.cost import CostModel
from qalib.skim.predictors import PredictorConfig
from qalib.study.run_cache import Run, stage
from qalib.study.session import Study
from qalib.study.stages.baseline import (
    AdapterTraining,
    EncoderTraining,
    Evaluation,
    encoder_training,
    evaluate,
    train_adapter,
)
from qalib.study.stages.block_skim import (
    Pruning,
    SkimAnswerConfig,
    SkimTraining,
    load_skim_reader,
    train_skim,
)
from qalib.study.stages.distillation import cache_teacher
from qalib.training import TrainConfig, make_accelerator

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
    tests: tuple[str, ...] = ()  # further sources to score on
    long: int = 512  # word pieces of a passage among its neighbours
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.05
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
    study: Study, size: Size, rate: float, seed: int = 0, cache: Run | None = None
) -> Run:
    """A reader of [readers]; ``cache``: the outputs of its teacher."""
    plan, (data, watch) = study.config("readers", ReadersStudy), reader_data(study)
    config = plan.training(size, rate, seed)
    config = replace(config, loss=plan.loss) if cache else config
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
    return study.run(cache_teacher, config, data=data, teacher=best_reader(study, "base"))


def taught_reader(study: Study, seed: int = 0) -> Run:
    """The small reader that learns from the best base reader, too."""
    rate = best_reader(study, "small").settings(AdapterTraining).base.train.learning_rate
    return train_reader(study, "small", rate, seed, teacher_cache(study))


def reader_tests(study: Study) -> dict[str, Dataset]:
    """The test sets by name; in the first one's "-long" a paragraph is among its neighbours."""
    plan, first = study.config("readers", ReadersStudy), study.data("test", "readers_data")
    tokenizer = build_encoder(plan.small.encoder).tokenizer
    sets = [first, lengthen(first, tokenizer, plan.long), *map(load_data, plan.tests)]
    return {data.name: data for data in sets}


def every(data: Dataset, step: int) -> Dataset:
    """Every so many-th question of a data set."""
    examples = data.examples[::step]
    return make_dataset(f"{data.name}-{step}", examples, data.path, data.raw_sha256)


def some(data: Dataset, count: int) -> Dataset:
    """So many questions of a data set, at equal distances."""
    return every(data, max(1, len(data) // count))


def score_reader(study: Study, name: str, run: Run, data: Dataset) -> Run:
    """EM and F1 of a reader on a data set, in windows of its training."""
    windows = encoder_training(run).windows
    config = Evaluation(name, AnswerConfig(windows=windows, precision="fp32"))
    return study.run(evaluate, config, test=data, weights=run)


# --- skimming at base size ------------------------------------------------------------------------


@settings
class BaseSkim:
    """Section [base_skim]: predictors beside the frozen readers.

    Thresholds keep the answers of a share ``recalls`` of the held-out questions.
    """

    layers: tuple[int, ...] = (3, 4, 5, 6)  # of the base encoder
    small_layers: tuple[int, ...] = (2, 3, 4)
    train: TrainConfig = field(default_factory=TrainConfig)
    predictor_rate: float = 20.0
    loss: SkimLossConfig = field(default_factory=SkimLossConfig)
    recalls: tuple[float, ...] = (0.95, 0.98, 0.99)
    every: int = 4  # of the test questions that operating points are compared on
    small_every: int = 8  # of those that the small reader answers
    elsewhere: int = 100  # questions of each kind of text that guarantees are tested on
    min_pruned_fraction: float = 0.1
    min_tokens: int = 96
    timed: tuple[int, ...] = (16, 8)  # questions of each test set that are timed; the last for all
    rounds: Annotated[int, Field(ge=1)] = 3
    quantized: int = 400  # test questions that int8 readers answer


def skim_beside(study: Study, reader: Run, kind: str, layers: tuple[int, ...]) -> Run:
    """Predictors beside a reader of [readers], which stays as it is."""
    plan, data = study.config("base_skim", BaseSkim), study.data("train", "readers_data")
    base = encoder_training(reader)
    config = SkimTraining(
        windows=base.windows,
        train=plan.train,
        predictor=PredictorConfig(kind),
        skim_loss=plan.loss,
        predictor_rate=plan.predictor_rate,
        layers=layers,
        frozen=True,
        encoder=base.encoder,
        held_out=base.held_out,
        start="run",
    )
    return study.run(train_skim, config, data=data, start=reader)


@settings
class Thresholds:
    """Recalls on held-out passages that thresholds are chosen for."""

    recalls: tuple[float, ...]


@stage("thresholds", publish=())
def choose_thresholds(config: Thresholds, work: Path, weights: Run, data: Dataset) -> dict:
    """A threshold for every layer and recall, on ``data``, and what it keeps there.

    Columns: layer, recall, threshold, token_fraction, relative_flops.
    """
    model, training = load_skim_reader(weights), weights.settings(SkimTraining)
    model.to(make_accelerator().device)
    blocks = block_predictions(model, data, training.windows, "fp32")
    cost, rows = CostModel.of(model.reader.encoder, model.skimmer), []
    for layer, recall in itertools.product(blocks.scores, config.recalls):
        at = layer, calibrate_threshold(blocks, layer, recall)
        row = {"layer": layer, "recall": recall, "threshold": at[1]}
        row["token_fraction"] = blocks.token_fraction(*at)
        rows.append(row | {"relative_flops": blocks.relative_flops(*at, cost)})
    return {"rows": rows, "questions": int(blocks.answered.sum())}


def operating_points(study: Study, skimmer: Run) -> list[dict]:
    """The rows of :func:`choose_thresholds` on the passages that no training has seen."""
    plan = study.config("base_skim", BaseSkim)
    held = hold_out(study.data("train", "readers_data"), skimmer.config["held_out"])[1]
    run = study.run(choose_thresholds, Thresholds(plan.recalls), weights=skimmer, data=held)
    return run.metrics["rows"]


def pruning_at(plan: BaseSkim, point: dict) -> Pruning:
    """How a reader prunes at an operating point."""
    shared = {name: getattr(plan, name) for name in ("min_pruned_fraction", "min_tokens")}
    return Pruning((point["layer"],), (point["threshold"],), **shared)


def score_point(study: Study, name: str, skimmer: Run, point: dict | None, data: Dataset) -> Run:
    """EM and F1 of a reader that prunes at an operating point; None for no pruning."""
    plan, windows = study.config("base_skim", BaseSkim), skimmer.settings(SkimTraining).windows
    pruning = pruning_at(plan, point) if point else Pruning()
    answer = AnswerConfig(windows=windows, precision="fp32")
    config = Evaluation(name, SkimAnswerConfig(answer, pruning))
    return study.run(evaluate, config, weights=skimmer, test=data)
