"""Questions whose answers are free text, and the spans that stand for these in training.

FairytaleQA (Xu et al. 2022)    JSON lines with id, context, question and answers, a list of texts
NarrativeQA (Kocisky et al. 2018, read by summaries)
                                ``qaps.csv`` and ``third_party/wikipedia/summaries.csv``
"""

import csv
import hashlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from qalib.data.formats import read_bytes
from qalib.data.schema import Answer, Dataset, Example, make_dataset
from qalib.errors import QalibError

WORD = re.compile(r"[a-z0-9]+", re.ASCII | re.IGNORECASE)  # as rouge-score counts words


def load_free_form(path: Path, name: str) -> Dataset:
    """The questions of a FairytaleQA file; an id that occurs again gets its line's number.

    Raises QalibError, naming the line, for a row without these fields.
    """
    raw, rows = read_bytes(path), {}
    for number, line in enumerate(raw.decode("utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            texts = tuple(text for text in row["answers"] if text.strip())
            id = row["id"] if row["id"] not in rows else f"{row['id']}-{number}"
            rows[id] = Example(id, row["question"], row["context"], references=texts)
        except (ValueError, KeyError, TypeError, AttributeError):
            fields = "id, context, question and answers, a list of texts"
            raise QalibError(
                f"{path}, line {number}: expected a JSON object with {fields}."
            ) from None
    return make_dataset(name, rows.values(), str(path), hashlib.sha256(raw).hexdigest())


def load_narrativeqa(folder: Path, split: str) -> Dataset:
    """The questions of one split ("train", "valid" or "test") about summaries.

    Raises QalibError if a file is missing, and for an unknown split.
    """
    tables = []
    for file in ("third_party/wikipedia/summaries.csv", "qaps.csv"):
        text = read_bytes(folder / file).decode("utf-8")
        tables.append([row for row in csv.DictReader(io.StringIO(text)) if row["set"] == split])
    if not tables[1]:
        raise QalibError(f"{folder / file}: no question of the set {split!r}; take train or test.")
    summaries = {row["document_id"]: row["summary"] for row in tables[0]}
    examples = []
    for number, row in enumerate(tables[1]):
        texts = (row["answer1"], row["answer2"])
        id, document = f"narrativeqa-{split}-{number}", row["document_id"]
        examples.append(Example(id, row["question"], summaries[document], (), document, texts))
    return make_dataset(f"narrativeqa-{split}", examples, str(folder))


def with_spans(dataset: Dataset, longest: int = 20) -> Dataset:
    """The questions with the span of best Rouge-L as their answer, for training.

    Questions no word of whose answers stands in the passage are left out.
    """
    examples = []
    for example in dataset:
        answer = best_span(example.context, example.answer_texts, longest)
        if answer is not None:
            answers = {"answers": (answer,), "references": tuple(example.answer_texts)}
            examples.append(replace(example, **answers))
    return make_dataset(f"{dataset.name}-spans", examples, dataset.path, dataset.raw_sha256)


def best_span(context: str, references: Sequence[str], longest: int = 20) -> Answer | None:
    """The span of at most ``longest`` words with the best Rouge-L; None if no word is shared.

        R = 2 LCS / (words of the span + words of the reference)

    The best over the references counts. Ties go to the shortest span, then to the first.
    """
    words = [match.span() for match in WORD.finditer(context)]
    spelt = np.array([context[a:b].lower() for a, b in words])
    best, found = 0.0, None
    for reference in references:
        expected = WORD.findall(reference.lower())
        same = np.stack([spelt == word for word in expected]) if expected else np.zeros((0, 0))
        # lcs[j, s]: of the words from s up to the current one, and the first j of the reference
        lcs = np.zeros((len(expected) + 1, len(words)), dtype=np.int64)
        for length in range(1, min(longest, len(words)) + 1 if expected else 0):
            starts = len(words) - length + 1
            diagonal = lcs[0, :starts]
            for j in range(1, len(expected) + 1):
                above = lcs[j, :starts].copy()
                grown = diagonal + same[j - 1, length - 1 : length - 1 + starts]
                lcs[j, :starts] = np.maximum(np.maximum(above, lcs[j - 1, :starts]), grown)
                diagonal = above
            score = 2 * lcs[-1, :starts] / (length + len(expected))
            start = int(score.argmax())
            if score[start] > best:
                best, found = float(score[start]), (start, start + length - 1)
    if found is None:
        return None
    begin, end = words[found[0]][0], words[found[1]][1]
    return Answer(context[begin:end], begin)
