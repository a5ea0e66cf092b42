"""Block predictions of a data set, recall curves, and thresholds for a required recall.

    calibration = calibrate(model, data, windows, recall=0.99)
    model.skimmer.set_options(**calibration.options)
    print(calibration.describe())

A question's *conformity score* is the highest threshold at which the skimmer still keeps one of
its gold answers whole. With the n scores sorted, c_(1) <= ... <= c_(n), the threshold is the c_(r)
with the largest r that the recall allows. For a new question exchangeable with the others,

    P(c_new >= c_(r))  >=  1 - r / (n + 1)

on average over calibration sets. With a ``confidence``, r is the largest that satisfies
P(Binomial(n, 1 - recall) <= r - 1) <= 1 - confidence, and the recall holds for at least this share
of calibration sets if the questions are independent draws from one distribution. Other text may
violate both assumptions (notebook 06), so :func:`calibrate` also measures the recall, by
cross-validation over passages and on further data.

Sources: split-conformal prediction (Vovk et al. 2005; Lei et al. 2018); tolerance limits (Wilks
1941; Vovk 2012).

Notation: N blocks of a data set in any order, Q questions, A the largest number of gold answers of
a question, T thresholds.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch

from qalib.data.batching import collate, inference_batches
from qalib.data.schema import Dataset
from qalib.data.windows import Window, WindowConfig, check_windows, make_windows
from qalib.errors import QalibError
from qalib.models.bf16 import choose_precision
from qalib.progress import progress_bar
from qalib.skim.cost import CostModel, token_counts
from qalib.skim.reader import SkimReader
from qalib.skim.storage import Calibration, Measurement

FOLDS = 10  # of the cross-validation
QUESTION, SPECIAL = 16, 3  # tokens beside the passage: an assumed question; [CLS] and two [SEP]


# --- recall curves ---


class RecallCurve(NamedTuple):
    """One point per distinct score, from the highest threshold to the lowest."""

    thresholds: np.ndarray  # (T,)
    kept: np.ndarray  # (T,) share of passage tokens in kept blocks
    recall: np.ndarray  # (T,) share of the questions with an answer that keep one whole


def conformity_scores(scores: np.ndarray, answers: np.ndarray, question: np.ndarray) -> np.ndarray:
    """Highest threshold at which each question keeps a whole answer; -inf if none.  -> (Q,)

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
    """Recall of answers against the share of passage tokens kept, over all thresholds.

    scores (N,), of which only the order matters; answers and question as in
    :func:`conformity_scores`; sizes (N,) tokens. Questions without an answer count only in the
    share of tokens. Raises QalibError if no question has an answer in a block.
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
    """Recall at the lowest threshold that keeps at most a share ``budget`` of the tokens, or 0."""
    within = int(np.searchsorted(curve.kept, budget, side="right"))
    return float(curve.recall[within - 1]) if within else 0.0


def budget_at_recall(curve: RecallCurve, recall: float) -> tuple[float, float]:
    """Smallest share of tokens that reaches ``recall`` (0 to 1), and its threshold."""
    place = int(np.searchsorted(curve.recall, recall, side="left"))
    return float(curve.kept[place]), float(curve.thresholds[place])


# --- block predictions ----------------------------------------------------------------------------


@dataclass(frozen=True)
class BlockPredictions:
    """Scores of every passage block of a data set, to evaluate thresholds without the model.

    The effect of a threshold is exact if every question has one window and the skimmer prunes at
    one layer and always keeps the best block (``SkimConfig.min_blocks`` 1, no ``neighbours``). A
    skimmer that leaves short rows whole prunes less.
    """

    row: np.ndarray  # (N,) int32, the question
    sizes: np.ndarray  # (N,) int32, tokens
    answers: np.ndarray  # (N, A) bool, which gold answers have a token in the block
    scores: dict[int, np.ndarray]  # (N,) float32 probabilities, by layer
    two_tokens: np.ndarray | None = None  # (N,) bool, labels of the released code: two
    # or more tokens of the first gold answer; absent in some records

    @property
    def labels(self) -> np.ndarray:
        """The paper's labels: blocks with a token of any gold answer.  (N,) bool"""
        return self.answers.any(axis=1)

    @property
    def answered(self) -> np.ndarray:
        """Questions with a gold answer in a block.  (Q,) bool"""
        return np.bincount(self.row, weights=self.labels) > 0

    def kept(self, layer: int, threshold: float) -> np.ndarray:
        """Blocks that are kept, always with the best of each question (ties: first).  (N,) bool"""
        scores = self.scores[layer].astype(float)
        order = np.lexsort((-scores, self.row))  # stable
        best = order[np.unique(self.row[order], return_index=True)[1]]
        kept = scores >= threshold
        kept[best] = True
        return kept

    def conformity_scores(self, layer: int) -> np.ndarray:
        """Highest threshold at which each question with an answer keeps one whole.

        Infinite where it lies in the best block of the question, which is kept at any threshold.
        """
        scores = np.where(self.kept(layer, np.inf), np.inf, self.scores[layer])
        return conformity_scores(scores, self.answers, self.row)[self.answered]

    def subset(self, chosen: np.ndarray) -> "BlockPredictions":
        """The chosen blocks, without ``two_tokens``.  chosen (N,) bool"""
        scores = {n: x[chosen] for n, x in self.scores.items()}
        return BlockPredictions(self.row[chosen], self.sizes[chosen], self.answers[chosen], scores)

    def token_fraction(self, layer: int, threshold: float) -> float:
        """Share of the passage tokens in kept blocks, which all layers process."""
        return float(self.sizes[self.kept(layer, threshold)].sum() / self.sizes.sum())

    def relative_flops(self, layer: int, threshold: float, cost: CostModel) -> float:
        """Multiply-adds of all windows, predictors included, relative to full inference.

        A ratio of sums, like a ratio of times, so long windows weigh more. Every question counts
        as one window with ``QUESTION`` question tokens.
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
    """Probabilities of all blocks of ``data`` at every layer with a predictor, without pruning."""
    check_windows(config, model.reader.max_length)
    windows = make_windows(data.examples, model.tokenizer, config)
    device = next(model.eval().parameters()).device
    bf16 = choose_precision(precision, device.type)[0] == "bf16"
    parts: list[dict] = [{}] * len(windows)
    with progress_bar(len(windows), "score blocks", "window", show=progress) as bar:
        for rows in inference_batches([len(window) for window in windows], tokens_per_batch):
            batch = collate([windows[i] for i in rows], model.tokenizer.pad_token_id or 0)
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                output = model.run(batch.to(device), skim=False)
            for place, number in enumerate(rows):
                parts[number] = _window_blocks(output, place, windows[number])
            bar.update(len(rows))
    counts = [len(part["sizes"]) for part in parts]
    widest = max(part["answers"].shape[1] for part in parts)
    number = Counter(window.example for window in windows)  # each window has its own columns
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

    On average over calibration sets or, with ``confidence``, for this one (see the module
    docstring). Raises QalibError if there are too few questions, with the number that is needed.
    """
    reached = np.sort(blocks.conformity_scores(layer))
    threshold = reached[conformal_rank(len(reached), recall, confidence) - 1]
    return min(float(threshold), 1.0)  # infinite where the best blocks suffice


