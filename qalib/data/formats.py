"""Loading of the file formats in which extractive question answering data are published.

The content decides the format, never the file's name; every format may be gzip-compressed:

* SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018);
* MRQA (Fisch et al. 2019), one passage per line, with or without its header line. The markers
  ``[TLE]``, ``[PAR]`` and ``[DOC]`` in its passages are part of the text;
* rows with id, question, context and answers, as the ``datasets`` library writes them: a JSON
  list, a list under "data", or JSON lines;
* lists of {context, qas}, in the same three layouts;
* HotpotQA with distractors (Yang et al. 2018): the ten paragraphs become one passage, each after
  its title. Questions whose answer is "yes", "no" or not in the passage count as bad rows.

Answers are a list of {text, answer_start} or a dictionary of two lists. Texts are not changed. To
score, a list of texts will do. :func:`load_narrativeqa` reads another such set, two tables.
"""

import csv
import gzip
import hashlib
import io
import json
import re
import reprlib
import warnings
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Literal

from qalib.data.schema import Answer, Dataset, Example, check_example, make_dataset, misplaced
from qalib.errors import DataWarning, QalibError

Purpose = Literal["train", "answer", "score"]

FORMS = (
    "the forms that are read are SQuAD 1.1 and 2.0, MRQA, rows with id, question, context and "
    "answers (a JSON list, a list under 'data', or JSON lines) and lists of {context, qas}, plain "
    "or gzip-compressed"
)


def load_file(
    path: str | Path, purpose: Purpose = "train", *, name: str = "", skip_bad: bool = False
) -> Dataset:
    """Load a data file of any of these formats. What a row must have depends on the purpose:

    * "train": id, question, context, and answers at their offsets, or ``is_impossible`` and none.
      Raises QalibError that counts the bad rows; ``skip_bad`` leaves them out with a DataWarning.
    * "answer": id, question and context. "score": id and the texts of the answers. Rows without
      them are left out, other faults are tolerated, and one DataWarning counts both.

    Integer ids, offsets written as ``"28"`` or ``28.0``, and empty answers of impossible questions
    are accepted for every purpose, with that warning. Raises QalibError for a file that is missing,
    damaged, cut short or of another format, and if no row can be used.
    """
    path = Path(path)
    raw = read_bytes(path)
    version, entries = _entries(_decode(raw, path, FORMS), path)
    reader = _Reader(purpose)
    for place, entry in entries:
        reader.add(entry, place)
    reader.report(path, skip_bad)
    examples, sha256 = reader.examples.values(), hashlib.sha256(raw).hexdigest()
    if purpose == "answer" and not any(example.answerable for example in examples):
        version = version or "1.1"  # a file without answers does not show its scoring rule
    name = name or re.sub(r"(\.jsonl?)?(\.gz)?$", "", path.name)
    return make_dataset(name, examples, str(path), sha256, version)


def load_narrativeqa(folder: Path, split: str) -> Dataset:
    """Questions about summaries (Kocisky et al. 2018), of the split "train", "valid" or "test".

    Raises QalibError if a file is missing, and for an unknown split.
    """
    tables = []
    for file in ("third_party/wikipedia/summaries.csv", "qaps.csv"):
        text = read_bytes(folder / file).decode("utf-8")
        tables.append([row for row in csv.DictReader(io.StringIO(text)) if row["set"] == split])
    if not tables[1]:
        raise QalibError(f"{folder / file}: no set {split!r}; take train, valid or test.")
    summaries = {row["document_id"]: row["summary"] for row in tables[0]}
    examples = []
    for number, row in enumerate(tables[1]):
        texts = (row["answer1"], row["answer2"])
        id, document = f"narrativeqa-{split}-{number}", row["document_id"]
        examples.append(Example(id, row["question"], summaries[document], (), document, texts))
    return make_dataset(f"narrativeqa-{split}", examples, str(folder))


# ------------------------------------------------------------------------------ bytes and JSON


