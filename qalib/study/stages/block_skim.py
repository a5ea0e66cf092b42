"""Stages of notebooks 05 to 07: train Block-Skim predictors, predict blocks, extract attention.

The recall curve and the classifier scores of a data set are recorded with its ``predict-blocks``
run; the probabilities themselves are large and stay in the store.

Notation: B batch, L tokens of a window, K blocks of a window, N blocks of a data set, A gold
answers.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from qalib.data.batching import Batch, collate, inference_batches
from qalib.data.schema import Dataset, hold_out
from qalib.data.windows import Window, WindowConfig, make_windows, training_windows
from qalib.errors import QalibError
from qalib.inference import AnswerConfig, QuestionAnswerer
from qalib.losses import SkimLossConfig
from qalib.settings import settings
from qalib.skim.calibration import block_scores, budget_at_recall, recall_at_budget, recall_curve
from qalib.skim.predictors import PredictorConfig
from qalib.study.run_cache import Run, RunCache, stage
from qalib.study.stages import baseline
from qalib.study.stages.baseline import EncoderTraining
from qalib.study.stages.probes import evenly

if TYPE_CHECKING:
    import torch

    from qalib.decoding import ReaderOutput
    from qalib.models.encoder import EncoderReader
    from qalib.skim.reader import SkimReader
    from qalib.training import TrainingTask

RECALLS = (0.99, 0.98, 0.95)  # share of the questions whose answer is kept
BUDGETS = (0.6, 0.4)  # share of the passage tokens that is kept
GRID = 201  # points of a recorded recall curve
ORACLE = 0  # the "layer" of the curve of a predictor that knows the answers


# --- training -------------------------------------------------------------------------------------


@settings
class SkimTraining(EncoderTraining):
    """Everything that a reader with block predictors depends on, besides the data and ``start``.

    start: "pretrained", the encoder of the settings with a new span head; "shipped", the published
    reader; or "run", the reader of another run
    """

    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    skim_loss: SkimLossConfig = field(default_factory=SkimLossConfig)
    start: Literal["pretrained", "shipped", "run"] = "pretrained"
    predictor_rate: Annotated[float, Field(gt=0)] = 1.0  # times the encoder's learning rate
    layers: tuple[int, ...] = ()  # with a predictor; () = all
    frozen: bool = False  # train the predictors only
    detached: bool = False  # no gradient of the block loss reaches the encoder
    sentences: bool = False  # blocks end where sentences end
    answer_head: bool = False  # a linear span head at every predictor scores pruned blocks
    prune_layers: tuple[int, ...] = ()  # prune during training, at these layers
    thresholds: tuple[float, ...] = ()  # of ``prune_layers``
    teacher_weight: Annotated[float, Field(ge=0)] = 0.0  # of KL(reader at the start || reader)

    def __post_init__(self):
        if self.teacher_weight and self.start == "pretrained":
            raise QalibError(
                "a teacher must be a trained reader: set start to 'shipped' or 'run', or "
                "teacher_weight to 0."
            )


@settings
class SkimStudy:
    """Section [skim] of a profile: joint training, and what notebooks 05 to 07 show of it."""

    epochs: Annotated[int, Field(ge=1)] = 1  # in place of the section [encoder]'s
    learning_rate: float = 0.0  # 0 = that of the section [encoder]
    start: Literal["pretrained", "shipped"] = "pretrained"
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    loss: SkimLossConfig = field(default_factory=SkimLossConfig)
    predictor_rate: Annotated[float, Field(gt=0)] = 10.0
    seeds: Annotated[int, Field(ge=1)] = 1
    alphas: tuple[float, ...] = (1.0, 0.1)  # tried on held-out passages
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    early: int = 2  # layers of the tables, at the depth of the paper's 4 and 6 of 12
    middle: int = 3

    def training(self, base: EncoderTraining, **changes) -> SkimTraining:
        """Joint training of encoder and predictors with the settings of an encoder reader."""
        rate = self.learning_rate or base.train.learning_rate
        train = replace(base.train, num_train_epochs=self.epochs, learning_rate=rate)
        shared = {f.name: getattr(base, f.name) for f in fields(EncoderTraining)} | {"train": train}
        own = {name: getattr(self, name) for name in ("predictor", "start", "predictor_rate")}
        return SkimTraining(**{**shared, **own, "skim_loss": self.loss, **changes})


@settings
class AblationStudy:
    """Section [ablations] of a profile: the runs of notebook 07, and the questions they use."""

    rows: tuple[str, ...] = ()  # of the table of ablations; () = all
    kinds: tuple[str, ...] = ("random", "lexical", "cnn", "question", "late_interaction", "tokens")
    variants: tuple[str, ...] = ()  # beyond the paper; () = all
    threshold: float = 0.5  # of pruning during training in the table of ablations
    variant_threshold: float = 0.2  # and of the variants
    teacher_weight: float = 1.0
    later: int = 4  # a layer after ``SkimStudy.middle``
    shares: tuple[float, ...] = (0.4, 0.6, 0.8)  # of the tokens, kept by readers that prune
    more_questions: int = 0  # of the larger training set; 0 = all
    rows_every: int = 1  # blocks are predicted for every so many-th test question
    every: int = 1  # readers that prune answer every so many-th
    long_every: int = 1  # and every so many-th with a longer passage
    long: WindowConfig = field(default_factory=lambda: WindowConfig(max_length=512))


@stage("train-skim")
def train_skim(
    config: SkimTraining, work: Path, data: Dataset, start: Run | str | None = None
) -> dict:
    """Train block predictors, and the encoder with them unless it is frozen.

    ``start`` is the run to begin with where ``config.start`` is "run", and the hash of the
    published checkpoint where it is "shipped". Writes log.jsonl and weights.safetensors (the
    trained tensors). Raises QalibError if ``start`` and ``config.start`` do not fit.
    """
    from qalib.checkpoints import save_weights, trained_tensors
    from qalib.training import make_accelerator, train

    model = build_reader(config, start)
    rest = hold_out(data, config.held_out)[0] if config.held_out else data
    task, summary = training_task(model, rest, config, start), {}
    if any(p.requires_grad for p in model.parameters()):  # kind "random" has no parameters
        optimizer = make_optimizer(model, config)
        summary = train(model, task, config.train, work, config.seed, optimizer=optimizer)
    if make_accelerator().is_main_process:
        save_weights(trained_tensors(model), work / "weights.safetensors")
    parameters = sum(p.numel() for p in model.skimmer.parameters())
    return {"questions": len(rest), "skim_parameters": parameters, **summary}


def build_reader(config: SkimTraining, start: Run | str | None) -> "SkimReader":
    """The reader at the start of training: the encoder of ``config.start`` and new predictors."""
    import torch

    from qalib.skim.reader import SkimReader
    from qalib.skim.skimmer import SkimConfig, Skimmer

    reader = _starting_reader(config, start)
    depth = reader.encoder.config.num_hidden_layers
    skim_config = SkimConfig(
        predictor=config.predictor,
        layers=config.layers or tuple(range(1, depth + 1)),
        prune_layers=config.prune_layers,
        thresholds=config.thresholds,
        pruned_logits="forward" if config.prune_layers else "mask",  # the loss must stay finite
        answer_head=config.answer_head,
        detach_views=config.frozen or config.detached,
    )
    torch.manual_seed(config.seed)
    skimmer = Skimmer.from_encoder(reader.encoder, skim_config)
    if config.frozen:
        reader.requires_grad_(False)
    return SkimReader(reader, skimmer, skims_in_training=bool(config.prune_layers))


def _starting_reader(config: SkimTraining, start: Run | str | None) -> "EncoderReader":
    from qalib.models.encoder import build_encoder
    from qalib.models.pretrained import load_reader as load_pretrained

    given = "pretrained" if start is None else "run" if isinstance(start, Run) else "shipped"
    if given != config.start:
        raise QalibError(
            f"the settings start from {config.start!r}, but the input `start` is that of "
            f"{given!r}: give a run for 'run', the checkpoint's hash for 'shipped', else nothing."
        )
    if given == "shipped":
        reader = load_pretrained().requires_grad_()  # merging its adapter froze the weights
        words = reader.encoder.get_input_embeddings().weight
        words.requires_grad_(config.encoder.train_embeddings)
        return reader
    if given == "pretrained":
        return build_encoder(config.encoder, config.seed)
    return (
        baseline.load_encoder_reader(start)
        if start.stage == "train-encoder"
        else load_reader(start).reader
    )


def training_task(
    model: "SkimReader", data: Dataset, config: SkimTraining, start: Run | str | None = None
) -> "TrainingTask":
    """The task of joint training: answer loss plus block loss (Block-Skim, Eq. 5).

    A frozen encoder leaves the block loss. Answer heads add a span loss each, and a teacher its
    divergence.
    """
    from qalib.losses import block_labels, kl_divergence, skim_loss, span_loss
    from qalib.training import TrainingTask

    windows, collate_rows = batches_with_blocks(model, data, config, training=True)
    teacher = None
    if config.teacher_weight:
        teacher = _starting_reader(config, start).eval().requires_grad_(False)

    def loss(output: "ReaderOutput", batch: Batch) -> "torch.Tensor":
        spans, weights, aux = batch.answer_spans, batch.answer_weights, output.aux
        labels = block_labels(aux.blocks.membership(), spans, weights, config.skim_loss.two_tokens)
        total = sum(
            skim_loss([logits], labels, aux.scored[layer], config.skim_loss)
            for layer, logits in aux.scores.items()
        )
        outputs = [] if config.frozen else [output]
        outputs += [output._replace(start_logits=s, end_logits=e) for s, e in aux.early.values()]
        for one in outputs:
            total = total + span_loss(one, spans, weights, config.loss)
        if teacher is not None:
            total = total + config.teacher_weight * kl_divergence(output, teacher(batch))
        return total

    return TrainingTask([len(window) for window in windows], collate_rows, loss)


def make_optimizer(model: "SkimReader", config: SkimTraining) -> "torch.optim.Optimizer":
    """AdamW, with ``predictor_rate`` times the learning rate for predictors and answer heads."""
    from qalib import training

    if config.predictor_rate == 1.0:
        return training.make_optimizer(model, config.train)
    groups = []
    for module, scale in ((model.reader, 1.0), (model.skimmer, config.predictor_rate)):
        if any(p.requires_grad for p in module.parameters()):
            optimizer = training.make_optimizer(module, config.train)
            groups += [{**group, "scale": scale} for group in optimizer.param_groups]
    optimizer.param_groups.clear()  # the last one's class and defaults serve for all groups
    for group in groups:
        optimizer.add_param_group(group)
    return optimizer


def batches_with_blocks(
    model: "SkimReader", data: Dataset, config: SkimTraining, training: bool = False
) -> tuple[list[Window], Callable[[Sequence[int]], Batch]]:
    """The windows of a data set, and a function from window numbers to a batch.

    With ``config.sentences`` the batch's inputs hold the blocks, cut at sentences.
    """
    tokenizer = model.tokenizer
    windows = make_windows(data.examples, tokenizer, config.windows)
    windows = training_windows(windows) if training else windows

    def collate_rows(rows: Sequence[int]) -> Batch:
        chosen = [windows[i] for i in rows]
        batch = collate(chosen, tokenizer.pad_token_id or 0, config.windows.null)
        if config.sentences:
            _cut_at_sentences(batch, chosen, data.examples, config.predictor.block_size)
        return batch

    return windows, collate_rows


def _cut_at_sentences(batch: Batch, windows: list[Window], examples: Sequence, size: int) -> None:
    from qalib.skim.blocks import batch_block_ids, sentence_blocks

    blocks = [sentence_blocks(w, examples[w.example].context, size) for w in windows]
    batch.inputs["block_ids"] = batch_block_ids(blocks, windows, batch.mask.shape[1])


# --- trained readers ------------------------------------------------------------------------------


def load_reader(run: Run) -> "SkimReader":
    """The reader of a ``train-skim`` run, in evaluation mode."""
    from qalib.checkpoints import load_weights, put_weights

    config, start = run.settings(SkimTraining), run.inputs.get("start")
    if config.start == "run":
        home = run.folder.parent
        start = RunCache(home.parent if home.name == ".records" else home).get(start)
    model, weights = build_reader(config, start), run.file("weights.safetensors")
    put_weights(model, load_weights(weights), str(weights))
    return model.eval()


@settings
class Pruning:
    """Where a reader prunes blocks when it answers, and how sharply; see ``SkimConfig``."""

    prune_layers: tuple[int, ...] = ()
    thresholds: tuple[float, ...] = ()
    min_blocks: int = 1
    neighbours: int = 0
    min_pruned_fraction: float = 0.0
    min_tokens: int = 0
    pruned_logits: Literal["mask", "forward"] = "mask"


@settings
class SkimAnswerConfig:
    """How a reader with predictors answers: without ``prune_layers`` it processes every token."""

    answer: AnswerConfig = field(default_factory=AnswerConfig)
    pruning: Pruning = field(default_factory=Pruning)


def load_answerer(run: Run, settings: SkimAnswerConfig | AnswerConfig) -> QuestionAnswerer:
    """A ``train-skim`` run, ready to answer questions; with an ``AnswerConfig`` it never prunes."""
    if isinstance(settings, AnswerConfig):
        settings = SkimAnswerConfig(settings)
    model, config = load_reader(run), run.settings(SkimTraining)
    model.skimmer.set_options(**asdict(settings.pruning))
    if config.sentences:
        return SentenceAnswerer(model, settings.answer, config.predictor.block_size)
    return QuestionAnswerer(model, settings.answer)


class SentenceAnswerer(QuestionAnswerer):
    """Answer with a reader whose blocks, of about ``size`` tokens, end where sentences end."""

    def __init__(self, reader: "SkimReader", config: AnswerConfig, size: int):
        super().__init__(reader, config)
        self.size = size

    def collate(self, windows: list[Window], examples: Sequence) -> Batch:
        """A batch of some windows of ``examples``, with its blocks."""
        batch = super().collate(windows, examples)
        _cut_at_sentences(batch, windows, examples, self.size)
        return batch


# --- block predictions ----------------------------------------------------------------------------


@settings
class BlockPrediction:
    """Settings of ``predict_blocks``; ``windows`` replaces those of the reader's training."""

    windows: WindowConfig | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"


