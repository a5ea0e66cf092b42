"""What skimming would do to a data set, replayed from block scores that were kept.

    replay = Replay(judged.row, judged.sizes, judged.answers, judged.scores)
    replay.read({2: 0.1, 4: 0.3})               # share of passage tokens that all layers read
    replay.work({2: 0.1, 4: 0.3}, cost)         # multiply-adds, as a share of those without

The scores come from one pass in which nothing was skipped, so thresholds can be tried by the
thousand without the model. For the first skim point the replay is exact. For a later one it is an
approximation: in earnest, that predictor judges blocks that no longer see what has left. A skimmer
that is told to leave short rows whole keeps more than is replayed here.

Notation: N blocks of a data set in any order (those of a window in that of the passage),
R questions, W windows, K blocks of the longest window, A gold answers of a question at most.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from qalib.errors import QalibError
from qalib.skim.cost import CostModel, lengths
from qalib.skim.recall import question_scores

SPECIAL = 3  # [CLS] and two [SEP]


@dataclass(frozen=True)
class Replay:
    """Every passage block of a data set, and what predictors said of it.

    Raises QalibError for arrays that do not fit together and for scores that are no probabilities.
    """

    row: np.ndarray  # (N,) int, the question
    sizes: np.ndarray  # (N,) int, tokens
    answers: np.ndarray  # (N, A) or (N,) bool, which gold answers have a token there
    scores: Mapping[int, np.ndarray]  # (N,) probabilities, by layer
    window: np.ndarray | None = None  # (N,) int; None: every question has one window
    always: int | np.ndarray = 16 + SPECIAL  # tokens beside the passage, (W,) by window number
    min_keep: int = 1  # as of ``SkimConfig``
    neighbours: int = 0  # as of ``SkimConfig``

    def __post_init__(self):
        row, answers = np.asarray(self.row), np.asarray(self.answers, dtype=bool)
        window = row if self.window is None else np.asarray(self.window)
        scores = {int(n): np.asarray(x, dtype=float) for n, x in sorted(self.scores.items())}
        told = {"sizes": np.asarray(self.sizes), "answers": answers, "window": window}
        for name, values in (told | {f"scores of layer {n}": x for n, x in scores.items()}).items():
            if len(values) != len(row):
                raise QalibError(
                    f"{name}: {len(values)} entries for {len(row)} blocks; give one for each."
                )
        if not len(row):
            raise QalibError("there is no block to replay.")
        if (told["sizes"] < 1).any():
            raise QalibError("a block has at least one token.")
        for layer, values in scores.items():
            if not ((values >= 0) & (values <= 1)).all():
                raise QalibError(
                    f"scores of layer {layer} are to be probabilities, 0 to 1; take the sigmoid of "
                    "logits."
                )
        row, window = (np.unique(x, return_inverse=True)[1] for x in (row, window))
        always = np.broadcast_to(self.always, window.max() + 1)
        told |= {"row": row, "window": window, "scores": scores, "always": always}
        for name, values in told.items():
            object.__setattr__(self, name, values)

    @cached_property
    def answered(self) -> np.ndarray:
        """Which questions have a gold answer in a block.  (R,) bool"""
        held = self.answers if self.answers.ndim == 1 else self.answers.any(axis=1)
        return np.bincount(self.row, weights=held) > 0

    @cached_property
    def cell(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the blocks by window: window, place there, number among all.  (N,) int64 each"""
        order = np.argsort(self.window, kind="stable")
        counts = np.bincount(self.window)
        place = np.arange(len(order)) - np.repeat(counts.cumsum() - counts, counts)
        return self.window[order], place, order

    def grid(self, values: np.ndarray, filler: float | bool) -> np.ndarray:
        """Values of blocks, one row a window.  (N,) -> (W, K)"""
        window, place, order = self.cell
        found = np.full((window[-1] + 1, place.max() + 1), filler, dtype=values.dtype)
        found[window, place] = values[order]
        return found

    @cached_property
    def grids(self) -> dict[int, np.ndarray]:
        """Scores by layer, -1 where there is no block.  (W, K) each"""
        return {layer: self.grid(values, -1.0) for layer, values in self.scores.items()}

    @cached_property
    def tokens(self) -> np.ndarray:
        """Tokens of blocks, 0 where there is none.  (W, K) float64"""
        return self.grid(self.sizes.astype(float), 0.0)

    def reached(self, lasting: np.ndarray) -> np.ndarray:
        """The highest threshold at which a question keeps a whole answer, one by one.

            max_a min_{k in a} lasting[k]                      (W, K) -> questions with an answer

        By ``recall.question_scores``: with more than one window, one that keeps it is enough.
        """
        window, place, order = self.cell
        values = np.empty(len(order))
        values[order] = lasting[window, place]
        return question_scores(values, self.answers, self.row)[self.answered]

    def lasting(self, values: Mapping[int, np.ndarray]) -> np.ndarray:
        """Up to which threshold a block goes on at all skim points.  -> (W, K)

        ``values``: (W, K) by layer, on one scale for all of them; see :meth:`last`.
        """
        found = np.where(self.tokens > 0, np.inf, -np.inf)
        for layer in sorted(values):
            found = self.last(found, layer, values[layer])
        return found

    def last(self, before: np.ndarray, layer: int, values: np.ndarray) -> np.ndarray:
        """``lasting`` behind one more skim point.  (W, K), (W, K) -> (W, K)

            r'[k] = min(r[k], max_{|j - k| <= neighbours} min(r[j], v[j]))

        v are the values, infinite for the ``min_keep`` best blocks of a window, which go on in any
        case. With one skim point this is the skimmer's rule. Behind a second, blocks may be the
        best of those that are left without being the best of all: that they stay is not relied on,
        so that what goes on at some threshold goes on at every lower one.
        """
        alone = np.where(self.best[layer], np.inf, values)
        alone = np.minimum(before, alone)
        wide = alone.copy()
        for step in range(1, min(self.neighbours, wide.shape[1] - 1) + 1):
            wide[:, step:] = np.maximum(wide[:, step:], alone[:, :-step])
            wide[:, :-step] = np.maximum(wide[:, :-step], alone[:, step:])
        return np.minimum(before, wide)

    @cached_property
    def best(self) -> dict[int, np.ndarray]:
        """The ``min_keep`` best blocks of each window, of equal ones the first.  (W, K) bool"""
        there = self.tokens > 0
        return {n: self._highest(scores, there) for n, scores in self.grids.items()}

    def _highest(self, scores: np.ndarray, there: np.ndarray) -> np.ndarray:
        ranked, found = np.where(there, scores, -1.0), np.zeros_like(there)
        if self.min_keep == 1:
            places = ranked.argmax(axis=1, keepdims=True)  # much faster than sorting
        else:
            places = np.argsort(-ranked, axis=1, kind="stable")[:, : self.min_keep]
        np.put_along_axis(found, places, True, axis=1)
        return found & there

    def kept(self, thresholds: Mapping[int, float]) -> dict[int, np.ndarray]:
        """Which blocks go on behind each skim point, as ``keep.choose`` decides.  (W, K) bool

        ``thresholds``: by layer. Raises QalibError for a layer without scores.
        """
        going, found = self.tokens > 0, {}
        for layer in sorted(thresholds):
            if layer not in self.grids:
                raise QalibError(f"there are no scores of layer {layer}, only of {[*self.grids]}.")
            found[layer] = going = self._choose(self.grids[layer], going, thresholds[layer])
        return found

    def _choose(self, scores: np.ndarray, there: np.ndarray, threshold: float) -> np.ndarray:
        kept = ((scores >= threshold) & there) | self._highest(scores, there)
        wide = kept.copy()
        for step in range(1, min(self.neighbours, kept.shape[1] - 1) + 1):
            wide[:, step:] |= kept[:, :-step]
            wide[:, :-step] |= kept[:, step:]
        return wide & there

    def found(self, thresholds: Mapping[int, float]) -> np.ndarray:
        """Whether a whole gold answer goes on to the end, by question with an answer.  bool"""
        kept = self.kept(thresholds)
        if not kept:
            return np.ones(int(self.answered.sum()), dtype=bool)
        return self.reached(kept[max(kept)].astype(float)) > 0

    def read(self, thresholds: Mapping[int, float]) -> float:
        """The share of all passage tokens that all layers read."""
        kept = self.kept(thresholds)
        last = kept[max(kept)] if kept else True
        return float((self.tokens * last).sum() / self.tokens.sum())

    def work(self, thresholds: Mapping[int, float], cost: CostModel) -> float:
        """Multiply-adds of all windows, predictors included, as a share of those without skimming.

        A ratio of sums, as time is: long windows count for more. A window's question is what stands
        beside its passage without three special tokens.
        """
        depth, given = len(cost.layers), self.always + self.tokens.sum(axis=1)
        kept = self.kept(thresholds)
        go_on = {n: self.always + (self.tokens * mask).sum(axis=1) for n, mask in kept.items()}
        tokens = lengths(given, go_on, depth)
        total = cost.encoder(tokens).sum()
        for layer in kept:
            arrived, question = tokens[:, layer - 1], np.maximum(self.always - SPECIAL, 0)
            total += cost.judging(layer, arrived - self.always, question).sum()
            total += cost.left * arrived.sum()
        return float(total / cost.encoder(lengths(given, {}, depth)).sum())

    def part(self, chosen: np.ndarray) -> "Replay":
        """Some questions only, with all their windows.  chosen (R,) bool"""
        blocks = chosen[self.row]
        if not blocks.any():
            raise QalibError("no question was chosen.")
        return Replay(
            self.row[blocks],
            self.sizes[blocks],
            self.answers[blocks],
            {layer: values[blocks] for layer, values in self.scores.items()},
            self.window[blocks],
            self.always[np.unique(self.window[blocks])],
            self.min_keep,
            self.neighbours,
        )
