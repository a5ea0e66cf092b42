"""How far from its answer a question's words stand, and who finds answers near and far.

    When was the mill at Ostra built?    The mill at Ostra was built in 1931.

    characters between 1931 and built 4, Ostra 14, mill 23: distance 14

A reader with a narrow view can tell that 1931 is the answer only by the words that it sees from
there. The *distance* of a question is the median, over its content words that the passage has
outside the answer, of the characters between the answer and the word's nearest occurrence.
"""

import statistics
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from qalib.data.squad import Answer, Dataset
from qalib.metrics import paired_bootstrap
from qalib.readers.lexical import STOP_WORD, WORD

EDGES = (25, 50, 100, 200)  # characters; the last bin is open

Places = dict[str, list[tuple[int, int]]]  # word to the characters [start, end) where it stands


def content_words(text: str) -> Places:
    """The words of a text, lower-cased, without stop words and punctuation, and where they are."""
    places: Places = {}
    for match in WORD.finditer(text):
        word = match[0].lower()
        if word[0].isalnum() and not STOP_WORD.fullmatch(word):
            places.setdefault(word, []).append(match.span())
    return places


def distance(question: Places, passage: Places, answer: Answer) -> float:
    """Median characters from the answer to the nearest occurrence of each question word.

    An occurrence that touches a character of the answer does not count; one right beside it is 0
    or, behind a space, 1 away. NaN if the passage has none of the words elsewhere.
    """
    nearest = []
    for word in question:
        gaps = [max(start - answer.end, answer.start - end) for start, end in passage.get(word, ())]
        outside = [gap for gap in gaps if gap >= 0]
        nearest += [min(outside)] if outside else []
    return statistics.median(nearest) if nearest else float("nan")


def distances(dataset: Dataset) -> np.ndarray:
    """The distance of every question by its first gold answer; NaN without one.  (questions,)"""
    passages: dict[str, Places] = {}
    found = []
    for example in dataset.examples:
        if example.context not in passages:
            passages[example.context] = content_words(example.context)
        asked, passage = content_words(example.question), passages[example.context]
        answers = example.answers[:1]
        found += [distance(asked, passage, answer) for answer in answers] or [float("nan")]
    return np.array(found)


def bin_names(edges: Sequence[int] = EDGES) -> list[str]:
    """``["0-25", "25-50", ..., ">200"]``; a bin holds its lower edge and not its upper one."""
    lower = [0, *edges[:-1]]
    inner = [f"{low}-{high}" for low, high in zip(lower, edges, strict=True)]
    return [*inner, f">{edges[-1]}"]


def in_bins(far: np.ndarray, edges: Sequence[int] = EDGES) -> dict[str, np.ndarray]:
    """Which questions fall into each bin that holds any: name to a mask (questions,)."""
    number = np.where(np.isnan(far), -1, np.digitize(far, edges))
    masks = {name: number == i for i, name in enumerate(bin_names(edges))}
    return {name: mask for name, mask in masks.items() if mask.any()}


def scores_by_distance(far: np.ndarray, scores: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Mean score of each reader in each bin, with its 95 % bootstrap interval.

    ``far`` (questions,) as ``distances`` gives it; ``scores`` reader to (questions,). Columns
    reader, distance, questions, mean, low, high.
    """
    rows = []
    for reader, own in scores.items():
        for name, mask in in_bins(far).items():
            mean = paired_bootstrap(own[mask], np.zeros(mask.sum()), samples=2000)
            row = {"reader": reader, "distance": name, "questions": int(mask.sum())}
            rows.append(row | {"mean": mean.difference, "low": mean.low, "high": mean.high})
    return pd.DataFrame(rows)


def gains_by_distance(far: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> pd.DataFrame:
    """How far ``ours`` are above ``theirs`` in each bin, paired question by question.

    Scores and ``far`` are (questions,). Columns distance, questions, gain, low, high (95 %
    bootstrap interval of the gain) and part: what the bin adds to the mean gain over all
    questions, so that the parts sum to it. Questions of no distance are in the last row, "none".
    """
    masks = in_bins(far)
    if np.isnan(far).any():
        masks["none"] = np.isnan(far)
    rows = []
    for name, mask in masks.items():
        gain = paired_bootstrap(ours[mask], theirs[mask])
        part = gain.difference * mask.mean()
        row = {"distance": name, "questions": int(mask.sum()), "gain": gain.difference}
        rows.append(row | {"low": gain.low, "high": gain.high, "part": part})
    return pd.DataFrame(rows)