@dataclass(frozen=True)
class BlockPredictions:
    """Every passage block of a data set."""

    row: np.ndarray  # (N,) int32, the question
    sizes: np.ndarray  # (N,) int32, tokens
    answers: np.ndarray  # (N, A) bool, which gold answers have a token in the block
    scores: dict[int, np.ndarray]  # (N,) float32 probabilities, by layer
    two_tokens: np.ndarray | None = None  # (N,) bool, labels of the released code: two tokens of
    # the first gold answer; None in records that do not have them

    @property
    def labels(self) -> np.ndarray:
        """The paper's label: the block has a token of any gold answer.  (N,) bool"""
        return self.answers.any(axis=1)


@stage("predict-blocks", publish=("curves.csv",))
def predict_blocks(config: BlockPrediction, work: Path, weights: Run, data: Dataset) -> dict:
    """Predict the probability of every block of ``data`` with a ``train-skim`` run.

    Nothing is pruned. Writes blocks.safetensors (:class:`BlockPredictions`, some 30 bytes a block)
    and curves.csv (layer, kept, found: see :func:`recall_curves`). Metrics: for every layer the
    classifier's scores at 0.5, and what recalls cost and token budgets find; see ``summarize``.
    """
    training = weights.settings(SkimTraining)
    if config.windows is not None:
        training = replace(training, windows=config.windows)
    found = predict(load_reader(weights), data, training, config.precision)
    write_blocks(found, work / "blocks.safetensors")
    recall_curves(found).to_csv(work / "curves.csv", index=False, lineterminator="\n")
    return summarize(found)


