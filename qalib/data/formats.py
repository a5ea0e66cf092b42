"""Readers of the file formats in which extractive question answering is published.

* SQuAD v1.1 and v2.0 JSON (Rajpurkar et al. 2016, 2018);
* MRQA (Fisch et al. 2019): a header line, then a passage a line, ``.jsonl`` or ``.jsonl.gz``.
  The markers ``[TLE]``, ``[PAR]`` and ``[DOC]`` of its passages are part of the text;
* rows of a Hugging Face ``datasets`` table with the columns of SQuAD.

Each gives the schema of :mod:`qalib.data.schema`, with the text as written and everything checked.
"""

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from qalib.data.schema import (
    Answer,
    Dataset,
    Example,
    FreeAnswerExample,
    check_example,
    file_sha256,
    make_dataset,
)
from qalib.errors import QalibError


def load_any(path: str | Path, name: str = "") -> Dataset:
    """Load a file in whichever format it is.

    The first bytes decide (compressed lines, an MRQA header), then the suffix ``.jsonl``;
    everything else is read as SQuAD JSON. Raises QalibError as the reader does.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError:
        return load_squad(path, name)  # which reports a file that cannot be read
    compressed = head.startswith(b"\x1f\x8b") or path.suffix == ".gz"
    if compressed or path.suffix == ".jsonl" or re.match(rb'\s*\{\s*"header"', head):
        return load_mrqa(path, name)
    return load_squad(path, name)


def read_bytes(path: Path) -> bytes:
    """The bytes of a file that a user named. Raises QalibError if it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise QalibError(f"{path}: no such file; check the spelling of the path.") from None
    except OSError as error:
        raise _unreadable(path, error) from None


def parse_json(raw: bytes, path: Path | str) -> object:
    """JSON from bytes. Raises QalibError with the line and column of a syntax error."""
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise QalibError(
            f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8 JSON."
        ) from None
    except json.JSONDecodeError as error:
        raise _not_json(path, error.lineno, error) from None
    except ValueError as error:  # a number with thousands of digits
        raise QalibError(f"{path}: not a dataset ({error}).") from None
    except RecursionError:
        raise QalibError(f"{path}: JSON nested too deeply to be a dataset.") from None


def _unreadable(path: Path, error: OSError) -> QalibError:
    return QalibError(f"{path}: cannot be read ({error.strerror or error}); name a readable file.")


def _not_json(path: Path | str, line: int, error: json.JSONDecodeError) -> QalibError:
    return QalibError(
        f"{path}: line {line}, column {error.colno}: not valid JSON ({error.msg}); "
        "the file may be cut short: fetch or export it again."
    )


