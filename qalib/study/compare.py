"""Readers trained with several seeds, side by side: what 02 and 05 both show."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from qalib.metrics import PairedBootstrap, paired_bootstrap
from qalib.study.entries import Run
from qalib.study.reader_stages import per_question
from qalib.study.session import Study

Runs = Mapping[str, Sequence[Run]]  # by the name of the reader, one run a seed


def scores(scored: Runs) -> pd.DataFrame:
    """``evaluate`` runs as rows.  columns reader, seed, EM, F1"""
    rows = [
        (name, seed, run.metrics["exact_match"], run.metrics["f1"])
        for name, runs in scored.items()
        for seed, run in enumerate(runs)
    ]
    return pd.DataFrame(rows, columns=["reader", "seed", "EM", "F1"])


def seeds_gain(
    study: Study, scored: Runs, metric: str, better: str, than: str = "plain"
) -> PairedBootstrap:
    """How far one reader is above another on the test questions; ``metric``: EM or F1.

    Questions are drawn again in pairs, and seeds, so the interval knows about both.
    """
    test = study.data("test")
    ours, theirs = (
        np.stack([per_question(test, run)[metric] for run in scored[name]])
        for name in (better, than)
    )
    return paired_bootstrap(ours, theirs)
