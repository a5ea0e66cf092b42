"""Stages of notebooks 05 to 07: train Block-Skim predictors, and predict blocks with them.

The classifier scores and recall curves of a data set are recorded with its ``predict-blocks`` run;
the block probabilities themselves are large and stay in the store.

Notation: Q questions.
"""

from dataclasses import asdict, field, fields, replace
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from safetensors.numpy import load_file, save_file

from qalib.checkpoints import load_weights, save_weights
from qalib.data.schema import Dataset, hold_out
from qalib.data.windows import WindowConfig
from qalib.errors import QalibError
from qalib.inference import AnswerConfig, QuestionAnswerer, choose_device
from qalib.losses import SkimLossConfig
from qalib.models.encoder import EncoderConfig, EncoderReader, build_encoder
from qalib.models.pretrained import check_published, load_reader
from qalib.settings import settings
from qalib.skim import calibration
from qalib.skim import training as skim_training
from qalib.skim.predictors import FIXED, PredictorConfig, reads_fixed_features
from qalib.skim.reader import SkimReader
from qalib.study.run_cache import Run, RunCache, input_hashes, stage
from qalib.study.stages import baseline

RECALLS = (0.99, 0.98, 0.95)  # share of the questions whose answer is kept
BUDGETS = (0.6, 0.4)  # share of the passage tokens that is kept
GRID = 201  # points of a recorded recall curve
ORACLE = 0  # the "layer" of the curve of a predictor that knows the answers


# --- training -------------------------------------------------------------------------------------


