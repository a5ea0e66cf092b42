"""The example schema of the kit and the SQuAD v1.1 and v2.0 files that fill it.

Every reader sees the same thing: a question, a passage (the *context*) and gold answers that are
character spans of it, ``context[start : start + len(text)] == text``. Offsets count Unicode code
points, as Python strings do, and the text is never normalised: what is read is what was written.

Format: Rajpurkar et al. 2016 (v1.1), Rajpurkar et al. 2018 (v2.0).
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qalib.errors import QalibError


@dataclass(frozen=True, slots=True)
class Answer:
    """A gold answer: ``context[start : start + len(text)] == text`` (code points)."""

    text: str
    start: int

    @property
    def end(self) -> int:
        """First code point behind the answer."""
        return self.start + len(self.text)


@dataclass(frozen=True, slots=True)
class Example:
    """One question about one passage. No answers means that the passage does not answer it."""

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...] = ()
    title: str = ""

    @property
    def answerable(self) -> bool:
        return bool(self.answers)

    @property
    def answer_texts(self) -> list[str]:
        return [answer.text for answer in self.answers]


@dataclass(frozen=True)
class Dataset:
    """Examples and where they came from.

    ``raw_sha256`` is the hash of the file's bytes; ``content_sha256`` that of the questions,
    passages and answers themselves, so that two files with the same content but another layout
    can be told to agree.
    """

    name: str
    examples: tuple[Example, ...]
    path: str
    raw_sha256: str
    content_sha256: str
    version: str = "1.1"  # "2.0": questions may have no answer, and are scored by that rule

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self):
        return iter(self.examples)

    def provenance(self) -> dict[str, str | int]:
        """What a run records about the data it used."""
        return {
            "name": self.name,
            "file": Path(self.path).name,
            "questions": len(self.examples),
            "raw_sha256": self.raw_sha256,
            "content_sha256": self.content_sha256,
        }


def make_dataset(
    name: str,
    examples: Iterable[Example],
    path: str = "",
    raw_sha256: str = "",
    version: str = "",
) -> Dataset:
    """Bundle examples under a name; ids must be unique. Raises QalibError if they are not.

    Without a ``version`` it is "2.0" if some question has no answer, else "1.1".
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
    """Several datasets as one, in the given order, their raw hashes joined by "+".

    Raises QalibError if they share an id.
    """
    datasets = list(datasets)
    raw_sha256 = "+".join(dataset.raw_sha256 for dataset in datasets)
    examples = (example for dataset in datasets for example in dataset.examples)
    return make_dataset(name, examples, raw_sha256=raw_sha256)


def hold_out(dataset: Dataset, share: float) -> tuple[Dataset, Dataset]:
    """Split off about ``share`` of the passages, with all their questions: (rest, held out).

    A passage falls on one side by the hash of its text alone, so it stays there in any mixture
    of datasets and in every run.
    """
    limit = int(share * 2**32)
    apart = {
        context
        for context in {e.context for e in dataset.examples}
        if int.from_bytes(hashlib.sha256(_bytes(context)).digest()[:4]) < limit
    }
    kept = [e for e in dataset.examples if e.context not in apart]
    held = [e for e in dataset.examples if e.context in apart]
    return (
        make_dataset(f"{dataset.name}-rest", kept, dataset.path),
        make_dataset(f"{dataset.name}-held-out", held, dataset.path),
    )


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def content_hash(examples: Iterable[Example]) -> str:
    """SHA-256 over (id, context, question, sorted answer texts), in order of ids.

    Offsets are left out on purpose: published copies of SQuAD differ in which occurrence of an
    answer they point to, and neither EM nor F1 can see it.
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


def read_bytes(path: Path) -> bytes:
    """The bytes of a file that a user named. Raises QalibError if it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise QalibError(f"{path}: no such file; check the spelling of the path.") from None
    except OSError as error:
        raise QalibError(
            f"{path}: cannot be read ({error.strerror or error}); name a readable file."
        ) from None


def parse_json(raw: bytes, path: Path | str) -> object:
    """JSON from bytes. Raises QalibError that names the line where the text stops making sense."""
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise QalibError(
            f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8 JSON."
        ) from None
    except json.JSONDecodeError as error:
        raise QalibError(
            f"{path}: line {error.lineno}, column {error.colno}: not valid JSON ({error.msg}); "
            "the file may be cut short: fetch or export it again."
        ) from None
    except ValueError as error:  # a number with thousands of digits
        raise QalibError(f"{path}: not a dataset ({error}).") from None
    except RecursionError:
        raise QalibError(f"{path}: JSON nested too deeply to be a dataset.") from None


