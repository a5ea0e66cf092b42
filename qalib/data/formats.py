"""Readers of the other forms that extractive question answering is published in.

Each ends in the schema of :mod:`qalib.data.squad`: text as it was written, everything checked.

* MRQA (Fisch et al. 2019): a header line, then a passage a line, ``.jsonl`` or ``.jsonl.gz``.
  Passages carry the markers ``[TLE]``, ``[PAR]`` and ``[DOC]``; they are part of the text.
* rows of a Hugging Face ``datasets`` table with the columns of SQuAD;
* NarrativeQA (Kočiský et al. 2018) over the stories' summaries: the archive of its repository.

MRQA and NarrativeQA accept answers that are no spans of the passage: see FreeAnswerExample.
"""

import csv
import gzip
import io
import json
import operator
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from qalib.data.squad import (
    Answer,
    Dataset,
    Example,
    _field,
    check_example,
    file_sha256,
    load_squad,
    make_dataset,
)
from qalib.errors import QalibError

SUMMARIES = "third_party/wikipedia/summaries.csv"
QUESTIONS = "qaps.csv"
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, csv.Error, UnicodeDecodeError, RuntimeError)


@dataclass(frozen=True, slots=True)
class FreeAnswerExample(Example):
    """A question whose accepted answers need not be spans of the passage.

    ``references`` is what a prediction is scored against. ``answers`` holds the spans that say
    the same, to learn from; it may be empty although the question has an answer.
    """

    references: tuple[str, ...] = ()

    @property
    def answerable(self) -> bool:
        return bool(self.references)

    @property
    def answer_texts(self) -> list[str]:
        return list(self.references)


def load_any(path: str | Path, name: str = "", part: str = "") -> Dataset:
    """Load a file in whichever of the forms it is; ``part`` picks a part of NarrativeQA.

    The first bytes decide (an archive, compressed lines, an MRQA header), then the ending
    ``.jsonl``; everything else is read as SQuAD JSON. Raises QalibError as the reader does.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError:
        return load_squad(path, name)  # it has the words for a file that cannot be read
    if head.startswith(b"PK") or path.suffix == ".zip":
        return load_narrativeqa(path, part or "valid", name)
    compressed = head.startswith(b"\x1f\x8b") or path.suffix == ".gz"
    if compressed or path.suffix == ".jsonl" or re.match(rb'\s*\{\s*"header"', head):
        return load_mrqa(path, name)
    return load_squad(path, name)


# ---------------------------------------------------------------------------------- MRQA lines


def load_mrqa(path: str | Path, name: str = "") -> Dataset:
    """Load an MRQA file, plain or gzip-compressed.

    Every span of every detected answer becomes an answer with the passage's own text, each once
    (both ends of a span count as inside). The texts under "answers" are what the official script
    scores against: the references. A file without a header line is read too.

    Raises QalibError naming file, line and question id for a file that is cut short, a line that
    is not JSON, a wrong schema, a span outside its passage, a question without an answer, an
    empty passage or question, or an id that appears twice.
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
        raise QalibError(
            f"{path}: line {number}, column {error.colno}: not valid JSON ({error.msg}); "
            "the file may be cut short: fetch or export it again."
        ) from None
    except (ValueError, RecursionError):  # a number or a nesting beyond all reason
        raise QalibError(f"{path}: line {number} is not a passage with questions.") from None
    except OSError as error:
        raise QalibError(
            f"{path}: cannot be read ({error.strerror or error}); name a readable file."
        ) from None


def _read_passage(entry: object, place: str) -> list[Example]:
    context = _field(entry, "context", str, place)
    examples = []
    for q, question in enumerate(_field(entry, "qas", list, place)):
        here = f"{place}, question {q}"
        identity = _field(question, "qid", str, here)
        here += f" (id {identity})"
        spans = [
            span
            for answer in _field(question, "detected_answers", list, here)
            for span in _field(answer, "char_spans", list, here)
        ]
        answers = tuple(dict.fromkeys(_read_span(span, context, here) for span in spans))
        if not answers:
            raise QalibError(f"{here}: no answer span is given; MRQA questions have at least one.")
        accepted = question.get("answers") or [answer.text for answer in answers]
        if not isinstance(accepted, list) or not all(isinstance(a, str) for a in accepted):
            raise QalibError(f"{here}: 'answers' must be a list of texts.")
        asked = _field(question, "question", str, here)
        example = FreeAnswerExample(identity, asked, context, answers, "", tuple(accepted))
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
    """Examples from rows of a ``datasets`` table, or any mappings with SQuAD's columns.

    A row has "id", "question", "context" and "answers", perhaps "title"; "answers" is a mapping
    of two lists, "text" and "answer_start", or a list of mappings with these keys. No answer
    means that the passage has none (SQuAD 2.0).

    Raises QalibError naming row and id as :func:`qalib.data.squad.load_squad` does.
    """
    return make_dataset(name, [_read_row(row, f"{name}: row {r}") for r, row in enumerate(rows)])


