"""The readers of notebooks 00, 06, 08 and 10: base, small, and small distilled from base."""

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
from qalib.study.stages import baseline, block_skim
from qalib.study.stages.distillation import cache_teacher
from qalib.training import TrainConfig, make_accelerator

Size = Literal["base", "small"]


@settings
class ReadersStudy:
    """Section [readers] of a profile: a base encoder, and a small one that it may teach.

    Learning rates are compared on held-out passages of section [readers_squad].
    """

    base: baseline.EncoderTraining = field(default_factory=baseline.EncoderTraining)
    small: baseline.EncoderTraining = field(default_factory=baseline.EncoderTraining)
    base_rates: tuple[float, ...] = (4e-4,)
    small_rates: tuple[float, ...] = (1e-3,)
    base_rank: int = 64
    small_rank: int = 88
    tests: tuple[str, ...] = ()  # further sources to score on
    long: int = 512  # longest input in word pieces of a paragraph with its neighbours
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.05
    loss: DistillConfig = field(
        default_factory=lambda: DistillConfig(margin_weight=0.0, attention_weight=0.0)
    )

    def training(self, size: Size, rate: float, seed: int) -> baseline.AdapterTraining:
        """The training settings of the reader of one size."""
        one = getattr(self, size)
        one = replace(one, train=replace(one.train, learning_rate=rate), held_out=self.held_out)
        return baseline.AdapterTraining(replace(one, seed=seed), getattr(self, f"{size}_rank"))


def reader_data(study: Study) -> tuple[Dataset, Dataset]:
    """The readers' training data, and the held-out passages on which rates are compared."""
    plan = study.config("readers", ReadersStudy)
    watch = hold_out(study.data("train", "readers_squad"), plan.held_out)[1]
    return study.data("train", "readers_data"), watch


def train_reader(
    study: Study, size: Size, rate: float, seed: int = 0, cache: Run | None = None
) -> Run:
    """Train a reader of section [readers]; ``cache``: the outputs of its teacher, if it has one."""
    plan, (data, watch) = study.config("readers", ReadersStudy), reader_data(study)
    config = plan.training(size, rate, seed)
    config = replace(config, loss=plan.loss) if cache else config
    return study.run(baseline.train_adapter, config, data=data, watch=watch, cache=cache)


def best_reader(study: Study, size: Size) -> Run:
    """The reader with the learning rate whose F1 on the held-out passages is highest."""
    rates = getattr(study.config("readers", ReadersStudy), f"{size}_rates")
    return max(
        (train_reader(study, size, rate) for rate in rates), key=lambda run: run.metrics["watch_f1"]
    )


def teacher_cache(study: Study) -> Run:
    """The outputs of the best base reader for the training data."""
    config = TeacherCacheConfig(MiningConfig(k=1), attention=False)
    data, _ = reader_data(study)
    return study.run(cache_teacher, config, data=data, teacher=best_reader(study, "base"))


def taught_reader(study: Study, seed: int = 0) -> Run:
    """The small reader that is also distilled from the best base reader."""
    rate = best_reader(study, "small").settings(baseline.AdapterTraining).base.train.learning_rate
    return train_reader(study, "small", rate, seed, teacher_cache(study))


def reader_tests(study: Study) -> dict[str, Dataset]:
    """The test sets by name; "-long" is the first one with paragraphs among their neighbours."""
    plan, first = study.config("readers", ReadersStudy), study.data("test", "readers_data")
    tokenizer = build_encoder(plan.small.encoder).tokenizer
    sets = [first, lengthen(first, tokenizer, plan.long), *map(load_data, plan.tests)]
    return {data.name: data for data in sets}


def every(data: Dataset, step: int) -> Dataset:
    """Every ``step``-th question of a data set."""
    examples = data.examples[::step]
    return make_dataset(f"{data.name}-{step}", examples, data.path, data.raw_sha256, data.version)