def load_squad(path: str | Path, name: str = "") -> Dataset:
    """Load a SQuAD v1.1 or v2.0 JSON file and check every example.

    Raises QalibError naming file, article, paragraph and question id for malformed JSON, a wrong
    schema, an empty context or question, an answer that is not where it is said to be, or an id
    that appears twice.
    """
    path = Path(path)
    raw = read_bytes(path)
    tree = parse_json(raw, path)
    if not isinstance(tree, dict) or not isinstance(tree.get("data"), list):
        raise QalibError(f"{path}: not a SQuAD file; it has no list under the key 'data'.")
    examples = [
        example
        for a, article in enumerate(tree["data"])
        for example in _read_article(article, f"{path}: article {a}")
    ]
    sha256 = hashlib.sha256(raw).hexdigest()
    version = "2.0" if "2." in str(tree.get("version", "")) else ""
    return make_dataset(
        name or path.name.removesuffix(".json"), examples, str(path), sha256, version
    )


def _read_article(article: object, place: str) -> list[Example]:
    title = article.get("title", "") if isinstance(article, dict) else ""
    title = title if isinstance(title, str) else ""
    if title:
        place += f" ({title})"
    examples = []
    for p, paragraph in enumerate(_field(article, "paragraphs", list, place)):
        here = f"{place}, paragraph {p}"
        context = _field(paragraph, "context", str, here)
        for q, question in enumerate(_field(paragraph, "qas", list, here)):
            examples.append(_read_question(question, context, title, f"{here}, question {q}"))
    return examples


def _read_question(entry: object, context: str, title: str, place: str) -> Example:
    identity = _field(entry, "id", str, place)
    place += f" (id {identity!r})"
    if not identity:
        raise QalibError(f"{place}: the id is empty; give every question an id of its own.")
    answers = _field(entry, "answers", list, place)
    impossible = entry.get("is_impossible", False)
    if not isinstance(impossible, bool) or (impossible and answers):
        raise QalibError(
            f"{place}: is_impossible is {impossible!r} and {len(answers)} answers are given; "
            "it must be true without answers or false with some."
        )
    if not answers and not impossible:
        raise QalibError(
            f'{place}: no answer is given; add one, or set "is_impossible": true (SQuAD 2.0).'
        )
    gold = tuple(
        Answer(_field(answer, "text", str, place), _field(answer, "answer_start", int, place))
        for answer in answers
    )
    example = Example(identity, _field(entry, "question", str, place), context, gold, title)
    check_example(example, place)
    return example


def _field(entry: object, key: str, kind: type, place: str):
    """``entry[key]`` if it has the right type. Raises QalibError that says what is wrong where."""
    if not isinstance(entry, dict):
        raise QalibError(f"{place}: expected a JSON object, found {type(entry).__name__}.")
    if key not in entry:
        raise QalibError(f"{place}: the key {key!r} is missing; it must hold a {kind.__name__}.")
    value = entry[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise QalibError(
            f"{place}: {key!r} must be a {kind.__name__}, found {type(value).__name__}."
        )
    return value


def check_example(example: Example, place: str) -> None:
    """Raise QalibError, naming ``place``, if an example contradicts itself."""
    if not example.context.strip():
        raise QalibError(f"{place}: the context is empty; remove the paragraph or give its text.")
    if not example.question.strip():
        raise QalibError(f"{place}: the question is empty; remove it or give its text.")
    for answer in example.answers:
        if not answer.text:
            raise QalibError(f"{place}: an answer is the empty string; remove it.")
        found = example.context[max(0, answer.start) : max(0, answer.end)]
        if answer.start < 0 or found != answer.text:
            raise QalibError(f"{place}: {_misplaced(example.context, answer, found)}")


def _misplaced(context: str, answer: Answer, found: str) -> str:
    where = context.find(answer.text)
    if where < 0:
        return f"the answer {answer.text!r} does not occur in its context."
    return (
        f"answer_start {answer.start} points at {found!r}, not at the answer {answer.text!r}, "
        f"which first occurs at {where}."
    )


def write_squad(examples: Sequence[Example], path: str | Path, version: str = "1.1") -> None:
    """Write examples as a SQuAD JSON file, one article a title, one paragraph a passage."""
    articles: dict[str, dict[str, list]] = {}
    for e in examples:
        entry = {
            "id": e.id,
            "question": e.question,
            "answers": [{"text": a.text, "answer_start": a.start} for a in e.answers],
        }
        if version != "1.1" or not e.answerable:
            entry["is_impossible"] = not e.answerable
        articles.setdefault(e.title, {}).setdefault(e.context, []).append(entry)
    data = [
        {"title": title, "paragraphs": [{"context": c, "qas": q} for c, q in passages.items()]}
        for title, passages in articles.items()
    ]
    Path(path).write_text(json.dumps({"version": version, "data": data}), encoding="utf-8")
