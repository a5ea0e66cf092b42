"""Block predictions of a data set, recall curves, and a threshold for a recall.

    calibration = calibrate(model, data, windows, recall=0.99)
    model.skimmer.set_options(**calibration.options)
    print(calibration.describe())

A question's *conformity score* is the highest threshold at which the skimmer still keeps a whole
gold answer of it. Of the n scores in ascending order, c_(1) <= ... <= c_(n), the threshold is the
c_(r) with the largest r that the recall allows: for a new question exchangeable with the others,

    P(c_new >= c_(r))  >=  1 - r / (n + 1)

on average over calibration sets. With a ``confidence`` it holds for the given one:
P(Binomial(n, 1 - recall) <= r - 1) <= 1 - confidence. Both assume exchangeability (notebook 06);
therefore :func:`calibrate` also measures, by cross-validation over passages and on further data.

Sources: split-conformal prediction (Vovk et al. 2005; Lei et al. 2018); tolerance limits (Wilks
1941; Vovk 2012).

Notation: N blocks of a data set in any order, Q questions, A gold answers of a question at most,
T thresholds.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import Field

from qalib.data.batching import collate, inference_batches
from qalib.data.schema import Dataset
from qalib.data.windows import Window, WindowConfig, make_windows
from qalib.errors import QalibError
from qalib.progress import progress_bar
from qalib.settings import build, settings
from qalib.skim.cost import CostModel, token_counts
from qalib.skim.reader import SkimReader
from qalib.skim.storage import SETTINGS, read_settings
from qalib.training import choose_precision

FOLDS = 10  # of the cross-validation
QUESTION, SPECIAL = 16, 3  # tokens beside a passage: of a question; [CLS] and two [SEP]


# --- recall curves ---


class RecallCurve(NamedTuple):
    """One point per distinct score, from the highest threshold to the lowest."""

    thresholds: np.ndarray  # (T,)
    kept: np.ndarray  # (T,) share of passage tokens in kept blocks
    recall: np.ndarray  # (T,) share of the questions with an answer of which one is kept


def conformity_scores(scores: np.ndarray, answers: np.ndarray, question: np.ndarray) -> np.ndarray:
    """Highest threshold at which each question keeps a whole answer; -inf without one.  -> (Q,)

        max_a min_{k: answers[k, a]} scores[k]

    scores (N,); answers (N, A) bool, the blocks of each gold answer; question (N,) int, the
    question of each block, 0 to Q - 1.
    """
    scores, question = np.asarray(scores, dtype=float), np.asarray(question)
    shape = int(question.max(initial=-1)) + 1, answers.shape[1]
    weakest = np.full(shape, np.inf)
    np.minimum.at(weakest, question, np.where(answers, scores[:, None], np.inf))
    there = np.zeros(shape, dtype=bool)
    np.logical_or.at(there, question, answers)
    return np.where(there, weakest, -np.inf).max(axis=1, initial=-np.inf)


def recall_curve(
    scores: np.ndarray, answers: np.ndarray, sizes: np.ndarray, question: np.ndarray
) -> RecallCurve:
    """Recall of answers against share of passage tokens kept, over all thresholds.

    scores (N,) of any kind that orders blocks; answers and question as of
    :func:`conformity_scores`; sizes (N,) tokens. Questions without an answer count among the
    tokens only. Raises QalibError if no question has an answer in a block.
    """
    scores, sizes = np.asarray(scores, dtype=float), np.asarray(sizes)
    reached = conformity_scores(scores, answers, question)
    reached = np.sort(reached[reached > -np.inf])
    if not len(reached):
        raise QalibError("a recall curve needs at least one question with an answer in a block.")
    thresholds, place = np.unique(scores, return_inverse=True)  # ascending
    tokens = np.bincount(place, weights=sizes, minlength=len(thresholds))[::-1].cumsum()
    found = len(reached) - np.searchsorted(reached, thresholds, side="left")
    return RecallCurve(thresholds[::-1], tokens / tokens[-1], found[::-1] / len(reached))


def recall_at_budget(curve: RecallCurve, budget: float) -> float:
    """Recall of the lowest threshold that keeps at most a share ``budget`` of the tokens, or 0."""
    within = int(np.searchsorted(curve.kept, budget, side="right"))
    return float(curve.recall[within - 1]) if within else 0.0


def budget_at_recall(curve: RecallCurve, recall: float) -> tuple[float, float]:
    """Smallest share of tokens that reaches a recall of 0 to 1, and its threshold."""
    place = int(np.searchsorted(curve.recall, recall, side="left"))
    return float(curve.kept[place]), float(curve.thresholds[place])


# --- block predictions ----------------------------------------------------------------------------


@dataclass(frozen=True)
class BlockPredictions:
    """Every passage block of a data set, to try thresholds without the model.

    What a threshold would do is exact for questions with one window each, and for a skimmer that
    prunes at one layer and keeps the best block in any case (``SkimConfig.min_blocks`` 1); one that
    leaves short rows whole prunes less.
    """

    row: np.ndarray  # (N,) int32, the question
    sizes: np.ndarray  # (N,) int32, tokens
    answers: np.ndarray  # (N, A) bool, which gold answers have a token in the block
    scores: dict[int, np.ndarray]  # (N,) float32 probabilities, by layer
    two_tokens: np.ndarray | None = None  # (N,) bool, the released code's labels: two tokens of
    # the first gold answer; some records do not have them

    @property
    def labels(self) -> np.ndarray:
        """The paper's labels: a token of any gold answer.  (N,) bool"""
        return self.answers.any(axis=1)

    @property
    def answered(self) -> np.ndarray:
        """Questions with a gold answer in a block.  (Q,) bool"""
        return np.bincount(self.row, weights=self.labels) > 0

    def kept(self, layer: int, threshold: float) -> np.ndarray:
        """Blocks that are kept, in any case the first of a question's best ones.  (N,) bool"""
        scores = self.scores[layer].astype(float)
        order = np.lexsort((-scores, self.row))  # stable
        best = order[np.unique(self.row[order], return_index=True)[1]]
        kept = scores >= threshold
        kept[best] = True
        return kept

    def conformity_scores(self, layer: int) -> np.ndarray:
        """Highest threshold at which a question keeps a whole answer, of those that have one.

        Infinite where it lies in the best block of a window, which is kept at any threshold.
        """
        scores = np.where(self.kept(layer, np.inf), np.inf, self.scores[layer])
        return conformity_scores(scores, self.answers, self.row)[self.answered]

    def subset(self, chosen: np.ndarray) -> "BlockPredictions":
        """Some blocks only.  (N,) bool"""
        scores = {n: x[chosen] for n, x in self.scores.items()}
        return BlockPredictions(self.row[chosen], self.sizes[chosen], self.answers[chosen], scores)

    def token_fraction(self, layer: int, threshold: float) -> float:
        """Share of all passage tokens that all layers process."""
        return float(self.sizes[self.kept(layer, threshold)].sum() / self.sizes.sum())

    def relative_flops(self, layer: int, threshold: float, cost: CostModel) -> float:
        """Multiply-adds of all windows, predictors included, relative to full inference.

        A ratio of sums, as time is: long windows count for more. ``QUESTION`` tokens are assumed.
        """
        depth, kept = len(cost.layers), self.kept(layer, threshold)
        passage = np.bincount(self.row, weights=self.sizes)
        left = np.bincount(self.row, weights=self.sizes * kept)[passage > 0]
        passage = passage[passage > 0]
        given, left = (QUESTION + SPECIAL + x for x in (passage, left))
        total = cost.encoder_macs(token_counts(given, {layer: left}, depth)).sum()
        total += cost.predictor_macs(layer, passage, QUESTION).sum()
        total += cost.forwarded * (given - left).sum()
        return float(total / cost.encoder_macs(token_counts(given, {}, depth)).sum())


