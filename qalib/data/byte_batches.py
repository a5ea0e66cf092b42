"""Training batches for byte-level readers: a fixed number of questions, each passage read once.

A row is one question, numbered through all features in order. A feature is a passage with some
questions; however many of them fall into one batch, the passage is in it once.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np

from qalib.data.byte_features import ByteBatch, PassageFeature, collate_passages
from qalib.errors import QalibError


class QuestionRows:
    """The questions of all features as rows 0, 1, ...; for training those with a gold answer.

    Raises QalibError if ``gold_only`` leaves none.
    """

    def __init__(self, features: Sequence[PassageFeature], gold_only: bool = True):
        self.features = features
        self.places = [
            (number, place)
            for number, feature in enumerate(features)
            for place, spans in enumerate(feature.spans)
            if len(spans) or not gold_only
        ]
        if gold_only and not self.places:
            raise QalibError("nothing to train on: no question has a gold answer.")

    def feature(self, row: int) -> PassageFeature:
        """The passage that a row asks about."""
        return self.features[self.places[row][0]]

    def example(self, row: int) -> int:
        """The index of a row's example in the list that the features were made from."""
        number, place = self.places[row]
        return self.features[number].examples[place]

    def __len__(self) -> int:
        return len(self.places)

    @property
    def lengths(self) -> list[int]:
        """Positions of the passage of every row."""
        return [len(self.features[number]) for number, _ in self.places]

    def collate(self, rows: Sequence[int]) -> ByteBatch:
        """The batch of some rows, in their order; neighbours about one passage share it."""
        parts = []
        for number, group in groupby((self.places[row] for row in rows), key=lambda p: p[0]):
            feature, chosen = self.features[number], [place for _, place in group]
            columns = ("examples", "questions", "spans", "weights")
            part = {name: tuple(getattr(feature, name)[i] for i in chosen) for name in columns}
            parts.append(replace(feature, **part))
        return collate_passages(parts)

    def batches(self, size: int, seed: int, epoch: int, pool: int = 16) -> list[list[int]]:
        """One epoch: batches of exactly ``size`` rows (the last takes the rest), like lengths.

        Passages are shuffled, sorted by length within pools of about ``pool`` batches, their rows
        cut every ``size``, and the batches shuffled. It depends on the arguments alone.
        """
        random = np.random.default_rng([seed, epoch])
        numbers = np.array([number for number, _ in self.places])
        shuffled = random.permutation(len(self.features))[numbers]  # one draw for a passage
        order = np.argsort(shuffled, kind="stable")
        lengths = np.array([len(feature) for feature in self.features])[numbers]
        pools = np.arange(len(order)) // (pool * size)
        order = order[np.lexsort((shuffled[order], lengths[order], pools))].tolist()
        batches = [order[begin : begin + size] for begin in range(0, len(order), size)]
        return [batches[i] for i in random.permutation(len(batches))]