def predict(
    model: "SkimReader",
    data: Dataset,
    config: SkimTraining,
    precision: str = "auto",
    tokens_per_batch: int = 8192,
) -> BlockPredictions:
    """The probability of every block of ``data`` at every layer with a predictor.

    ``config`` gives windows and blocks. A block's probability does not depend on the batch.
    """
    import torch

    from qalib.training import choose_precision

    windows, collate_rows = batches_with_blocks(model.eval(), data, config)
    device = next(model.parameters()).device.type
    bf16 = choose_precision(precision, device)[0] == "bf16"
    parts: list[dict] = [{}] * len(windows)
    for rows in inference_batches([len(window) for window in windows], tokens_per_batch):
        batch = collate_rows(rows).to(torch.device(device))
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=bf16):
            output = model.run(batch, skim=False)
        for place, number in enumerate(rows):
            parts[number] = _window_blocks(output, place, windows[number])
    return _concatenate(parts, windows)


def _window_blocks(output, place: int, window: Window) -> dict:
    """Sizes, labels and probabilities of the K blocks of one window of a batch."""
    block_ids = output.blocks.block_ids[place].cpu().numpy()
    count = int(output.blocks.real[place].sum())
    tokens = np.zeros((count, len(window.spans)), dtype=int)  # of each gold answer in each block
    for column, (first, last) in enumerate(window.spans):
        if first >= window.context_start:  # not the null answer
            tokens[:, column] = np.bincount(block_ids[first : last + 1], minlength=count)
    return {
        "sizes": np.bincount(block_ids[block_ids >= 0], minlength=count),
        "answers": tokens > 0,
        "two_tokens": tokens[:, :1].sum(axis=1) > 1,
        "scores": {
            layer: logits[place, :count].float().sigmoid().cpu().numpy()
            for layer, logits in output.scores.items()
        },
    }


