"""Data sets and scores in numbers: what notebooks tabulate and draw."""

import re
from collections.abc import Mapping

import numpy as np
import pandas as pd

from qalib.data.squad import Dataset
from qalib.metrics import question_scores

QUESTION_WORDS = ("what", "who", "when", "where", "which", "how many", "how", "why")
MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"


def question_word(question: str) -> str:
    """The first question word: what, who, when, where, which, how many, how, why or other."""
    found = re.search(
        r"\b(what|whom?|whose|when|where|which|how (many|much)|how|why)\b", question, re.I
    )
    if not found:
        return "other"
    word = found[1].lower().replace("how much", "how many")
    return "who" if word in ("whom", "whose") else word


def answer_type(text: str) -> str:
    """A coarse type by form alone: date, number, name, one word, phrase or clause."""
    words = text.split()
    if re.search(rf"\b({MONTHS})\b|\b1[0-9]{{3}}\b|\b20[0-9]{{2}}\b", text):
        return "date"
    if re.search(r"\d", text):
        return "number"
    if words and all(word[:1].isupper() for word in words if len(word) > 3):
        return "name" if any(word[:1].isupper() for word in words) else "phrase"
    return "one word" if len(words) == 1 else "phrase" if len(words) <= 5 else "clause"


def describe(dataset: Dataset) -> pd.DataFrame:
    """One row a question: lengths in characters, where the first answer stands (0 to 1), kinds."""
    rows = [
        {
            "data": dataset.name,
            "passage": len(e.context),
            "question": len(e.question),
            "answer": len(e.answers[0].text) if e.answers else 0,
            "position": e.answers[0].start / len(e.context) if e.answers else np.nan,
            "asks": question_word(e.question),
            "kind": answer_type(e.answers[0].text) if e.answers else "none",
            "golds": len(set(e.answer_texts)),
        }
        for e in dataset.examples
    ]
    return pd.DataFrame(rows)


def summary(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Questions, passages' and answers' median lengths and gold variants, one row a data set."""
    rows = [
        {
            "questions": len(t),
            "passage, characters": int(t["passage"].median()),
            "question": int(t["question"].median()),
            "answer": int(t["answer"].median()),
            "distinct gold answers": round(t["golds"].mean(), 2),
        }
        for t in tables.values()
    ]
    return pd.DataFrame(rows, index=list(tables))


def scored(dataset: Dataset, predictions: Mapping[str, Mapping[str, str]]) -> pd.DataFrame:
    """One row a question and reader: reader, asks, EM and F1 (0 to 100)."""
    asks = [question_word(e.question) for e in dataset.examples]
    parts = []
    for reader, answers in predictions.items():
        exact, f1 = question_scores(dataset, answers)
        parts.append(
            pd.DataFrame({"reader": reader, "asks": asks, "EM": 100 * exact, "F1": 100 * f1})
        )
    return pd.concat(parts, ignore_index=True)
