"""The example schema: a question, a passage (the *context*) and gold answer spans.

Gold answers are character spans of the context, ``context[start : start + len(text)] == text``.
Offsets count Unicode code points, as Python strings do. Texts are never normalised.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from qalib.errors import QalibError

SAMPLE = 256  # number of passage digests stored with a model


@dataclass(frozen=True, slots=True)
class Answer:
    """A gold answer: ``context[start : start + len(text)] == text`` (code points)."""

    text: str
    start: int

    @property
    def end(self) -> int:
        """The offset after the answer's last code point."""
        return self.start + len(self.text)


@dataclass(frozen=True, slots=True)
class Example:
    """One question about one passage; unanswerable if it has neither answers nor references.

    ``references`` are texts that need not be spans of the passage. If there are any, predictions
    are scored against them, and ``answers`` are only for training.
    """

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...] = ()
    title: str = ""
    references: tuple[str, ...] = ()

    @property
    def answerable(self) -> bool:
        return bool(self.answers or self.references)

    @property
    def answer_texts(self) -> list[str]:
        """The texts that a prediction is scored against."""
        return list(self.references) or [answer.text for answer in self.answers]

    def within(self, before: str, after: str) -> "Example":
        """The same question about a longer passage, with these texts around the old one."""
        answers = tuple(Answer(answer.text, answer.start + len(before)) for answer in self.answers)
        return replace(self, context=before + self.context + after, answers=answers)


@dataclass(frozen=True, repr=False)
class Dataset:
    """Examples and their origin, with the SHA-256 of the file and the :func:`content_hash`."""

    name: str
    examples: tuple[Example, ...]
    path: str
    raw_sha256: str
    content_sha256: str
    version: str = "1.1"  # "2.0": questions may be unanswerable; also the scoring rule

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self):
        return iter(self.examples)

    def __repr__(self) -> str:
        return f"<Dataset {self.name}: {len(self):,} questions>"

    def provenance(self) -> dict[str, str | int]:
        """The description of the data that a run records."""
        return {
            "name": self.name,
            "file": Path(self.path).name,
            "questions": len(self.examples),
            "raw_sha256": self.raw_sha256,
            "content_sha256": self.content_sha256,
        }


def make_dataset(
    name: str, examples: Iterable[Example], path: str = "", raw_sha256: str = "", version: str = ""
) -> Dataset:
    """Bundle examples under a name. Raises QalibError if an id occurs twice.

    The default ``version`` is "2.0" if some question has no answer, else "1.1".
    """
    examples = tuple(examples)
    version = version or ("1.1" if all(e.answerable for e in examples) else "2.0")
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise QalibError(
                f"{path or name}: question id {example.id!r} appears twice; ids must be unique."
            )
        seen.add(example.id)
    return Dataset(name, examples, path, raw_sha256, content_hash(examples), version)


def merge(name: str, datasets: Iterable[Dataset]) -> Dataset:
    """Concatenate datasets, joining their raw hashes by "+". Raises QalibError for a shared id."""
    datasets = list(datasets)
    raw_sha256 = "+".join(dataset.raw_sha256 for dataset in datasets)
    examples = (example for dataset in datasets for example in dataset.examples)
    version = max((dataset.version for dataset in datasets), default="")
    return make_dataset(name, examples, raw_sha256=raw_sha256, version=version)


def hold_out(dataset: Dataset, fraction: float) -> tuple[Dataset, Dataset]:
    """Split off about ``fraction`` of the passages with all their questions: (rest, held out).

    Only the hash of a passage's text decides its part, which is therefore the same in every
    mixture of datasets and in every run.
    """
    parts: dict[bool, list[Example]] = {False: [], True: []}
    for example in dataset:
        digest = hashlib.sha256(example.context.encode("utf-8", "surrogatepass")).digest()
        parts[int.from_bytes(digest[:4]) < int(fraction * 2**32)].append(example)
    names = {False: f"{dataset.name}-rest", True: f"{dataset.name}-held-out"}
    rest, held = (
        make_dataset(name, parts[part], dataset.path, version=dataset.version)
        for part, name in names.items()
    )
    return rest, held


def passage_digests(examples: Iterable[Example], count: int | None = None) -> list[str]:
    """The ``count`` smallest digests of the passages: a random but reproducible sample."""
    texts = {example.context for example in examples}
    digests = (hashlib.sha256(text.encode("utf-8", "surrogatepass")) for text in texts)
    return sorted(digest.hexdigest()[:16] for digest in digests)[:count]


def content_hash(examples: Iterable[Example]) -> str:
    """SHA-256 over (id, context, question, sorted answer texts), in order of ids.

    Offsets are left out: published copies of SQuAD differ in them, and EM and F1 do not use them.
    """
    digest = hashlib.sha256()
    for e in sorted(examples, key=lambda e: e.id):
        row = [e.id, e.context, e.question, sorted(e.answer_texts)]
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_example(example: Example, place: str) -> None:
    """Raise QalibError, naming ``place``, for an empty text or an answer not at its offset."""
    if not example.context.strip():
        raise QalibError(f"{place}: the context is empty; remove the paragraph or give its text.")
    if not example.question.strip():
        raise QalibError(f"{place}: the question is empty; remove it or give its text.")
    for answer in example.answers:
        if reason := misplaced(answer, example.context):
            raise QalibError(f"{place}: {reason}.")


def misplaced(answer: Answer, context: str) -> str:
    """Why an answer is not at its offset in the context; "" if it is there."""
    if not answer.text:
        return "an answer is the empty string; remove it"
    found = context[max(0, answer.start) : max(0, answer.end)]
    if answer.start >= 0 and found == answer.text:
        return ""
    first = context.find(answer.text)
    if first < 0:
        return f"the answer {answer.text!r} does not occur in its context"
    return (
        f"answer_start {answer.start} points at {found!r}, not at the answer {answer.text!r}, "
        f"which first occurs at {first}"
    )
