"""Exact match, F1 and statistics over them.

Predictions are answer texts by question id, as in the files that SQuAD's own scripts read.

There are two official rules. They differ for texts that are empty after normalising:
"1.1" gives two empty texts EM 1 but F1 0, and cannot score a question without gold answers;
"2.0" gives them EM 1 and F1 1, drops empty gold answers, and expects "" where none is left.
F1 counts words or, with ``characters``, characters, for scripts written without spaces.

Sources: Rajpurkar et al. 2016 (rule 1.1), 2018 (rule 2.0).
"""

import re
import reprlib
import string
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from qalib.data.formats import parse_json, read_bytes
from qalib.data.schema import Dataset
from qalib.data.sources import load_data
from qalib.errors import DataWarning, QalibError

Rule = Literal["1.1", "2.0"]

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_CJK = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]")


def normalize_answer(text: str) -> str:
    """Lower-case, remove ASCII punctuation, then a, an and the, and collapse white space."""
    bare = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLE.sub(" ", bare).split())


def exact_match(prediction: str, golds: Sequence[str] | str, rule: Rule = "1.1") -> float:
    """1.0 if the prediction equals a gold answer after normalising, else 0.0."""
    return _score(prediction, golds, rule, _Words())[0]


def f1(prediction: str, golds: Sequence[str] | str, rule: Rule = "1.1") -> float:
    """Harmonic mean of word precision and recall, the best over the gold answers; 0 to 1."""
    return _score(prediction, golds, rule, _Words())[1]


class _Words(dict[str, list[str]]):
    """Cache of the normalised words of texts. With ``characters``, punctuation of every script is
    removed first and F1 counts characters, much as in the scoring scripts of KorQuAD and CMRC.
    """

    def __init__(self, characters: bool = False):
        self.characters = characters

    def __missing__(self, text: str) -> list[str]:
        plain = text
        if self.characters:
            plain = "".join(c for c in text if not unicodedata.category(c).startswith("P"))
        words = self[text] = normalize_answer(plain).split()
        return words


def _gold_words(golds: Sequence[str], rule: Rule, words: _Words) -> list[list[str]]:
    """The words of each gold answer that counts under the rule; never an empty list."""
    if rule not in ("1.1", "2.0"):
        raise QalibError(f"Unknown scoring rule {rule!r}; choose '1.1' or '2.0'.")
    found = [words[gold] for gold in ([golds] if isinstance(golds, str) else golds)]
    if rule == "2.0":
        return [gold for gold in found if gold] or [[]]
    if not found:
        raise QalibError("A question without gold answers needs the rule '2.0'.")
    return found


def _score(text: str, golds: Sequence[str], rule: Rule, words: _Words) -> tuple[float, float]:
    """(EM, F1) of a predicted text, each the maximum over the gold answers."""
    said, expected = words[text], _gold_words(golds, rule, words)
    em = float(said in expected)
    if words.characters:
        said, expected = "".join(said), ["".join(gold) for gold in expected]
    return em, max(_overlap(said, gold, rule) for gold in expected)


def _overlap(prediction: Sequence[str], gold: Sequence[str], rule: Rule) -> float:
    """F1 of two bags of words or characters, computed in the order of the official scripts."""
    if not prediction or not gold:
        return float(rule == "2.0" and prediction == gold)
    common = sum((Counter(prediction) & Counter(gold)).values())
    if not common:
        return 0.0
    precision, recall = common / len(prediction), common / len(gold)
    return 2 * precision * recall / (precision + recall)