def some(data: Dataset, count: int) -> Dataset:
    """Evenly spaced questions: ``count`` to 2 ``count`` - 1, or all if there are fewer."""
    return every(data, max(1, len(data) // count))


def score_reader(study: Study, name: str, run: Run, data: Dataset) -> Run:
    """EM and F1 of a reader on a data set, with the windows of its training."""
    windows = baseline.encoder_training(run).windows
    config = baseline.Evaluation(name, AnswerConfig(windows=windows, precision="fp32"))
    return study.run(baseline.evaluate, config, test=data, weights=run)


# --- skimming at base size ------------------------------------------------------------------------


@settings
class BaseSkim:
    """Section [base_skim]: predictors beside the frozen readers.

    ``recalls``: shares of the held-out questions whose answers the thresholds keep.
    """

    layers: tuple[int, ...] = (3, 4, 5, 6)  # of the base encoder
    small_layers: tuple[int, ...] = (2, 3, 4)
    train: TrainConfig = field(default_factory=TrainConfig)
    predictor_rate: float = 20.0
    loss: SkimLossConfig = field(default_factory=SkimLossConfig)
    recalls: tuple[float, ...] = (0.95, 0.98, 0.99)
    every: int = 4  # operating points are compared on every n-th test question
    small_every: int = 8  # the same for the small reader
    elsewhere: int = 100  # questions of each test set on which guarantees are tested
    min_pruned_fraction: float = 0.1
    min_tokens: int = 96
    timed: tuple[int, ...] = (16, 8)  # timed questions of the first two test sets
    rounds: Annotated[int, Field(ge=1)] = 3
    quantized: int = 400  # test questions for the F1 of int8 readers


def skim_beside(study: Study, reader: Run, kind: str, layers: tuple[int, ...]) -> Run:
    """Train predictors beside a frozen reader of section [readers]."""
    plan, data = study.config("base_skim", BaseSkim), study.data("train", "readers_data")
    base = baseline.encoder_training(reader)
    config = block_skim.SkimTraining(
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
    return study.run(block_skim.train_skim, config, data=data, start=reader)


@settings
class Thresholds:
    """The recalls on held-out passages for which thresholds are chosen."""

    recalls: tuple[float, ...]


@stage("thresholds", publish=())
def choose_thresholds(config: Thresholds, work: Path, weights: Run, data: Dataset) -> dict:
    """Choose a threshold for every layer and recall on ``data``, and measure what it keeps there.

    Returns rows with layer, recall, threshold, token_fraction, relative_flops.
    """
    model = block_skim.load_skim_reader(weights)
    training = weights.settings(block_skim.SkimTraining)
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
    """The rows of :func:`choose_thresholds` on passages held out from every training."""
    plan = study.config("base_skim", BaseSkim)
    held = hold_out(study.data("train", "readers_data"), skimmer.config["held_out"])[1]
    run = study.run(choose_thresholds, Thresholds(plan.recalls), weights=skimmer, data=held)
    return run.metrics["rows"]


def pruning_at(plan: BaseSkim, point: dict) -> block_skim.Pruning:
    """The pruning settings of an operating point."""
    shared = {name: getattr(plan, name) for name in ("min_pruned_fraction", "min_tokens")}
    return block_skim.Pruning((point["layer"],), (point["threshold"],), **shared)


def score_point(study: Study, name: str, skimmer: Run, point: dict | None, data: Dataset) -> Run:
    """EM and F1 of a reader that prunes at an operating point; None for no pruning."""
    plan = study.config("base_skim", BaseSkim)
    windows = skimmer.settings(block_skim.SkimTraining).windows
    pruning = pruning_at(plan, point) if point else block_skim.Pruning()
    answer = AnswerConfig(windows=windows, precision="fp32")
    config = baseline.Evaluation(name, block_skim.SkimAnswerConfig(answer, pruning))
    return study.run(baseline.evaluate, config, weights=skimmer, test=data)