def read_bytes(path: Path) -> bytes:
    """The bytes of a file that a user named. Raises QalibError if it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise QalibError(f"{path}: no such file; check the spelling of the path.") from None
    except OSError as error:
        reason = error.strerror or error
        raise QalibError(f"{path}: cannot be read ({reason}); name a readable file.") from None


def parse_json(raw: bytes, path: Path | str) -> object:
    """JSON from bytes, plain or gzip-compressed. Raises QalibError with the line of an error."""
    return _parse(_decode(raw, path), f"{path}: ")


def _decode(raw: bytes, path: Path | str, hint: str = "save the file as UTF-8 JSON") -> str:
    """The text of a file, plain or gzip-compressed, without a byte order mark."""
    try:
        return (gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw).decode("utf-8-sig")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        how = "cut short" if isinstance(error, EOFError) else "damaged"
        raise QalibError(f"{path}: the gzip data is {how}; fetch the file again.") from None
    except UnicodeDecodeError as error:
        raise QalibError(f"{path}: byte {error.start} is not UTF-8; {hint}.") from None


def _parse(text: str, prefix: str, line: int = 1) -> object:
    """The value of JSON text that begins on ``line``. Raises QalibError that names the place."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place, text = f"{prefix}line {error.lineno + line - 1}, column {error.colno}", text.strip()
        # Cut short: the error is at the end, or the text does not end with a closing bracket.
        cut = error.pos >= len(error.doc.rstrip()) or not text.endswith(("}", "]"))
        cut = cut and text.startswith(("{", "[")) and error.msg != "Extra data"
        end = "; the file is cut short: fetch or export it again" if cut else ""
        raise QalibError(f"{place}: not valid JSON ({error.msg}){end}.") from None
    except (ValueError, RecursionError) as error:  # a number too long or nesting too deep
        raise QalibError(f"{prefix}line {line}: not a dataset ({error}).") from None


# -------------------------------------------------------------------------- from forms to entries


def _entries(text: str, path: Path) -> tuple[str, Iterable[tuple[str, object]]]:
    """("2.0" or ""; (place, value) of each top-level entry; QalibError for a damaged line)."""
    if not text.lstrip().startswith(("{", "[")):
        kind = "not JSON" if text.strip() else "the file is empty"
        raise QalibError(f"{path}: {kind}; {FORMS}.")
    try:
        tree = _parse(text, f"{path}: ")
    except QalibError:
        # In JSON lines the first line, or the second if that is damaged, is an object by itself.
        objects = [value for _, value in islice(_lines(text), 2) if isinstance(value, dict)]
        if text.lstrip().startswith("[") or not objects:
            raise
        entries = list(_lines(text))
        last = entries[-1][1]
        if isinstance(last, QalibError) and "cut short" in str(last):
            raise QalibError(f"{path}: {last}") from None
        return "", entries
    version = ""
    if isinstance(tree, dict) and isinstance(tree.get("data"), list):
        version = "2.0" if _is_version_2(tree.get("version")) else ""
        tree = tree["data"]
    values = tree if isinstance(tree, list) else [tree]
    unit = "article" if any(isinstance(v, dict) and "paragraphs" in v for v in values) else "row"
    return version, ((f"{unit} {i}", value) for i, value in enumerate(values))


def _lines(text: str) -> Iterator[tuple[str, object]]:
    """(place, value) of each line that is neither blank nor MRQA's header."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                value = _parse(line, "", number)
            except QalibError as error:
                value = error
            if not (isinstance(value, dict) and "header" in value and "qas" not in value):
                yield f"line {number}", value


def _is_version_2(version: object) -> bool:
    """Whether a version is SQuAD's 2.0: "v2.0", 2, "2.0-dev", but not "1.2.0" or "2.3.2024"."""
    pattern = r"\s*(squad[-_ ]?)?v?2(\.\d){0,2}(?=[-_][a-z]|\s*$)"
    return re.match(pattern, str(version), re.IGNORECASE) is not None


# ----------------------------------------------------------------------- from entries to examples