def block_predictions(
    model: SkimReader,
    data: Dataset,
    config: WindowConfig,
    precision: str = "auto",
    tokens_per_batch: int = 8192,
    progress: bool = False,
) -> BlockPredictions:
    """The probability of every block of ``data`` at every layer with a predictor."""
    windows = make_windows(data.examples, model.tokenizer, config)
    device = next(model.eval().parameters()).device.type
    bf16 = choose_precision(precision, device)[0] == "bf16"
    parts: list[dict] = [{}] * len(windows)
    with progress_bar(len(windows), "score blocks", "window", show=progress) as bar:
        for rows in inference_batches([len(window) for window in windows], tokens_per_batch):
            batch = collate([windows[i] for i in rows], model.tokenizer.pad_token_id or 0)
            with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=bf16):
                output = model.run(batch.to(torch.device(device)), skim=False)
            for place, number in enumerate(rows):
                parts[number] = _window_blocks(output, place, windows[number])
            bar.update(len(rows))
    counts = [len(part["sizes"]) for part in parts]
    widest = max(part["answers"].shape[1] for part in parts)
    number = Counter(window.example for window in windows)  # each window has columns of its own
    answers = np.zeros((sum(counts), widest * max(number.values())), dtype=bool)
    number.clear()
    end = 0
    for part, window in zip(parts, windows, strict=True):
        begin, end = end, end + len(part["sizes"])
        left = widest * number[window.example]
        answers[begin:end, left : left + part["answers"].shape[1]] = part["answers"]
        number[window.example] += 1
    layers = {n: np.concatenate([p["scores"][n] for p in parts]) for n in parts[0]["scores"]}
    return BlockPredictions(
        row=np.repeat([window.example for window in windows], counts).astype(np.int32),
        sizes=np.concatenate([part["sizes"] for part in parts]).astype(np.int32),
        answers=answers,
        scores=layers,
        two_tokens=np.concatenate([part["two_tokens"] for part in parts]),
    )