def _field(entry: object, key: str, kind: type, place: str):
    """``entry[key]`` of type ``kind``. Raises QalibError naming the place if it is not that."""
    if not isinstance(entry, dict):
        raise QalibError(f"{place}: expected a JSON object, found {type(entry).__name__}.")
    if key not in entry:
        raise QalibError(f"{place}: the key {key!r} (of type {kind.__name__}) is missing.")
    value = entry[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        found = type(value).__name__
        raise QalibError(f"{place}: {key!r} must be of type {kind.__name__}, found {found}.")
    return value


# --------------------------------------------------------------------------------------- SQuAD


def load_squad(path: str | Path, name: str = "") -> Dataset:
    """Load a SQuAD v1.1 or v2.0 JSON file and check every example.

    Raises QalibError naming file, article, paragraph and question id for malformed JSON, a wrong
    schema, an empty context or question, an answer that is not at its offset, or an id that
    occurs twice.
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


def write_squad(examples: Sequence[Example], path: str | Path, version: str = "1.1") -> None:
    """Write examples as SQuAD JSON: an article for each title, a paragraph for each passage."""
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


# ---------------------------------------------------------------------------------------- MRQA


def load_mrqa(path: str | Path, name: str = "") -> Dataset:
    """Load an MRQA file, plain or gzip-compressed; the header line may be missing.

    Every span of every detected answer becomes an answer with the passage's own text, each once
    (spans include both ends). The texts under "answers" become the references, which the official
    script scores against.

    Raises QalibError naming file, line and question id for a file that is cut short, a line that
    is not JSON, a wrong schema, a span outside its passage, a question without an answer, an
    empty passage or question, or an id that occurs twice.
    """
    path = Path(path)
    examples: list[Example] = []
    for number, entry in _json_lines(path):
        if number == 1 and isinstance(entry, dict) and "header" in entry:
            continue
        examples += _read_passage(entry, f"{path}: line {number}")
    if not examples:
        raise QalibError(f"{path}: no question in it; fetch or export the file again.")
    name = name or path.name.removesuffix(".gz").removesuffix(".jsonl")
    return make_dataset(name, examples, str(path), file_sha256(path))


def _json_lines(path: Path) -> Iterator[tuple[int, object]]:
    """(line number from 1, value) of each line that is not blank."""
    number = 0
    try:
        with path.open("rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            for line in gzip.GzipFile(fileobj=raw) if compressed else raw:
                number += 1
                if line.strip():
                    yield number, json.loads(line.decode("utf-8-sig"))
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise QalibError(
            f"{path}: the compressed data is damaged or cut short after line {number}; "
            "fetch the file again."
        ) from None
    except UnicodeDecodeError:
        raise QalibError(f"{path}: line {number} is not UTF-8; save it as UTF-8 JSON.") from None
    except json.JSONDecodeError as error:
        raise _not_json(path, number, error) from None
    except (ValueError, RecursionError):  # a number or a nesting beyond all reason
        raise QalibError(f"{path}: line {number} is not a passage with questions.") from None
    except OSError as error:
        raise _unreadable(path, error) from None


def _read_passage(entry: object, place: str) -> list[Example]:
    context = _field(entry, "context", str, place)
    examples = []
    for q, item in enumerate(_field(entry, "qas", list, place)):
        here = f"{place}, question {q}"
        identity = _field(item, "qid", str, here)
        here += f" (id {identity})"
        spans = [
            span
            for answer in _field(item, "detected_answers", list, here)
            for span in _field(answer, "char_spans", list, here)
        ]
        answers = tuple(dict.fromkeys(_read_span(span, context, here) for span in spans))
        if not answers:
            raise QalibError(f"{here}: no answer span is given; MRQA questions have at least one.")
        accepted = item.get("answers") or [answer.text for answer in answers]
        if not isinstance(accepted, list) or not all(isinstance(a, str) for a in accepted):
            raise QalibError(f"{here}: 'answers' must be a list of texts.")
        question = _field(item, "question", str, here)
        example = FreeAnswerExample(identity, question, context, answers, "", tuple(accepted))
        check_example(example, here)
        examples.append(example)
    return examples


def _read_span(span: object, context: str, place: str) -> Answer:
    """[first, last] to the answer there. Raises QalibError if the passage has no such place."""
    if not (
        isinstance(span, list) and len(span) == 2 and all(type(offset) is int for offset in span)
    ):
        raise QalibError(f"{place}: a span must be two whole numbers, found {span!r}.")
    first, last = span
    if not 0 <= first <= last < len(context):
        raise QalibError(
            f"{place}: the span [{first}, {last}] lies outside its context of {len(context)} "
            "characters (both ends count as inside)."
        )
    return Answer(context[first : last + 1], first)


# ----------------------------------------------------------------------- rows of a datasets table


def from_rows(rows: Iterable[Mapping], name: str) -> Dataset:
    """Examples from the rows of a ``datasets`` table with SQuAD's columns.

    A row has "id", "question", "context", "answers" (two lists, "text" and "answer_start") and
    perhaps "title". Without an answer the question has none (SQuAD 2.0). Raises QalibError naming
    the row as :func:`load_squad` does.
    """
    examples = []
    for r, row in enumerate(rows):
        place = f"{name}: row {r}"
        answers = _field(row, "answers", dict, place)
        texts, starts = (_field(answers, key, list, place) for key in ("text", "answer_start"))
        if len(texts) != len(starts):
            raise QalibError(f"{place}: {len(texts)} answer texts but {len(starts)} offsets.")
        pairs = [{"text": t, "answer_start": s} for t, s in zip(texts, starts, strict=True)]
        entry = row | {"answers": pairs, "is_impossible": not pairs}
        context = _field(row, "context", str, place)
        examples.append(_read_question(entry, context, row.get("title") or "", place))
    return make_dataset(name, examples)