@settings
class SkimTraining(skim_training.PredictorTraining):
    """Everything that a reader with block predictors depends on, besides the data and ``start``.

    start: "pretrained", the encoder of the settings with a new span head; "shipped", the published
    reader; or "run", the reader of another run
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of the passages
    start: Literal["pretrained", "shipped", "run"] = "pretrained"


@settings
class SkimStudy:
    """Section [skim] of a profile: joint training, and what notebooks 05 to 07 show of it."""

    epochs: Annotated[int, Field(ge=1)] = 1  # in place of those of section [encoder]
    learning_rate: float = 0.0  # 0 = that of section [encoder]
    tokens_per_batch: int = 0  # 0 = that of section [encoder]
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of everything in these notebooks
    frozen_epochs: Annotated[int, Field(ge=1)] = 1  # of predictors beside a frozen reader
    frozen_tokens_per_batch: int = 0
    start: Literal["pretrained", "shipped"] = "pretrained"
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    loss: SkimLossConfig = field(default_factory=SkimLossConfig)
    predictor_rate: Annotated[float, Field(gt=0)] = 10.0
    seeds: Annotated[int, Field(ge=1)] = 1
    alphas: tuple[float, ...] = (1.0, 0.1)  # tried on held-out passages
    rates: tuple[float, ...] = (10.0,)  # values of predictor_rate tried on held-out passages
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    early: int = 2  # layers in the tables, at the relative depth of the paper's 4 and 6 of 12
    middle: int = 3
    train_every: Annotated[int, Field(ge=1)] = 1  # training F1 uses every n-th question

    def training(self, base: baseline.EncoderTraining, **changes) -> SkimTraining:
        """Joint training of encoder and predictors with the settings of an encoder reader."""
        shared = {f.name: getattr(base, f.name) for f in fields(baseline.EncoderTraining)}
        shared["train"] = replace(
            base.train,
            num_train_epochs=self.epochs,
            learning_rate=self.learning_rate or base.train.learning_rate,
            tokens_per_batch=self.tokens_per_batch or base.train.tokens_per_batch,
            precision=self.precision,
        )
        own = {name: getattr(self, name) for name in ("predictor", "start", "predictor_rate")}
        return SkimTraining(**{**shared, **own, "skim_loss": self.loss, **changes})

    def beside(self, joint: SkimTraining, **changes) -> SkimTraining:
        """Training of the predictors alone, beside the frozen reader of another run."""
        tokens = self.frozen_tokens_per_batch or joint.train.tokens_per_batch
        train = replace(joint.train, num_train_epochs=self.frozen_epochs, tokens_per_batch=tokens)
        return replace(joint, **{"start": "run", "frozen": True, "train": train, **changes})


@stage("cache-features", publish=())
def cache_features(
    config: SkimTraining, work: Path, data: Dataset, start: Run | str | None = None
) -> dict:
    """Compute the features that predictors of a frozen reader use, once for all of their trainings.

    ``config``, ``start``: as of :func:`train_skim`; kind and rate of the predictors are not used.
    """
    parts = PredictorConfig("combined", config.predictor.block_size, parts=FIXED)
    model = build_skim_reader(replace(config, predictor=parts), start)
    found = skim_training.fixed_features(model.to(choose_device()), data, config)
    arrays = {f.name: getattr(found, f.name) for f in fields(skim_training.FixedFeatures)}
    save_weights(arrays.pop("parts") | arrays, work / "features.safetensors")
    return {"blocks": len(found.sizes), "windows": len(found.counts)}


def read_features(run: Run) -> skim_training.FixedFeatures:
    """The features of a ``cache-features`` run. Raises QalibError if they are missing here."""
    arrays = load_weights(run.file("features.safetensors"))
    names = [f.name for f in fields(skim_training.FixedFeatures) if f.name != "parts"]
    return skim_training.FixedFeatures(**{name: arrays.pop(name) for name in names}, parts=arrays)


@stage("train-skim")
def train_skim(
    config: SkimTraining,
    work: Path,
    data: Dataset,
    start: Run | str | None = None,
    features: Run | None = None,
) -> dict:
    """Train block predictors, and the encoder with them unless it is frozen.

    ``start``: the run to start from if ``config.start`` is "run", the hash of the published
    checkpoint if it is "shipped". ``features``: a ``cache-features`` run of the same reader and
    data, for predictors that only read fixed features, beside a frozen reader. Writes log.jsonl and
    weights.safetensors (the trained tensors). Raises QalibError if ``start`` does not match
    ``config.start``, or if the predictors cannot use ``features``.
    """
    model = build_skim_reader(config, start)
    rest = hold_out(data, config.held_out)[0] if config.held_out else data
    if features and not _can_use(features, config, input_hashes({"data": data, "start": start})):
        raise QalibError(
            "cached features are for predictors that read no others, beside the same frozen "
            "reader, with the same data, windows, blocks and labels."
        )
    found = read_features(features) if features else None
    if found and config.held_out:
        kept = {example.id for example in rest.examples}
        found = found.of_questions(torch.tensor([e.id in kept for e in data.examples]))
    summary = skim_training.fit(model, rest, config, work, found)
    baseline.save_trained(model, work)
    parameters = sum(p.numel() for p in model.skimmer.parameters())
    return {"questions": len(rest), "skim_parameters": parameters, **summary}


def _can_use(features: Run, config: SkimTraining, inputs: dict[str, str]) -> bool:
    """Whether a training of these settings and inputs can use the features of a run."""
    if not (config.frozen and reads_fixed_features(config.predictor)):
        return False
    cached = features.settings(SkimTraining)
    names = ("start", "encoder", "windows", "soft_labels")
    of = attrgetter(*names, "predictor.block_size", "skim_loss.two_tokens")
    layers = cached.layers in ((), config.layers)
    return layers and of(cached) == of(config) and features.inputs == inputs


def build_skim_reader(config: SkimTraining, start: Run | str | None = None) -> SkimReader:
    """The reader at the start of training: the encoder of ``config.start`` and new predictors."""
    return skim_training.add_predictors(_starting_reader(config, start), config)


def _starting_reader(config: SkimTraining, start: Run | str | None) -> EncoderReader:
    given = "pretrained" if start is None else "run" if isinstance(start, Run) else "shipped"
    if given != config.start:
        raise QalibError(
            f"the settings start from {config.start!r}, but the input `start` is that of "
            f"{given!r}: give a run for 'run', the checkpoint's hash for 'shipped', else nothing."
        )
    if given == "pretrained":
        return build_encoder(config.encoder, config.seed)
    if given == "shipped":
        check_published(start)
        reader = load_reader()
    elif start.stage in ("train-encoder", "train-adapter"):
        reader = baseline.load_encoder_reader(start)
    else:
        reader = load_skim_reader(start).reader
    words = reader.requires_grad_().encoder.get_input_embeddings()  # merging LoRA froze weights
    words.requires_grad_(config.encoder.train_embeddings)
    return reader


# --- trained readers ------------------------------------------------------------------------------


def load_skim_reader(run: Run) -> SkimReader:
    """The reader of a ``train-skim`` run, in evaluation mode."""
    config, start = run.settings(SkimTraining), run.inputs.get("start")
    if config.start == "run":
        store = run.folder.parent
        start = RunCache(store.parent if store.name == ".records" else store).get(start)
    return baseline.put_trained(build_skim_reader(config, start), run).eval()


@settings
class Pruning:
    """Layers, thresholds and limits of pruning at inference; see ``SkimConfig``."""

    prune_layers: tuple[int, ...] = ()
    thresholds: tuple[float, ...] = ()
    min_blocks: int = 1
    neighbours: int = 0
    min_pruned_fraction: float = 0.0
    min_tokens: int = 0
    pruned_logits: Literal["mask", "forward"] = "mask"


@settings
class SkimAnswerConfig:
    """How a reader with predictors answers; without ``prune_layers`` it processes every token."""

    answer: AnswerConfig = field(default_factory=AnswerConfig)
    pruning: Pruning = field(default_factory=Pruning)


def skim_answerer(run: Run, settings: SkimAnswerConfig | AnswerConfig) -> QuestionAnswerer:
    """The answerer of a ``train-skim`` run; with an ``AnswerConfig`` it never prunes."""
    if isinstance(settings, AnswerConfig):
        settings = SkimAnswerConfig(settings)
    model = load_skim_reader(run)
    model.skimmer.set_options(**asdict(settings.pruning))
    return QuestionAnswerer(model.to(choose_device()), settings.answer)


# --- block predictions ----------------------------------------------------------------------------


@settings
class BlockPrediction:
    """Settings of :func:`predict_blocks`; ``windows``: in place of those of the training."""

    windows: WindowConfig | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"


@stage("predict-blocks", publish=("curves.csv", "counts.safetensors"))
def predict_blocks(config: BlockPrediction, work: Path, weights: Run, data: Dataset) -> dict:
    """Predict the probability of every block of ``data`` with a ``train-skim`` run, unpruned.

    Writes blocks.safetensors (:class:`BlockPredictions`, about 30 bytes per block), curves.csv
    (:func:`curve_table`) and counts.safetensors (by layer (2, Q): hits, and predicted plus labelled
    positives, for :func:`block_f1`). Metrics: :func:`summarize_blocks`.
    """
    windows = config.windows or weights.settings(SkimTraining).windows
    model = load_skim_reader(weights).to(choose_device())
    found = calibration.block_predictions(model, data, windows, config.precision)
    counts = {}
    for layer, scores in found.scores.items():
        said = scores >= 0.5
        columns = said & found.labels, said.astype(int) + found.labels
        both = [np.bincount(found.row, x, len(data)).astype(np.uint16) for x in columns]
        counts[str(layer)] = np.stack(both)
    save_file(counts, work / "counts.safetensors")
    arrays = asdict(found)
    arrays |= {f"layer {n}": x for n, x in arrays.pop("scores").items()}
    save_file(arrays, work / "blocks.safetensors")
    curve_table(found).to_csv(work / "curves.csv", index=False, lineterminator="\n")
    return summarize_blocks(found)


def read_blocks(run: Run) -> calibration.BlockPredictions:
    """The arrays of a ``predict-blocks`` run. Raises QalibError if they are not on this machine."""
    arrays = load_file(run.file("blocks.safetensors"))
    scores = {int(n.split()[1]): arrays.pop(n) for n in sorted(arrays) if n.startswith("layer ")}
    return calibration.BlockPredictions(scores=scores, **arrays)


def block_f1(run: Run, layer: int) -> np.ndarray:
    """Values z whose mean is the block F1 of a ``predict-blocks`` run.  (Q,) percent

        F = 2 H / B,  H hits, B predicted plus labelled positives, h_q and b_q of one question
        z_q = F + (2 h_q - F b_q) / mean(b)

    F1 is not a mean over questions; the mean of z is F and has, to first order, the same variance.
    """
    hits, both = load_file(run.file("counts.safetensors"))[str(layer)].astype(float)
    f1 = 2 * hits.sum() / max(1.0, both.sum())
    return 100 * (f1 + (2 * hits - f1 * both) / max(both.mean(), 1e-9))


def summarize_blocks(found: calibration.BlockPredictions) -> dict:
    """Metrics of block predictions, by layer.

    In percent: precision, recall, f1 and accuracy of the class "holds an answer" at threshold 0.5,
    and auc, the area under the ROC curve. "kept at 0.99": the smallest share of tokens that keeps
    99 % of the answers, with its threshold; "found at 0.6": the share of the answers kept in at
    most 60 % of the tokens. ``oracle``: the share of tokens with which an oracle keeps 99 % of the
    answers. ``two_tokens``: the scores with the labels of the released code, and ``lost``, the
    percentage of questions with a positive block that have none by those labels.
    """
    from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

    def percent(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        predicted = scores >= 0.5
        found = precision_recall_fscore_support(
            labels, predicted, average="binary", zero_division=0.0
        )
        shares = (*found[:3], (predicted == labels).mean())
        names = ("precision", "recall", "f1", "accuracy")
        return {name: 100 * float(share) for name, share in zip(names, shares, strict=True)}

    layers, two = {}, {}
    for layer, scores in found.scores.items():
        curve = calibration.recall_curve(scores, found.answers, found.sizes, found.row)
        row = layers[str(layer)] = percent(scores, found.labels)
        row["auc"] = 100 * float(roc_auc_score(found.labels, scores))
        two[str(layer)] = percent(scores, found.two_tokens)
        for share in RECALLS:
            row[f"kept at {share:g}"], threshold = calibration.budget_at_recall(curve, share)
            row[f"threshold at {share:g}"] = threshold
        for share in BUDGETS:
            row[f"found at {share:g}"] = calibration.recall_at_budget(curve, share)
    kept, answered = _oracle_curve(found)
    has, has_two = (np.bincount(found.row, x) > 0 for x in (found.labels, found.two_tokens))
    return {
        "blocks": len(found.row),
        "positive": float(found.labels.mean()),
        "oracle": float(kept[np.searchsorted(answered, RECALLS[0])]),
        "layers": layers,
        "two_tokens": {"lost": 100 * float((has & ~has_two).sum() / has.sum()), "layers": two},
    }


def _oracle_curve(found: calibration.BlockPredictions) -> tuple[np.ndarray, np.ndarray]:
    """Share of tokens and of questions, both (answered questions,), that an oracle keeps: the
    blocks of each question's cheapest answer, the cheapest questions first.
    """
    questions = int(found.row.max(initial=-1)) + 1
    cost = np.full(questions, np.inf)
    for held in found.answers.T:
        tokens = np.bincount(found.row[held], found.sizes[held], questions)
        cost = np.where(tokens > 0, np.minimum(cost, tokens), cost)
    cost = np.sort(cost[np.isfinite(cost)])
    if not len(cost):
        raise QalibError("a recall curve needs at least one question with an answer in a block.")
    return cost.cumsum() / found.sizes.sum(), np.arange(1, len(cost) + 1) / len(cost)


def curve_table(found: calibration.BlockPredictions) -> pd.DataFrame:
    """Recall curves on an even grid.  columns layer (0 = oracle); kept, found: shares, 0 to 1"""
    kept = np.linspace(0, 1, GRID)
    costs, answered = _oracle_curve(found)
    curves = {ORACLE: np.append(0.0, answered)[np.searchsorted(costs, kept, side="right")]}
    for layer, scores in sorted(found.scores.items()):
        curve = calibration.recall_curve(scores, found.answers, found.sizes, found.row)
        curves[layer] = [calibration.recall_at_budget(curve, share) for share in kept]
    parts = [pd.DataFrame({"layer": n, "kept": kept, "found": x}) for n, x in curves.items()]
    return pd.concat(parts, ignore_index=True).round(6)
