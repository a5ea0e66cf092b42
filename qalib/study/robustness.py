"""What typos and rare names cost a reader, measured on a sample of the test questions.

A reader that hardly uses the question cannot lose by a misspelt one. So every reader also answers
another example's question about each passage: what it scores then is its floor, and what reading
the question brings is the rest.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from qalib.data.squad import Example, make_dataset
from qalib.errors import QalibError
from qalib.study.disturb import COMMON, add_typos, rename
from qalib.study.entries import Run
from qalib.study.session import Study

if TYPE_CHECKING:
    from qalib.answer import Answerer
    from qalib.byte_answer import ByteAnswerer

WRITTEN, OTHER = "as written", "another question"
NAMED = {"common names": COMMON, "invented names": ""}


@dataclass(frozen=True)
class Robustness:
    """How a sample of the test questions is disturbed."""

    questions: int = 300  # of the test data, evenly spaced
    rates: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4)  # share of the words that get a typo
    seed: int = 0

    def __post_init__(self):
        if self.questions < 2:
            raise QalibError(f"robustness: questions must be at least 2, not {self.questions}.")
        for rate in self.rates:
            if not 0 < rate <= 1:
                raise QalibError(f"robustness: a rate must be above 0 and at most 1, not {rate}.")


def disturbed(examples: Sequence[Example], config: Robustness) -> dict[str, list[Example]]:
    """The sample under every condition, by name; ids stay.

    "as written", "typos 5 %" and so on, "another question" (that of an example half the sample
    further on), and of the examples that have names to replace "common names", "invented names".
    Raises QalibError if there are fewer than two examples.
    """
    if len(examples) < 2:
        raise QalibError(f"robustness needs at least 2 test questions, not {len(examples)}.")
    count = min(config.questions, len(examples))
    sample = [examples[i * len(examples) // count] for i in range(count)]
    others = sample[count // 2 :] + sample[: count // 2]
    made = {WRITTEN: sample}
    for rate in config.rates:
        made[typo_name(rate)] = [
            replace(e, question=add_typos(e.question, rate, config.seed)) for e in sample
        ]
    made[OTHER] = [
        replace(e, question=other.question) for e, other in zip(sample, others, strict=True)
    ]
    renamed = {
        name: [rename(e, known.split(), config.seed) for e in sample]
        for name, known in NAMED.items()
    }
    kept = [i for i in range(count) if all(variant[i] for variant in renamed.values())]
    return made | {name: [variant[i] for i in kept] for name, variant in renamed.items() if kept}


def typo_name(rate: float) -> str:
    """The name of a condition: "typos 5 %"."""
    return f"typos {100 * rate:g} %"


def measure(
    study: Study,
    reader: str,
    inputs: Mapping[str, str],
    load: Callable[[], "Answerer | ByteAnswerer"],
) -> Run:
    """Score a reader under every condition on a sample of the test data; keeps scores.csv.

    ``inputs`` says what the reader is made of; ``load`` gives the answerer, if it is needed. The
    file has a row a condition and question: condition, id, EM, F1 (0 to 100).
    """
    from qalib.metrics import question_scores
    from qalib.study.stages import note_data

    config = study.section("robustness", Robustness)
    test = study.data("test")

    def compute(work: Path) -> dict:
        note_data(work, test)
        answerer, parts = load(), []
        for condition, examples in disturbed(test.examples, config).items():
            data = make_dataset(condition, examples, version=test.version)
            exact, f1 = question_scores(data, answerer.predictions(data.examples))
            told = {"condition": condition, "id": [e.id for e in data]}
            parts.append(pd.DataFrame({**told, "EM": 100 * exact, "F1": 100 * f1}))
        scores = pd.concat(parts, ignore_index=True)
        scores.to_csv(work / "scores.csv", index=False, lineterminator="\n")
        return {name: float(f1) for name, f1 in scores.groupby("condition")["F1"].mean().items()}

    inputs = {**inputs, "test": test.content_sha256}
    settings = {"reader": reader, "disturbed": config}
    run = study.store.get_or_run("robustness", settings, compute, inputs=inputs, force=study.force)
    return study.keep(run)


def measure_word_pieces(study: Study) -> Run:
    """The word-piece reader that ships with the kit, under every condition."""
    from qalib.answer import Answerer
    from qalib.readers.shipped import SHIPPED, checkpoint_hash

    return measure(study, "word pieces", {"checkpoint": checkpoint_hash(SHIPPED)}, Answerer.load)


def measure_bytes(study: Study, trained: Run) -> Run:
    """A byte-level reader that ``train-bytes`` made, under every condition."""
    from qalib.byte_answer import ByteAnswerConfig, ByteAnswerer
    from qalib.study.byte_stages import trained_reader, training_of

    settings = ByteAnswerConfig(text=training_of(trained).text)

    def load() -> ByteAnswerer:
        return ByteAnswerer(trained_reader(trained), settings)

    return measure(study, "bytes", {"weights": trained.key}, load)


def scores(run: Run) -> pd.DataFrame:
    """F1 (0 to 100) of a run by question id (rows) and condition (columns, in their order).

    NaN where a question has no names to replace.
    """
    table = pd.read_csv(run.file("scores.csv"), dtype={"id": str})
    order = list(dict.fromkeys(table["condition"]))
    return table.pivot(index="id", columns="condition", values="F1")[order]


# --- what it keeps -------------------------------------------------------------------------------


def kept(
    table: pd.DataFrame,
    condition: str,
    above_floor: bool = False,
    samples: int = 2000,
    seed: int = 0,
) -> np.ndarray:
    """Percent of its own F1 on the text as written that a reader keeps under a condition.

    ``table`` as ``scores`` gives it. With ``above_floor`` only what reading the question brings
    counts, F1 less the F1 on another question. -> (1 + samples,): the value, then what it is when
    the questions are drawn again; the draws of two readers are the same. NaN where there was
    nothing to keep.
    """
    rows = table[list(dict.fromkeys([condition, WRITTEN, OTHER]))].dropna()
    points = rows[[condition, WRITTEN]].to_numpy()
    if above_floor:
        points = points - rows[[OTHER]].to_numpy()
    count = len(rows)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), samples)
    found, whole = (np.vstack([np.ones((1, count)), drawn]) @ points).T
    return 100 * np.divide(found, whole, out=np.full(1 + samples, np.nan), where=whole > 0)


def summary(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row a reader and condition, with 95 % bootstrap intervals (percentiles).

    columns reader, condition, questions, F1, written (F1 of the same questions as written), kept,
    kept low, kept high, and the same of what reading the question brings: reading, ...
    """
    rows = []
    for reader, table in tables.items():
        for condition in table:
            both = table[list(dict.fromkeys([condition, WRITTEN]))].dropna()
            row = {"reader": reader, "condition": condition, "questions": len(both)}
            row |= {"F1": both[condition].mean(), "written": both[WRITTEN].mean()}
            for name, above_floor in (("kept", False), ("reading", True)):
                value, *draws = kept(table, condition, above_floor)
                low, high = np.percentile(draws, [2.5, 97.5])
                row |= {name: value, f"{name} low": low, f"{name} high": high}
            rows.append(row)
    return pd.DataFrame(rows)


def advantage(
    ours: pd.DataFrame, theirs: pd.DataFrame, condition: str, above_floor: bool = False
) -> tuple[float, float, float]:
    """How many percentage points more of its own score one reader keeps than another.

    -> the difference and the ends of its 95 % interval; both must have read the same questions.
    """
    if set(ours.index) != set(theirs.index):
        raise QalibError("the two readers were asked different questions; measure both again.")
    theirs = theirs.loc[ours.index]
    draws = kept(ours, condition, above_floor) - kept(theirs, condition, above_floor)
    low, high = np.percentile(draws[1:], [2.5, 97.5])
    return float(draws[0]), float(low), float(high)


def advantages(ours: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """``advantage`` under every condition, of the own F1 and of what reading the question brings.

    columns of F1, low, high and of gain, gain low, gain high; one row a condition
    """
    columns = ["of F1", "low", "high", "of gain", "gain low", "gain high"]
    rows = {
        condition: [*advantage(ours, theirs, condition), *advantage(ours, theirs, condition, True)]
        for condition in ours
        if condition not in (WRITTEN, OTHER)
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)
