"""Marks: how well every question was answered. What a record needs of an ``evaluate`` run.

The answers to SQuAD's 10,570 questions are a file of 0.7 MB, and a study of forty readers has
eighty of those. Means, intervals and tables by type of question need only EM and F1 of every
question, 53 kB; they go to the records, and the answers stay in the store of the machine that
gave them.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from qalib.data.adversary import VARIANT
from qalib.data.squad import Dataset
from qalib.study.entries import Run

FILE = "marks.safetensors"
LEAN = 100_000  # bytes of the largest file that goes to the records of a lean run
METRICS = ("EM", "F1")


def has_variants(test: Dataset) -> bool:
    """Whether a test set has variants of its questions."""
    return any(VARIANT in example.id for example in test.examples)


def write_marks(work: Path, test: Dataset, predictions: Mapping[str, str]) -> None:
    """Keep EM and F1 of every base question, in the order of the set, with a run."""
    from safetensors.numpy import save_file

    from qalib.metrics import adversarial_question_scores, question_scores

    rule = adversarial_question_scores if has_variants(test) else question_scores
    right, overlap = rule(test, predictions)
    save_file({"EM": right.astype(bool), "F1": overlap.astype(np.float32)}, work / FILE)


def read_marks(run: Run) -> dict[str, np.ndarray]:
    """EM and F1 of every base question of the set, 0 to 100.  each (questions,) float64

    A set with variants has one mark a base question, by the rule of the published sets.
    """
    from safetensors.numpy import load_file

    found = load_file(run.file(FILE))
    return {name: 100 * found[name].astype(np.float64) for name in METRICS}