class _Reader:
    """Collects the examples of one file, its bad rows, and the faults tolerated in other rows."""

    def __init__(self, purpose: Purpose):
        self.purpose = purpose
        self.examples: dict[str, Example] = {}
        self.bad: list[str] = []
        self.tolerated: list[str] = []
        self.place = ""  # of the current row

    def add(
        self, entry: object, place: str, levels: tuple[str, ...] = ("paragraphs", "qas")
    ) -> None:
        """Read an article, a passage or a row; anything that cannot be read counts as a bad row."""
        self.place = place
        try:
            if isinstance(entry, QalibError):
                raise entry
            if isinstance(entry, dict) and {"_id", "answer", "supporting_facts"} <= set(entry):
                entry = self._paragraphs(entry)
            if not isinstance(entry, dict):
                raise self._error(f"expected a JSON object, found {type(entry).__name__}")
            for depth, level in enumerate(levels, 1):
                if level in entry or levels == ("qas",):  # a paragraph must have questions
                    parts = self._field(entry, level, list)
                    if level == "paragraphs" and entry.get("title"):
                        place += f" ({reprlib.repr(entry['title'])})"
                    given = {key: entry[key] for key in ("title", "context") if key in entry}
                    unit = "question" if level == "qas" else "paragraph"
                    for i, part in enumerate(parts):
                        whole = given | part if isinstance(part, dict) else part
                        self.add(whole, f"{place}, {unit} {i}", levels[depth:])
                    return
            example = self._read(entry)
            self.examples[example.id] = example
        except QalibError as error:
            self.bad.append(str(error).removesuffix("."))

    def report(self, source: Path, skip_bad: bool) -> None:
        """Warn of faults and rows left out. Raises QalibError as :func:`load_file` says."""
        bad, few = len(self.bad), "; ".join(self.bad[:3])
        rows = bad + len(self.examples)
        if not self.examples:
            why = f"none of {rows} rows can be used to {self.purpose}; the first: {few}"
            raise QalibError(f"{source}: {why if rows else 'there is no question in it'}; {FORMS}.")
        if bad and self.purpose == "train" and not skip_bad:
            raise QalibError(
                f"{source}: bad rows: {bad} of {rows}; the first: {few}; mend them, or leave them "
                "out with --skip-bad."
            )
        if bad or self.tolerated:
            text = f"faults tolerated: {len(self.tolerated)}, rows left out: {bad} of {rows}"
            first = few or self.tolerated[0]
            warnings.warn(f"{source}: {text}; the first: {first}.", DataWarning, stacklevel=3)

    def _error(self, reason: str) -> QalibError:
        return QalibError(f"{self.place}: {reason}.")

    def _note(self, fault: str) -> None:
        self.tolerated.append(f"{self.place}: {fault}")

    def _tolerate(self, fault: str) -> None:
        """Note a fault, or raise it if the purpose is training."""
        if self.purpose == "train":
            raise self._error(fault)
        self._note(fault)

    def _field(self, entry: object, key: str, kind: type):
        """``entry[key]``. Raises QalibError if it is missing or not of type ``kind``."""
        if not isinstance(entry, dict) or key not in entry:
            raise self._error(f"the key {key!r} (of type {kind.__name__}) is missing")
        if not isinstance(entry[key], kind):
            found = type(entry[key]).__name__
            raise self._error(f"{key!r} must be of type {kind.__name__}, found {found}")
        return entry[key]

    def _paragraphs(self, row: dict) -> dict:
        """A HotpotQA row with one passage. Raises QalibError if the answer is not a span of it."""
        answer, question = (self._field(row, key, str) for key in ("answer", "question"))
        paragraphs = self._field(row, "context", list)
        try:
            context = "\n".join(f"{title}\n{''.join(text)}" for title, text in paragraphs)
        except (TypeError, ValueError):
            raise self._error("'context' must hold pairs of a title and a list of texts") from None
        found = [m.start() for m in re.finditer(rf"(?<!\w){re.escape(answer)}(?!\w)", context)]
        if answer in ("yes", "no", "") or not found:
            raise self._error(f"the answer {answer!r} is no span of the passage")
        answers = [{"text": answer, "answer_start": start} for start in found]
        return {"id": row["_id"], "question": question, "context": context, "answers": answers}

    def _read(self, row: dict) -> Example:
        """The example of a row. Raises QalibError, naming the place, for a bad row."""
        identity = row.get("id", row.get("qid"))
        if type(identity) is int:
            self._note(f"the id is the number {identity}")
            identity = str(identity)
        if not identity or not isinstance(identity, str):
            raise self._error(f"the id must be a text, found {reprlib.repr(identity)}")
        self.place += f" (id {identity!r})"
        if identity in self.examples:
            raise self._error("the id appears twice; ids must be unique")
        needed = () if self.purpose == "score" else ("question", "context")
        question, context, title = (
            self._field(row, key, str) if key in needed or isinstance(row.get(key), str) else ""
            for key in ("question", "context", "title")
        )
        example = Example(identity, question, context, (), title)
        if needed:
            check_example(example, self.place)
        try:
            answers, texts = self._answers(row, context)
        except QalibError as error:
            if self.purpose != "answer":
                raise
            if row.get("answers") is not None:
                self.tolerated.append(str(error).removesuffix("."))
            return example
        spans = tuple(answer.text for answer in answers)
        return replace(example, answers=answers, references=texts if texts != spans else ())

    def _answers(self, row: dict, context: str) -> tuple[tuple[Answer, ...], tuple[str, ...]]:
        """(answers with a known offset, texts that a prediction is scored against)."""
        flag, mrqa = row.get("is_impossible"), "detected_answers" in row
        pairs = self._spans(row, context) if mrqa else self._pairs(row)
        if flag is True and pairs and not any(text for text, _ in pairs):
            self._note("an impossible question has an empty answer")
            pairs = []
        answers = [self._answer(text, start, context) for text, start in pairs]
        texts = [text for text, _ in pairs if text]
        if mrqa and row.get("answers"):
            texts = self._field(row, "answers", list)
            if not all(isinstance(text, str) for text in texts):
                raise self._error("'answers' must be a list of texts")
        if flag is None and not texts and isinstance(row.get("answers"), dict):
            flag = True  # tables have no column is_impossible
        if (flag and texts) or not isinstance(flag, bool | None):
            self._tolerate(
                f"is_impossible is {reprlib.repr(flag)} and {len(texts)} answers are given; it "
                "must be true without answers or false with some"
            )
        elif not texts and not flag and self.purpose != "answer":
            self._tolerate('no answer is given; add one, or set "is_impossible": true (SQuAD 2.0)')
        return tuple(answer for answer in answers if answer), tuple(texts)

    def _answer(self, text: str, start: object, context: str) -> Answer | None:
        """The answer at its offset; None if it is empty or not there, an error for training."""
        if not text:
            return self._tolerate("an answer is the empty string; remove it")
        if type(start) is not int:
            number = re.fullmatch(r"\s*(-?\d{1,15})(\.0*)?\s*", str(start), re.ASCII)
            if not number:
                return self._tolerate(f"answer_start is {reprlib.repr(start)}, no whole number")
            self._note(f"answer_start is {start!r}")
            start = int(number[1])
        answer = Answer(text, start)
        if not context:
            return None  # a file to score without its passages
        fault = misplaced(answer, context)
        return self._tolerate(fault) if fault else answer

    def _pairs(self, row: dict) -> list[tuple[str, object]]:
        """(text, offset as written) of each SQuAD answer, from a list or a dictionary of lists."""
        answers = row.get("answers")
        if answers is None and row.get("is_impossible") is True:
            return []
        if isinstance(answers, dict) and isinstance(answers.get("text"), str):
            answers = [answers]
        if isinstance(answers, dict):
            texts, starts = self._field(answers, "text", list), answers.get("answer_start")
            if not isinstance(starts, list) or len(starts) != len(texts):
                self._tolerate(f"{len(texts)} answer texts but not as many under 'answer_start'")
                starts = [None] * len(texts)
            answers = [{"text": t, "answer_start": s} for t, s in zip(texts, starts, strict=True)]
        elif not isinstance(answers, list):
            raise self._error("'answers' is missing, or neither a list nor a dictionary of lists")
        entries = [{"text": answer} if isinstance(answer, str) else answer for answer in answers]
        return [(self._field(each, "text", str), each.get("answer_start")) for each in entries]

    def _spans(self, row: dict, context: str) -> list[tuple[str, int]]:
        """(text, offset) of each distinct MRQA span; both ends of a span are inclusive."""
        found: dict[tuple[str, int], None] = {}
        for detected in self._field(row, "detected_answers", list):
            for span in self._field(detected, "char_spans", list):
                whole = isinstance(span, list) and [type(end) for end in span] == [int, int]
                if whole and 0 <= span[0] <= span[1] < len(context):
                    found[context[span[0] : span[1] + 1], span[0]] = None
                    continue
                self._tolerate(
                    f"the span {reprlib.repr(span)} must be two whole numbers inside its context "
                    f"of {len(context)} characters (both ends count as inside)"
                )
        if not found:
            self._tolerate("no answer span is given; MRQA questions have one")
        return list(found)