def question_scores(
    dataset: Dataset,
    predictions: Mapping[str, str],
    rule: Rule | None = None,
    characters: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """EM and F1 of every question: two float64 arrays (questions,), 0 to 1, in dataset order.

    ``rule`` defaults to the dataset's version. Questions without a prediction score 0 in both, with
    one DataWarning; predictions for other ids are ignored. Raises QalibError if the dataset is
    empty, if no prediction is for it, or if the rule cannot score a question.
    """
    rule = rule or dataset.version
    _check_ids(dataset, predictions)
    words = _Words(characters)
    scores = np.zeros((2, len(dataset)))
    for i, example in enumerate(dataset):
        if example.id in predictions:
            scores[:, i] = _score(predictions[example.id], example.answer_texts, rule, words)
    return scores[0], scores[1]


def _check_ids(dataset: Dataset, predictions: Mapping) -> None:
    """Raise QalibError if no question can be scored; warn of questions without a prediction."""
    place = dataset.path or dataset.name
    missing = [example.id for example in dataset if example.id not in predictions]
    if not len(dataset):
        raise QalibError(f"{place}: there is no question in it to score.")
    if len(missing) == len(dataset):
        raise QalibError(f"the predictions belong to another dataset; none is for {place}.")
    if missing:
        text = f"{len(missing)} of {len(dataset)} questions have no prediction"
        warnings.warn(f"{text}, the first of them {missing[0]!r}.", DataWarning, stacklevel=3)


def _percent(scores: np.ndarray) -> float:
    """100 x mean, summed in sequence as in the official scripts; np.mean rounds differently."""
    return 100.0 * float(np.cumsum(scores)[-1]) / len(scores)


def score(
    dataset: Dataset,
    predictions: Mapping[str, str],
    na_probs: Mapping[str, float] | None = None,
    characters: bool = False,
    rule: Rule | None = None,
) -> dict[str, float]:
    """Scores in percent, equal to those of the rule's official script to the last digit.

    1.1: ``exact_match`` and ``f1``. 2.0: ``exact``, ``f1`` and ``total``, also for the parts
    ``HasAns_`` and ``NoAns_`` if they have questions. A missing prediction scores 0 (the official
    2.0 script stops with a KeyError). ``na_probs``, a number for every question, makes 2.0 the
    default rule: a question above 1.0 counts as answered "", and ``best_exact``, ``best_f1`` and
    their ``_thresh`` are the best over all thresholds. Otherwise as :func:`question_scores`.
    """
    rule = rule or ("2.0" if na_probs is not None else dataset.version)
    em, overlap = question_scores(dataset, predictions, rule, characters)
    if rule == "1.1":
        return {"exact_match": _percent(em), "f1": _percent(overlap)}
    scores, best = {"exact": em, "f1": overlap}, {}
    answerable = np.array([example.answerable for example in dataset])
    if na_probs is not None:
        empty = np.array([na_probs[example.id] > 1.0 for example in dataset])
        for name, raw in scores.items():
            found = _best_threshold(dataset, predictions, na_probs, raw)
            best[f"best_{name}"], best[f"best_{name}_thresh"] = found
            scores[name] = np.where(empty, ~answerable, raw)
    result = {}
    everything = np.ones_like(answerable)
    for prefix, part in (("", everything), ("HasAns_", answerable), ("NoAns_", ~answerable)):
        if part.any():
            result |= {prefix + name: _percent(values[part]) for name, values in scores.items()}
            result[f"{prefix}total"] = int(part.sum())
    return result | best


def _best_threshold(
    dataset: Dataset, predictions: Mapping, na_probs: Mapping[str, float], scores: np.ndarray
) -> tuple[float, float]:
    """(best mean score in percent, its threshold), if only answers up to the threshold are given.

    As in the official script: questions are added by ascending value, ties in the order of
    ``na_probs``; an answer to an unanswerable question costs 1; the first best threshold counts.
    """
    gains = {
        e.id: score if e.answerable else -float(predictions.get(e.id) != "")
        for e, score in zip(dataset, scores, strict=True)
    }
    order = sorted((key for key in na_probs if key in gains), key=na_probs.__getitem__)
    unanswerable = sum(not e.answerable for e in dataset)
    total = np.cumsum([unanswerable, *(gains[key] for key in order)])
    best = int(total.argmax())
    return 100.0 * float(total[best]) / len(dataset), na_probs[order[best - 1]] if best else 0.0


def correct_ranks(dataset: Dataset, ranked: Mapping[str, Sequence[str]], n: int = 5) -> np.ndarray:
    """Rank of each question's first answer with EM 1: 1 to n, or 0.  -> (questions,) int64"""
    _check_ids(dataset, ranked)
    rule, words, ranks = dataset.version, _Words(), []
    for example in dataset:
        golds = _gold_words(example.answer_texts, rule, words)
        correct = [words[text] in golds for text in ranked.get(example.id, ())[:n]]
        ranks.append(correct.index(True) + 1 if any(correct) else 0)
    return np.array(ranks, dtype=np.int64)


VERSION = "-high-conf"  # start of the id suffix of adversarial versions in AddSent and AddOneSent


def adversarial_scores(
    dataset: Dataset, em: np.ndarray, overlap: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """EM and F1 of the original questions of AddSent or AddOneSent, from those of all versions.

    As in the published script, a question gets the F1 and EM of its adversarial version with the
    lowest F1, even if the original scores lower. The original counts only where there is no
    version, so other data sets keep their scores. Source: Jia and Liang 2017, ``eval_squad.py``.
    """
    rows: dict[str, list[int]] = {}
    for row, example in enumerate(dataset):
        rows.setdefault(example.id.split(VERSION)[0], []).append(row)
    chosen = []
    for id, several in rows.items():
        versions = [row for row in several if dataset.examples[row].id != id]
        chosen.append(min(versions or several, key=lambda row: overlap[row]))
    return em[chosen], overlap[chosen]


class ConfidenceInterval(NamedTuple):
    """A statistic and the bounds of its 95 % percentile interval."""

    value: float
    low: float
    high: float


def bootstrap_ci(
    statistic: Callable[..., float], *arrays: np.ndarray, samples: int = 2000, seed: int = 0
) -> ConfidenceInterval:
    """Percentile bootstrap of any statistic over questions (Efron and Tibshirani 1993).

    ``arrays`` share their last axis, the questions, resampled jointly; to compare two readers, use
    the mean of their differences. Non-finite resamples are left out; all is NaN if the statistic or
    every resample is not finite. Raises QalibError if the last axes are empty or of unequal length.
    """
    arrays = tuple(np.asarray(array) for array in arrays)
    counts = {array.shape[-1] if array.ndim else 0 for array in arrays}
    if len(counts) != 1 or 0 in counts:
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise QalibError(f"arrays of shapes {shapes} cannot be resampled together.")
    (count,) = counts
    rng = np.random.default_rng(seed)
    value, draws = float(statistic(*arrays)), np.empty(samples)
    for i in range(samples):
        drawn = rng.integers(count, size=count)
        draws[i] = statistic(*(array[..., drawn] for array in arrays))
    finite = draws[np.isfinite(draws)]
    if not np.isfinite(value) or not len(finite):
        return ConfidenceInterval(np.nan, np.nan, np.nan)
    low, high = np.quantile(finite, [0.025, 0.975]).tolist()
    return ConfidenceInterval(value, low, high)


def load_predictions(path: str | Path) -> dict[str, str]:
    """Read a predictions file: one JSON object, question id to answer text ("" for no answer).

    A list of {id, prediction_text} is read as well. null becomes "" and an integer its digits;
    other values are left out; one DataWarning counts all three. Raises QalibError for any other
    form, or if there are values but no text.
    """
    tree = parse_json(read_bytes(Path(path)), path)
    if isinstance(tree, list) and all(isinstance(row, dict) and "id" in row for row in tree):
        rows, tree = tree, {str(row["id"]): row.get("prediction_text", row) for row in tree}
        if len(tree) < len(rows):
            raise QalibError(f"{path}: an id appears twice; ids must be unique.")
    if not isinstance(tree, dict):
        raise QalibError(f"{path}: expected one JSON object, question id to answer text.")
    texts = {key: text for key, text in tree.items() if isinstance(text, str)}
    if odd := {key: value for key, value in tree.items() if key not in texts}:
        key, value = next(iter(odd.items()))
        first = f"question {key!r}: expected an answer text, found {reprlib.repr(value)}"
        if not texts:
            raise QalibError(f"{path}: {first}.")
        texts |= {key: str(value) for key, value in odd.items() if type(value) is int}
        texts |= {key: "" for key, value in odd.items() if value is None}
        lost = len(tree) - len(texts)
        text = f"values that are no texts: {len(odd)}, left out: {lost}; the first: {first}"
        warnings.warn(f"{path}: {text}.", DataWarning, stacklevel=3)
    return texts


def load_na_probs(path: str | Path, dataset: Dataset) -> dict[str, float]:
    """Read no-answer scores. Raises QalibError if a question has none or one is not finite."""
    tree = parse_json(read_bytes(Path(path)), path)
    if not isinstance(tree, dict):
        raise QalibError(f"{path}: expected one JSON object, question id to number.")
    for key in (*tree, *(example.id for example in dataset)):
        value = tree.get(key)
        if type(value) not in (int, float) or not abs(value) < 1e308:
            found = reprlib.repr(value)
            raise QalibError(f"{path}: question {key!r}: expected a number, found {found}.")
    return tree


def score_files(
    dataset: str | Path,
    predictions: str | Path,
    na_prob_file: str | Path | None = None,
    characters: bool = False,
) -> dict[str, float]:
    """:func:`score` of a predictions file against a data file or a named data source.

    Raises QalibError for a file that is missing, malformed or for another dataset.
    """
    data, texts = load_data(dataset, "score"), load_predictions(predictions)
    na_probs = load_na_probs(na_prob_file, data) if na_prob_file else None
    golds = [text for example in data for text in example.answer_texts]
    if not characters and 2 * sum(bool(_CJK.search(text)) for text in golds) > len(golds):
        text = (
            f"{data.path}: most answers are Chinese, Japanese or Korean, and F1 counts words "
            "between spaces; --characters (characters=True) counts characters."
        )
        warnings.warn(text, DataWarning, stacklevel=2)
    try:
        return score(data, texts, na_probs, characters)
    except QalibError as error:
        raise QalibError(f"{predictions}: {error}") from None