def _concatenate(parts: list[dict], windows: list[Window]) -> BlockPredictions:
    """All blocks in the order of windows; each window of a question has its own answer columns."""
    row = np.repeat([window.example for window in windows], [len(p["sizes"]) for p in parts])
    columns, taken = [], {}
    for part, window in zip(parts, windows, strict=True):
        columns.append(taken.get(window.example, 0))
        taken[window.example] = columns[-1] + part["answers"].shape[1]
    answers = np.zeros((len(row), max([1, *taken.values()])), dtype=bool)
    start = 0
    for part, column in zip(parts, columns, strict=True):
        held = part["answers"]
        answers[start : start + len(held), column : column + held.shape[1]] = held
        start += len(held)
    layers = parts[0]["scores"] if parts else {}
    return BlockPredictions(
        row=row.astype(np.int32),
        sizes=np.concatenate([part["sizes"] for part in parts]).astype(np.int32),
        answers=answers,
        two_tokens=np.concatenate([part["two_tokens"] for part in parts]),
        scores={n: np.concatenate([part["scores"][n] for part in parts]) for n in layers},
    )


def summarize(found: BlockPredictions) -> dict:
    """Metrics of block predictions, by layer.

    precision, recall, f1 and accuracy of the class "holds an answer" in percent; "kept at 0.99",
    the least share of tokens that keeps 99 % of the answers, with its threshold; "found at 0.6",
    the share of the answers in at most 60 % of the tokens. ``oracle`` is the share of tokens that
    holds 99 % of the answers; ``two_tokens`` has the scores by the labels of the released code,
    and ``lost``, the percent of the questions that have no positive block by these.
    """
    layers = {}
    for layer, scores in found.scores.items():
        curve = recall_curve(scores, found.answers, found.sizes, found.row)
        costs = {share: budget_at_recall(curve, share) for share in RECALLS}
        layers[str(layer)] = {
            **_percent(block_scores(scores, found.labels)),
            **{f"kept at {share:g}": kept for share, (kept, _) in costs.items()},
            **{f"threshold at {share:g}": threshold for share, (_, threshold) in costs.items()},
            **{f"found at {share:g}": recall_at_budget(curve, share) for share in BUDGETS},
        }
    kept, answered = oracle_curve(found)
    has, has_two = (np.bincount(found.row, x) > 0 for x in (found.labels, found.two_tokens))
    two = {str(n): _percent(block_scores(x, found.two_tokens)) for n, x in found.scores.items()}
    return {
        "blocks": len(found.row),
        "positive": float(found.labels.mean()),
        "oracle": float(kept[np.searchsorted(answered, RECALLS[0])]),
        "layers": layers,
        "two_tokens": {"lost": 100 * float((has & ~has_two).sum() / has.sum()), "layers": two},
    }