def _window_blocks(output, place: int, window: Window) -> dict:
    """Sizes, answers, labels and probabilities of the K blocks of one window of a batch."""
    block_ids = output.blocks.block_ids[place].cpu().numpy()
    count = int(output.blocks.real[place].sum())
    tokens = [
        np.bincount(block_ids[first : last + 1], minlength=count)
        for first, last in window.spans
        if first >= window.context_start  # not the null answer
    ]
    tokens = np.array(tokens or [np.zeros(count, int)])  # (A, K)
    logits = {n: x[place, :count].float() for n, x in output.scores.items()}
    return {
        "sizes": np.bincount(block_ids[block_ids >= 0], minlength=count),
        "answers": tokens.T > 0,
        "two_tokens": tokens[0] > 1,
        "scores": {n: x.sigmoid().cpu().numpy() for n, x in logits.items()},
    }


# --- a threshold for a recall ---


def calibrate_threshold(
    blocks: BlockPredictions, layer: int, recall: float, confidence: float | None = None
) -> float:
    """Highest threshold at which a new question keeps a whole answer with probability ``recall``.

    On average over calibration sets, or with ``confidence`` for this one (see the top). Raises
    QalibError if there are too few questions, with the number that is needed.
    """
    reached = np.sort(blocks.conformity_scores(layer))
    threshold = reached[conformal_rank(len(reached), recall, confidence) - 1]
    return min(float(threshold), 1.0)  # infinite where the best blocks are enough


def conformal_rank(questions: int, recall: float, confidence: float | None = None) -> int:
    """The r of the top of this file: which of the sorted conformity scores is the threshold, >= 1.

    Raises QalibError if even the lowest one is too high.
    """
    from scipy.stats import binom

    if confidence is None:
        # in exact arithmetic: the rank for a recall of 0.9 must not be one too low
        rank = math.floor((questions + 1) * (1 - Fraction(repr(float(recall)))))
        needed = math.ceil(1 / (1 - Fraction(repr(float(recall))))) - 1
    else:
        tail = binom.cdf(np.arange(questions + 1), questions, 1 - recall)
        rank = int(np.searchsorted(tail, 1 - confidence, side="right"))
        needed = math.ceil(math.log(1 - confidence) / math.log(recall))
    if rank < 1:
        with_confidence = "" if confidence is None else f" with confidence {confidence:g}"
        raise QalibError(
            f"{questions} questions with an answer are too few for a recall of {recall:g}"
            f"{with_confidence}; calibrate on at least {needed}, or lower the recall."
        )
    return rank


# --- what is measured and stored with a skimmer ---


@settings
class Measurement:
    """Answers that a threshold keeps whole, of questions that it was not chosen on."""

    data: str
    questions: Annotated[int, Field(ge=1)]  # with an answer in a block
    kept: Annotated[int, Field(ge=0)]
    token_fraction: float  # of the passages, left for the last layer

    def __str__(self) -> str:
        from scipy.stats import binomtest

        test = binomtest(self.kept, self.questions)
        shares = (test.statistic, *test.proportion_ci(0.95, method="exact"))
        found, low, high = (f"{100 * share:.1f}" for share in shares)
        return (
            f"{self.data}: {self.kept:,} of {self.questions:,} answers kept whole, {found} % "
            f"(95 % interval {low} to {high}), in {100 * self.token_fraction:.0f} % of the text"
        )