def conformal_rank(questions: int, recall: float, confidence: float | None = None) -> int:
    """Rank r >= 1 of the conformity score that becomes the threshold (see the module docstring).

    Raises QalibError if even the lowest score is too high.
    """
    from scipy.stats import binom

    if confidence is None:
        # exact arithmetic, as rounding could make the rank for a recall of 0.9 one too low
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


# --- layer and threshold of a skimmer ---


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

    The layer with the fewest multiply-adds is chosen. A ``confidence`` holds for all layers at once
    (union bound); without one, the recall is that of a fixed layer. In cross-validation, layer and
    threshold are chosen on all folds of passages but one and tested on that one. Raises QalibError
    for too few questions or passages, and for a recall or confidence that is not between 0 and 1.
    """
    for name, value in {"recall": recall, "confidence": confidence}.items():
        if value is not None and not 0 < value < 1:
            raise QalibError(f"{name} is {value:g}, but must lie between 0 and 1, as in 0.99.")
    for dataset in (data, *further):
        if not any(example.answerable for example in dataset):
            raise QalibError(f"{dataset.name}: no question has an answer, so none can be kept.")
    if not model.skimmer.config.min_blocks:
        raise QalibError("a skimmer with min_blocks 0 cannot be calibrated; set it to 1.")
    blocks = block_predictions(model, data, windows, precision, progress=progress)
    cost = CostModel.of(model.reader.encoder, model.skimmer)
    questions = int(blocks.answered.sum())
    sure = confidence and 1 - (1 - confidence) / len(blocks.scores)
    share = Fraction(conformal_rank(questions, recall, sure), max(1, questions))
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
    """Fold of every question: the same within a passage and mostly for neighbouring passages."""
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