def _percent(scores) -> dict[str, float]:
    return {n: 100 * getattr(scores, n) for n in ("precision", "recall", "f1", "accuracy")}


def oracle_curve(found: BlockPredictions) -> tuple[np.ndarray, np.ndarray]:
    """Recall curve of an oracle, which keeps the blocks of each question's shortest answer.

    Questions in the order of their cost. -> (Q,) share of all tokens, (Q,) share of the questions
    that have an answer. Raises QalibError if there are none.
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


def recall_curves(found: BlockPredictions) -> pd.DataFrame:
    """Recall curves on an even grid.  columns layer (0 = oracle), kept, found: shares, 0 to 1"""
    kept = np.linspace(0, 1, GRID)
    costs, answered = oracle_curve(found)
    within = np.searchsorted(costs, kept, side="right")
    columns = {ORACLE: np.concatenate([[0.0], answered])[within]}
    for layer, scores in sorted(found.scores.items()):
        curve = recall_curve(scores, found.answers, found.sizes, found.row)
        columns[layer] = np.array([recall_at_budget(curve, share) for share in kept])
    parts = [pd.DataFrame({"layer": n, "kept": kept, "found": x}) for n, x in columns.items()]
    return pd.concat(parts, ignore_index=True).round(6)


def write_blocks(found: BlockPredictions, path: Path) -> None:
    """Save block predictions as one safetensors file."""
    from safetensors.numpy import save_file

    arrays = asdict(found)
    arrays |= {f"layer {n}": x for n, x in arrays.pop("scores").items()}
    arrays = {n: np.ascontiguousarray(x) for n, x in arrays.items() if x is not None}
    save_file(arrays, path)


def read_blocks(run: Run) -> BlockPredictions:
    """The arrays of a ``predict-blocks`` run. Raises QalibError if they are not on this machine."""
    from safetensors.numpy import load_file

    arrays = load_file(run.file("blocks.safetensors"))
    scores = {int(n.split()[1]): arrays.pop(n) for n in sorted(arrays) if n.startswith("layer ")}
    return BlockPredictions(scores=scores, **arrays)


@settings
class BlockBootstrap:
    """A paired bootstrap over questions."""

    draws: Annotated[int, Field(ge=1)] = 2000
    seed: int = 0


@stage("compare-blocks", publish=())
def compare_blocks(config: BlockBootstrap, work: Path, ours: Run, theirs: Run) -> dict:
    """Difference of the F1 of two block classifiers on the same blocks, in points, by layer.

    The F1 of a data set is no mean over questions, so it is computed for every resample. Metrics:
    for every layer that both have, difference, low and high of the 95 % interval. Raises
    QalibError if the two ``predict-blocks`` runs have different blocks.
    """
    found = [read_blocks(run) for run in (ours, theirs)]
    same = (np.array_equal(*(getattr(x, n) for x in found)) for n in ("row", "sizes", "answers"))
    if not all(same):
        raise QalibError(
            f"{ours.short} and {theirs.short} have different blocks; compare runs with the same "
            "data, windows and block size."
        )
    questions = int(found[0].row.max()) + 1
    random = np.random.default_rng(config.seed)
    draws = np.empty((config.draws, questions), dtype=np.float32)
    for draw in draws:  # how often each question is drawn
        draw[:] = np.bincount(random.integers(questions, size=questions), minlength=questions)
    layers = {}
    for layer in sorted(set(found[0].scores) & set(found[1].scores)):
        all_once = np.ones((1, questions), dtype=np.float32)
        difference, resampled = (
            _f1(found[0], layer, x) - _f1(found[1], layer, x) for x in (all_once, draws)
        )
        low, high = np.quantile(resampled, [0.025, 0.975])
        values = {"difference": difference[0], "low": low, "high": high}
        layers[str(layer)] = {name: float(value) for name, value in values.items()}
    return {"layers": layers}


def _f1(found: BlockPredictions, layer: int, draws: np.ndarray) -> np.ndarray:
    """F1 of the blocks of R resamples of Q questions.  (R, Q) -> (R,), percent"""
    predicted, labels = found.scores[layer] >= 0.5, found.labels
    by_question = [
        np.bincount(found.row, weights, draws.shape[1]).astype(np.float32)
        for weights in (predicted & labels, predicted.astype(int) + labels)
    ]
    hits, both = (draws @ counts for counts in by_question)
    return 200 * hits / np.maximum(both, 1)


# --- attention ------------------------------------------------------------------------------------


@settings
class AttentionConfig:
    """Settings of the two attention stages: a layer for the example, questions to use."""

    block_size: Annotated[int, Field(ge=1)] = 32
    questions: Annotated[int, Field(ge=1)] = 500  # at equal distances; the example: the first
    windows: WindowConfig = field(default_factory=WindowConfig)


@settings
class ExampleConfig:
    """Settings of ``attention_example``."""

    layer: Annotated[int, Field(ge=1)] = 3  # whose attention is kept
    questions: Annotated[int, Field(ge=1)] = 200  # the first test questions are searched
    blocks: Annotated[int, Field(ge=1)] = 5  # wanted in the passage


@stage("attention-example", publish=("example.json", "arrays.safetensors"))
def attention_example(config: ExampleConfig, work: Path, weights: Run, data: Dataset) -> dict:
    """One question of ``data`` before and after joint training, a ``train-skim`` run.

    The first question whose passage has ``config.blocks`` blocks in one window (or the most, if
    none has), and all gold answers in one block that is not the first. Writes the example that
    :func:`read_example` reads. Raises QalibError if no question has such answers.
    """
    import torch
    from safetensors.numpy import save_file

    from qalib.losses import span_loss
    from qalib.skim.blocks import answer_blocks

    training = weights.settings(SkimTraining)
    before, after = build_reader(training, weights.inputs.get("start")).eval(), load_reader(weights)
    size, tokenizer = training.predictor.block_size, after.tokenizer
    examples = data.examples[: config.questions]
    windows = make_windows(examples, tokenizer, training.windows)
    window = choose_window(windows, size, config.blocks)
    batch = collate([window], tokenizer.pad_token_id or 0)
    length, maps, logits, losses = len(window), [], [], []
    with torch.inference_mode():
        for reader in (before, after):
            output = reader.run(batch, skim=False)
            losses.append(span_loss(reader(batch), batch.answer_spans, batch.answer_weights).item())
            logits.append(torch.stack([x[0] for _, x in sorted(output.scores.items())]).numpy())
            attention = attention_maps(reader, batch)[config.layer - 1]
            maps.append(attention[0].mean(0)[:length, :length].numpy())
    blocks, source = output.blocks, examples[window.example]
    labels = answer_blocks(blocks, batch.answer_spans, batch.answer_weights)[0]
    arrays = {
        "block_ids": blocks.block_ids[0, :length].numpy(),
        "question": blocks.question[0, :length].numpy(),
        "separators": blocks.separators[0, :length].numpy(),
        "labels": labels.numpy(),
        "maps": np.stack(maps).astype(np.float16),
        "logits": np.stack(logits),
        "answer_loss": np.array(losses, dtype=np.float32),
    }
    offsets = [window.offsets[edge : edge + size] for edge in range(0, len(window.offsets), size)]
    texts = [source.context[o[0, 0] : o[-1, 1]] for o in offsets]
    about = {"text": source.question, "answer": source.answers[0].text, "texts": texts}
    about |= {"size": size, "layer": config.layer}
    (work / "example.json").write_text(json.dumps(about, indent=2, ensure_ascii=False))
    save_file({n: np.ascontiguousarray(x) for n, x in arrays.items()}, work / "arrays.safetensors")
    return {"tokens": length, "blocks": len(texts)}


def read_example(run: Run) -> SimpleNamespace:
    """The example of an ``attention-example`` run, of L tokens in K blocks.

    text (the question), answer, texts (of the blocks), size (of a block), layer (of the maps);
    block_ids (L,), question (L,) bool, separators (L,) bool, labels (K,) bool; and before and
    after training: maps (2, L, L) mean attention of the heads, logits (2, layers, K),
    answer_loss (2,)
    """
    from safetensors.numpy import load_file

    about = json.loads(run.file("example.json").read_text(encoding="utf-8"))
    arrays = load_file(run.file("arrays.safetensors"))
    return SimpleNamespace(**about, **(arrays | {"maps": arrays["maps"].astype(np.float32)}))


def choose_window(windows: Sequence[Window], size: int, blocks: int) -> Window:
    """The window of the example; see :func:`attention_example`."""
    alone = np.bincount([window.example for window in windows]) == 1
    fit = []
    for window in windows:
        held = {(edge - window.context_start) // size for span in window.spans for edge in span}
        if alone[window.example] and len(held) == 1 and held != {0}:
            fit.append(window)
    if not fit:
        raise QalibError(
            f"no test question has its answer in one block of {size} tokens after the first; "
            "take smaller blocks or longer passages."
        )
    return max(fit, key=lambda w: min(blocks, -(-len(w.offsets) // size)))


def attention_maps(
    reader: "SkimReader | EncoderReader", batch: Batch
) -> tuple["torch.Tensor", ...]:
    """Attention probabilities of all layers, nothing pruned.  -> (B, heads, L, L) each"""
    bare = getattr(reader, "reader", reader)
    bare.encoder.set_attn_implementation("eager")  # others return no maps
    inputs = {k: v for k, v in batch.inputs.items() if k != "token_type_ids" or bare.uses_types}
    return bare.encoder(**inputs, output_attentions=True).attentions


@stage("answer-attention", publish=())
def answer_attention(config: AttentionConfig, work: Path, weights: Run, data: Dataset) -> dict:
    """Attention to the answer's blocks, mean over questions of ``data``.

    ``weights`` is a ``train-encoder`` or ``train-skim`` run. Metrics in percent: ``even``, the
    answer blocks' share of the passage tokens; and by layer ``given``, the attention of a question
    token to the blocks with the answer; ``share``, that as a share of its attention to the
    passage; ``own answer`` and ``own other``, the attention of the tokens of a block to their own
    block, for whole blocks with and without an answer.
    """
    load = load_reader if weights.stage == "train-skim" else baseline.load_encoder_reader
    reader, chosen = load(weights).eval(), evenly(data, config.questions)
    windows = make_windows(chosen, reader.tokenizer, config.windows)
    return mean_attention(reader, [w for w in windows if len(w.spans)], config.block_size)


def mean_attention(
    reader: "SkimReader | EncoderReader", windows: Sequence[Window], size: int, budget: int = 4096
) -> dict:
    """The metrics of :func:`answer_attention` for windows that hold an answer."""
    import torch

    from qalib.skim.blocks import answer_blocks, window_blocks

    rows, even = [], []
    for numbers in inference_batches([len(window) for window in windows], budget):
        batch = collate([windows[n] for n in numbers], reader.tokenizer.pad_token_id or 0)
        ids, real = batch.inputs["input_ids"], batch.inputs["attention_mask"]
        blocks = window_blocks(ids, real.bool(), batch.mask, size)
        holds = answer_blocks(blocks, batch.answer_spans, batch.answer_weights)  # (B, K)
        in_answer = blocks.to_positions(holds, False)  # (B, L)
        even.append(in_answer.sum(1) / blocks.passage.sum(1))
        with torch.inference_mode():
            for layer, heads in enumerate(attention_maps(reader, batch), start=1):
                columns = _attention_shares(heads.float().mean(1), blocks, holds, in_answer, size)
                rows.append(pd.DataFrame({"layer": layer, **columns}))
    table = 100 * pd.concat(rows).groupby("layer").mean()  # NaN where a row has no such block
    return {
        "even": 100 * torch.cat(even).mean().item(),
        "layers": table.reset_index().to_dict("records"),
    }


def _attention_shares(attention, blocks, holds, in_answer, size: int) -> dict[str, np.ndarray]:
    """One value a row of a batch from its attention (B, L, L), mean of the heads.  each (B,)"""
    question = blocks.question[:, :, None]
    to = (attention * question).sum(1) / question.sum(1)  # (B, L), of a question token
    given, passage = (to * in_answer).sum(1), (to * blocks.passage).sum(1)
    ids = blocks.block_ids
    own = (attention * (ids[:, :, None] == ids[:, None])).sum(2)  # (B, L), to the own block
    inside = (blocks.membership() * own[:, None]).sum(2) / blocks.sizes.clamp(min=1)  # (B, K)
    means = {"given": given, "share": given / passage.clamp(min=1e-12)}
    for name, chosen in (("own answer", holds), ("own other", ~holds)):
        chosen = chosen & (blocks.sizes == size)
        means[name] = (inside * chosen).sum(1) / chosen.sum(1)  # 0 / 0 is NaN
    return {name: values.numpy() for name, values in means.items()}