@settings
class Calibration:
    """Where a skimmer prunes, what was required, and what was measured.

    ``measured``: first by cross-validation on the questions that the threshold was chosen on, then
    on further data. A skimmer that leaves short inputs whole keeps more.
    """

    layer: int
    threshold: float
    recall: float
    confidence: float | None
    measured: Annotated[tuple[Measurement, ...], Field(min_length=1)]

    @property
    def options(self) -> dict[str, tuple]:
        """For ``Skimmer.set_options``."""
        return {"prune_layers": (self.layer,), "thresholds": (self.threshold,)}

    def describe(self) -> str:
        """What was required, what was measured, and what was not, a line each."""
        sure = "" if self.confidence is None else f" with confidence {self.confidence:g}"
        return "\n".join(
            [
                f"blocks scored below {self.threshold:.4f} at layer {self.layer} are pruned, "
                f"chosen for a recall of {self.recall:g}{sure}",
                f"cross-validated on {self.measured[0]}",
                *(f"measured on {other}" for other in self.measured[1:]),
                "on other text the recall may differ; calibrate on questions like your own",
            ]
        )


def calibrate(
    model: SkimReader,
    data: Dataset,
    windows: WindowConfig,
    recall: float,
    confidence: float | None = None,
    further: Sequence[Dataset] = (),
    precision: str = "auto",
    progress: bool = False,
) -> Calibration:
    """Choose layer and threshold on ``data``; measure them there and on the data sets ``further``.

    Of the layers with a predictor the one with the fewest multiply-adds is chosen. For the
    cross-validation, both are chosen on nine tenths of the passages and tested on the questions
    about the others. Raises QalibError if there are too few questions or passages.
    """
    for name, value in {"recall": recall, "confidence": confidence}.items():
        if value is not None and not 0 < value < 1:
            raise QalibError(f"{name} is {value:g}, but must lie between 0 and 1, as in 0.99.")
    blocks = block_predictions(model, data, windows, precision, progress=progress)
    cost = CostModel.of(model.reader.encoder, model.skimmer)
    questions = int(blocks.answered.sum())
    share = Fraction(conformal_rank(questions, recall, confidence), max(1, questions))
    layer, threshold = _cheapest(blocks, cost, share)
    fold_of, kept, left = _folds(data)[blocks.row], 0, 0.0
    for fold in np.unique(fold_of):
        tested = blocks.subset(fold_of == fold)
        at = _cheapest(blocks.subset(fold_of != fold), cost, share)
        kept += int((tested.conformity_scores(at[0]) >= at[1]).sum())
        left += tested.token_fraction(*at) * tested.sizes.sum()
    measured = [Measurement(data.name, questions, kept, float(left / blocks.sizes.sum()))]
    for dataset in further:
        other = block_predictions(model, dataset, windows, precision, progress=progress)
        reached = other.conformity_scores(layer) >= threshold
        fraction = other.token_fraction(layer, threshold)
        measured.append(Measurement(dataset.name, len(reached), int(reached.sum()), fraction))
    return Calibration(layer, threshold, recall, confidence, tuple(measured))


def _folds(data: Dataset) -> np.ndarray:
    """Fold of every question; questions about one passage share it, neighbouring ones mostly.

    Raises QalibError if there is only one passage.
    """
    number = {context: n for n, context in enumerate(dict.fromkeys(e.context for e in data))}
    folds = min(FOLDS, len(number))
    if folds < 2:
        raise QalibError(f"{data.name}: calibrate on questions about several passages, not one.")
    return np.array([number[e.context] * folds // len(number) for e in data])


def _cheapest(blocks: BlockPredictions, cost: CostModel, share: Fraction) -> tuple[int, float]:
    """Layer and threshold that lose ``share`` of the answers with the fewest multiply-adds."""
    found = {}
    for layer in blocks.scores:
        reached = np.sort(blocks.conformity_scores(layer))
        rank = max(1, int(share * len(reached)))
        threshold = min(1.0, float(reached[rank - 1])) if len(reached) else 0.0
        found[layer, threshold] = blocks.relative_flops(layer, threshold, cost)
    return min(found, key=found.get)


def load_calibration(folder: str | Path) -> Calibration:
    """The calibration in the folder of a skimmer.

    Raises QalibError if it was not calibrated, or if what is stored cannot be read.
    """
    content = read_settings(folder).get("calibration")
    if content is None:
        raise QalibError(
            f"{folder}: this skimmer has no threshold yet; choose one with `qalib skim calibrate`."
        )
    return build(content, Calibration, f"{Path(folder) / SETTINGS}, calibration")