def _read_row(row: Mapping, place: str) -> Example:
    row = dict(row)
    identity = _field(row, "id", str, place)
    place += f" (id {identity})"
    title = row.get("title") or ""
    example = Example(
        identity,
        _field(row, "question", str, place),
        _field(row, "context", str, place),
        tuple(_row_answers(row.get("answers"), place)),
        title if isinstance(title, str) else "",
    )
    check_example(example, place)
    return example


def _row_answers(given: object, place: str) -> Iterator[Answer]:
    shape = "'answers' must hold as many 'text' as 'answer_start'"
    try:
        if isinstance(given, Mapping):
            pairs = list(zip(given["text"], given["answer_start"], strict=True))
        else:
            pairs = [(answer["text"], answer["answer_start"]) for answer in given]
        for text, start in pairs:
            if not isinstance(text, str):
                raise TypeError
            yield Answer(str(text), operator.index(start))  # NumPy's become Python's own
    except KeyError as error:
        raise QalibError(f"{place}: {shape}; {error} is missing.") from None
    except (TypeError, ValueError):
        raise QalibError(f"{place}: {shape}, texts and whole numbers.") from None


# ------------------------------------------------------------------ NarrativeQA with summaries


def load_narrativeqa(path: str | Path, part: str, name: str = "") -> Dataset:
    """Questions about stories, each with the story's summary as its passage.

    ``path`` is a zip of the NarrativeQA repository, ``part`` "train", "valid" or "test". The two
    answers that people wrote are the references; where one occurs in the summary, whatever its
    case, that is an answer span. Ids are the story's with the question's number in it.

    Raises QalibError naming file, table and line if the archive is damaged or a table or column
    is missing, and if there is no such part.
    """
    path = Path(path)
    summaries = {
        row["document_id"]: row["summary"]
        for _, row in _table(path, SUMMARIES, ("document_id", "summary"))
    }
    columns = ("document_id", "set", "question", "answer1", "answer2")
    seen: Counter[str] = Counter()
    examples = []
    for line, row in _table(path, QUESTIONS, columns):
        story = row["document_id"]
        seen[story] += 1
        if row["set"] != part:
            continue
        place = f"{path}: {QUESTIONS}, line {line}"
        if story not in summaries:
            raise QalibError(f"{place}: no summary of the story {story}; fetch the archive again.")
        texts = [row[key].strip() for key in ("answer1", "answer2")]
        references = tuple(dict.fromkeys(text for text in texts if text))
        if not references:
            raise QalibError(f"{place}: no answer is given; fetch the archive again.")
        context = summaries[story]
        spans = tuple(dict.fromkeys(a for text in references for a in occurrences(text, context)))
        identity = f"{story}-{seen[story]}"
        example = FreeAnswerExample(identity, row["question"], context, spans, story, references)
        check_example(example, place)
        examples.append(example)
    if not examples:
        raise QalibError(f"{path}: no part {part!r}; the parts are train, valid and test.")
    return make_dataset(name or f"narrativeqa-{part}", examples, str(path), file_sha256(path))


def occurrences(text: str, context: str) -> list[Answer]:
    """Every place of whole words where ``context`` says ``text``, whatever the case.

    A full stop at the end of ``text`` is not looked for: it is the writer's, not the passage's.
    """
    pattern = rf"(?<!\w){re.escape(text.strip().removesuffix('.').rstrip())}(?!\w)"
    found = re.finditer(pattern, context, re.IGNORECASE)
    return [Answer(match.group(), match.start()) for match in found if match.group()]


def _table(path: Path, table: str, columns: tuple[str, ...]) -> Iterator[tuple[int, dict]]:
    """(line, row) of a CSV table inside the archive, which must have these columns."""
    try:
        with zipfile.ZipFile(path) as archive:
            inside = [entry for entry in archive.namelist() if f"/{entry}".endswith(f"/{table}")]
            if not inside:
                raise QalibError(f"{path}: no {table} in it, so it is not NarrativeQA's archive.")
            with archive.open(inside[0]) as raw:
                rows = csv.DictReader(io.TextIOWrapper(raw, encoding="utf-8", newline=""))
                for row in rows:
                    if missing := [key for key in columns if not isinstance(row.get(key), str)]:
                        place = f"{path}: {table}, line {rows.line_num}"
                        raise QalibError(f"{place}: the column {missing[0]!r} is missing.")
                    yield rows.line_num, row
    except DAMAGE as error:
        raise QalibError(f"{path}: {table} is damaged ({error}); fetch the file again.") from None
    except OSError as error:
        raise QalibError(
            f"{path}: cannot be read ({error.strerror or error}); name a readable file."
        ) from None
