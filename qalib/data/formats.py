"""One reader of the forms in which extractive question answering is published.

The content decides, never the file's name; each form may be gzip-compressed:

* SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018);
* MRQA (Fisch et al. 2019), a passage a line, with or without its header line. The markers
  ``[TLE]``, ``[PAR]`` and ``[DOC]`` of its passages are part of the text;
* rows with id, question, context and answers, as the ``datasets`` library writes them: a JSON
  list, a list under "data", or JSON lines;
* lists of {context, qas}, in the same three ways.

Answers are a list of {text, answer_start} or a dictionary of two lists. All forms are flattened to
rows, and :class:`_Reader` makes an example of each, with the text as written.
"""

import gzip
import hashlib
import json
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from qalib.data.schema import (
    Answer,
    Dataset,
    Example,
    FreeAnswerExample,
    check_example,
    make_dataset,
    misplaced,
)
from qalib.errors import DataWarning, QalibError

Purpose = Literal["train", "answer", "score"]
Rows = Iterator[tuple[str, dict | QalibError]]  # the place of each, and the row or what is wrong

FORMS = (
    "the forms that are read are SQuAD 1.1 and 2.0, MRQA, rows with id, question, context and "
    "answers (a JSON list, a list under 'data', or JSON lines) and lists of {context, qas}, plain "
    "or gzip-compressed"
)


def load_file(
    path: str | Path, purpose: Purpose = "train", *, name: str = "", skip_bad: bool = False
) -> Dataset:
    """Load a data file of any form. What a row must have depends on the purpose:

    * "train": id, question, context, and answers at their offsets or none and ``is_impossible``.
      Raises QalibError that counts the bad rows and names the first three with their place;
      ``skip_bad`` leaves them out with a warning.
    * "answer": id, question and context. "score": id and the texts of the answers. Rows without
      them are left out, other faults are tolerated, and one warning counts both.

    Whole numbers as ids or in another notation (``"28"``, ``28.0``) and empty answers of an
    impossible question are understood for every purpose. The warnings are DataWarning, one a file.
    Raises QalibError for a file that is missing, damaged, cut short or of another form, and if no
    row can be used.
    """
    path = Path(path)
    raw = read_bytes(path)
    version, entries = _entries(_decode(raw, path), path)
    reader = _Reader(purpose)
    for place, entry in entries:
        for where, row in _flatten(entry, place):
            reader.add(row, where)
    reader.report(path, skip_bad)
    stem = re.sub(r"(\.jsonl?)?(\.gz)?$", "", path.name)
    sha256 = hashlib.sha256(raw).hexdigest()
    return make_dataset(name or stem, reader.examples.values(), str(path), sha256, version)


def from_rows(rows: Iterable[Mapping], name: str) -> Dataset:
    """Examples for training from the rows of a ``datasets`` table with SQuAD's columns.

    Raises QalibError as :func:`load_file` does.
    """
    reader = _Reader("train")
    for r, row in enumerate(rows):
        reader.add(dict(row), f"row {r}")
    reader.report(name)
    return make_dataset(name, reader.examples.values())


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


def _decode(raw: bytes, path: Path | str) -> str:
    """The text of a file, plain or gzip-compressed, without a byte order mark."""
    try:
        return (gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw).decode("utf-8-sig")
    except EOFError:
        raise QalibError(f"{path}: the gzip data is cut short; fetch the file again.") from None
    except (gzip.BadGzipFile, zlib.error):
        raise QalibError(f"{path}: the gzip data is damaged; fetch the file again.") from None
    except UnicodeDecodeError as error:
        raise QalibError(
            f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8 JSON."
        ) from None


def _parse(text: str, prefix: str, line: int = 1) -> object:
    """The JSON value of a text that begins on a line. Raises QalibError that names the place."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{prefix}line {error.lineno + line - 1}, column {error.colno}"
        end = "; the file is cut short: fetch or export it again" if _is_cut(error) else ""
        raise QalibError(f"{place}: not valid JSON ({error.msg}){end}.") from None
    except ValueError as error:  # a number with thousands of digits
        raise QalibError(f"{prefix}line {line}: not a dataset ({error}).") from None
    except RecursionError:
        raise QalibError(f"{prefix}line {line}: JSON nested too deeply to be a dataset.") from None


def _is_cut(error: json.JSONDecodeError) -> bool:
    """Whether the JSON ends too early: the error is at its end, or no bracket closes it."""
    text = error.doc.rstrip()
    opened = text.lstrip().startswith(("{", "["))
    early = error.pos >= len(text) or not text.endswith(("}", "]"))
    return opened and early and error.msg != "Extra data"


# ---------------------------------------------------------------------------- from forms to rows


def _entries(text: str, path: Path) -> tuple[str, Iterable[tuple[str, object]]]:
    """(version of the dataset if the file states 2.0, place and value of each top-level entry)."""
    if not text.lstrip().startswith(("{", "[")):
        kind = "not JSON" if text.strip() else "the file is empty"
        if text.startswith("version https://git-lfs"):
            kind = "a Git LFS pointer, not the file itself (run 'git lfs pull')"
        raise QalibError(f"{path}: {kind}; {FORMS}.")
    if lines := _json_lines(text):
        return "", _read_lines(lines, path)
    tree = _parse(text, f"{path}: ")
    version = ""
    if isinstance(tree, dict) and isinstance(tree.get("data"), list):
        version = "2.0" if _is_version_2(tree.get("version")) else ""
        tree = tree["data"]
    values = tree if isinstance(tree, list) else [tree]
    return version, ((f"{_unit(value)} {i}", value) for i, value in enumerate(values))


def _json_lines(text: str) -> list[tuple[int, str]]:
    """(number, text) of each line that is not blank, or nothing if the file is one JSON value.

    In JSON lines the first line is an object of its own, or the second if the first is damaged.
    """
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    several = len(lines) > 1 and text.lstrip().startswith("{")
    return lines if several and any(_is_object(line) for _, line in lines[:2]) else []


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _read_lines(lines: Sequence[tuple[int, str]], path: Path) -> Iterator[tuple[str, object]]:
    """Place and value of each line; a QalibError for a damaged one, raised if the file is cut."""
    for number, line in lines:
        try:
            value = _parse(line, "", number)
        except QalibError as error:
            if (number, line) == lines[-1] and "cut short" in str(error):
                raise QalibError(f"{path}: {error}") from None
            value = error
        if not (isinstance(value, dict) and "header" in value and "qas" not in value):
            yield f"line {number}", value


def _is_version_2(version: object) -> bool:
    """Whether a version is SQuAD's 2.0: "v2.0", 2, "2.0-dev", but not "1.2.0" or "2.3.2024"."""
    pattern = r"\s*(squad[-_ ]?)?v?2(\.\d){0,2}(?=[-_][a-z]|\s*$)"
    return re.match(pattern, str(version), re.IGNORECASE) is not None


_LEVELS = (("paragraphs", "paragraph"), ("qas", "question"))


def _flatten(entry: object, place: str, levels: Sequence[tuple[str, str]] = _LEVELS) -> Rows:
    """The questions of an article or a passage, with its title and context, or the row itself."""
    if isinstance(entry, QalibError):
        yield place, entry
        return
    if not isinstance(entry, dict):
        found = type(entry).__name__
        yield place, QalibError(f"{place}: expected a JSON object, found {found}.")
        return
    for depth, (key, unit) in enumerate(levels, 1):
        if key not in entry:
            continue
        if title := " ".join(str(entry.get("title") or "").split())[:60]:
            place += f" ({title})" if key == "paragraphs" else ""
        if not isinstance(entry[key], list):
            found = type(entry[key]).__name__
            yield place, QalibError(f"{place}: {key!r} must be of type list, found {found}.")
            return
        inherited = {key: entry[key] for key in ("title", "context") if key in entry}
        for i, part in enumerate(entry[key]):
            whole = inherited | part if isinstance(part, dict) else part
            yield from _flatten(whole, f"{place}, {unit} {i}", levels[depth:])
        return
    if levels and "question" not in entry and not {"id", "answers"} <= entry.keys():
        missing = "'question', 'qas' or 'paragraphs'" if levels is _LEVELS else "'qas'"
        yield place, QalibError(f"{place}: the key {missing} is missing.")
        return
    yield place, entry


def _unit(entry: object) -> str:
    keys = entry if isinstance(entry, dict) else ()
    return "article" if "paragraphs" in keys else "passage" if "qas" in keys else "row"


# ------------------------------------------------------------------------- from rows to examples


class _Reader:
    """The examples of one file, its bad rows, and what was tolerated in the others."""

    def __init__(self, purpose: Purpose):
        if purpose not in ("train", "answer", "score"):
            raise QalibError(f"{purpose!r}: the purposes are 'train', 'answer' and 'score'.")
        self.purpose = purpose
        self.examples: dict[str, Example] = {}
        self.rows = 0
        self.bad: list[str] = []
        self.tolerated: Counter[str] = Counter()
        self.first = ""  # of what was tolerated
        self.place = ""  # of the row that is read

    def add(self, row: dict | QalibError, place: str) -> None:
        """Read a row, or count it as a bad one."""
        self.rows += 1
        self.place = place
        try:
            if isinstance(row, QalibError):
                raise row
            example = self._read(row)
            self.examples[example.id] = example
        except QalibError as error:
            self.bad.append(str(error).removesuffix("."))

    def report(self, source: Path | str, skip_bad: bool = False) -> None:
        """Warn of what was tolerated and left out. Raises QalibError as :func:`load_file` says."""
        if not self.rows:
            raise QalibError(f"{source}: there is no question in it; {FORMS}.")
        bad, few = len(self.bad), "; ".join(self.bad[:3])
        if not self.examples:
            raise QalibError(
                f"{source}: none of {self.rows} rows can be used to {self.purpose}; the first: "
                f"{self.bad[0]}; {FORMS}."
            )
        if bad and self.purpose == "train" and not skip_bad:
            raise QalibError(
                f"{source}: bad rows: {bad} of {self.rows}; the first: {few}; mend them, or leave "
                "them out with --skip-bad."
            )
        found = [f"{what}: {count}" for what, count in self.tolerated.items()]
        found += [f"rows left out: {bad} of {self.rows}"] if bad else []
        if found:
            text = f"{source}: {', '.join(found)}; the first: {few or self.first}."
            warnings.warn(text, DataWarning, stacklevel=3)

    def _note(self, what: str, reason: str) -> None:
        self.first = self.first or f"{self.place}: {reason}"
        self.tolerated[what] += 1

    def _tolerate(self, what: str, reason: str) -> None:
        """Note a fault; for training, raise it."""
        if self.purpose == "train":
            raise QalibError(f"{self.place}: {reason}.")
        self._note(what, reason)

    def _read(self, row: dict) -> Example:
        """The example of a row. Raises QalibError, naming the place, for a bad row."""
        identity = row.get("id", row.get("qid"))
        if type(identity) is int:
            self._note("ids that are numbers", f"the id is the number {identity}")
            identity = str(identity)
        if not identity or not isinstance(identity, str):
            raise QalibError(f"{self.place}: the id must be a text, found {identity!r:.40}.")
        self.place += f" (id {identity!r})"
        if identity in self.examples:
            raise QalibError(f"{self.place}: the id appears twice; ids must be unique.")
        needed = () if self.purpose == "score" else ("question", "context")
        question, context, title = (
            self._text(row, key) if key in needed or isinstance(row.get(key), str) else ""
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
                self._note("answers that are not understood", str(error).removesuffix("."))
            return example
        if len(answers) == len(texts) and "detected_answers" not in row:
            return replace(example, answers=answers)
        return FreeAnswerExample(identity, question, context, answers, title, texts)

    def _text(self, entry: object, key: str, kind: type = str):
        """``entry[key]`` of a type. Raises QalibError if it is not that."""
        if not isinstance(entry, dict) or key not in entry:
            raise QalibError(f"{self.place}: the key {key!r} (of type {kind.__name__}) is missing.")
        if not isinstance(entry[key], kind):
            found = type(entry[key]).__name__
            raise QalibError(
                f"{self.place}: {key!r} must be of type {kind.__name__}, found {found}."
            )
        return entry[key]

    def _answers(self, row: dict, context: str) -> tuple[tuple[Answer, ...], tuple[str, ...]]:
        """(answers whose place is known, texts that a prediction is scored against)."""
        flag, table = row.get("is_impossible"), isinstance(row.get("answers"), dict)
        mrqa = "detected_answers" in row
        pairs = self._spans(row, context) if mrqa else self._pairs(row)
        if flag is True and not any(text for text, _ in pairs):
            for _ in pairs:
                self._note("empty answers of impossible questions", "an answer is the empty string")
            pairs = []
        answers = [self._answer(text, start, context) for text, start in pairs]
        texts = [text for text, _ in pairs if text]
        if mrqa and row.get("answers"):
            texts = self._text(row, "answers", list)
            if not all(isinstance(text, str) for text in texts):
                raise QalibError(f"{self.place}: 'answers' must be a list of texts.")
        if (flag and texts) or not isinstance(flag, bool | None):
            self._tolerate(
                "is_impossible that contradicts the answers",
                f"is_impossible is {flag!r:.40} and {len(texts)} answers are given; it must be "
                "true without answers or false with some",
            )
        elif not texts and not flag and not (table and flag is None) and self.purpose != "answer":
            self._tolerate(
                "questions without answers that is_impossible does not mark",
                'no answer is given; add one, or set "is_impossible": true (SQuAD 2.0)',
            )
        return tuple(answer for answer in answers if answer), tuple(texts)

    def _answer(self, text: str, start: object, context: str) -> Answer | None:
        """The answer at its offset; None if it is empty or not there, which training refuses."""
        if not text:
            return self._tolerate("empty answers", "an answer is the empty string; remove it")
        if type(start) is not int:
            number = re.fullmatch(r"\s*(-?\d{1,15})(\.0*)?\s*", str(start))
            if not number:
                reason = f"answer_start is {start!r:.40}, not a whole number"
                return self._tolerate("missing offsets", reason)
            self._note("offsets that are not whole numbers", f"answer_start is {start!r}")
            start = int(number[1])
        answer = Answer(text, start)
        if context.strip() and (reason := misplaced(answer, context)):
            return self._tolerate("answers that are not at their offset", reason)
        return answer

    def _pairs(self, row: dict) -> list[tuple[str, object]]:
        """(text, offset as written) of SQuAD's answers, from a list or a dictionary of lists."""
        answers = row.get("answers")
        if answers is None and row.get("is_impossible") is True:
            return []
        if isinstance(answers, dict):
            texts, starts = self._text(answers, "text", list), answers.get("answer_start")
            if not isinstance(starts, list) or len(starts) != len(texts):
                reason = f"{len(texts)} answer texts but not as many under 'answer_start'"
                self._tolerate("missing offsets", reason)
                starts = [None] * len(texts)
            answers = [{"text": t, "answer_start": s} for t, s in zip(texts, starts, strict=True)]
        pairs = []
        for answer in self._text(row | {"answers": answers}, "answers", list):
            entry = {"text": answer} if isinstance(answer, str) else answer
            pairs.append((self._text(entry, "text"), entry.get("answer_start")))
        return pairs

    def _spans(self, row: dict, context: str) -> list[tuple[str, int]]:
        """(text, offset) of MRQA's spans, each once; both ends of a span are inside."""
        found: dict[tuple[str, int], None] = {}
        for detected in self._text(row, "detected_answers", list):
            for span in self._text(detected, "char_spans", list):
                match span:
                    case [int(first), int(last)] if 0 <= first <= last < len(context):
                        found[context[first : last + 1], first] = None
                    case _:
                        self._tolerate(
                            "answers that are not at their offset",
                            f"the span {span!r:.40} must be two whole numbers inside its context "
                            f"of {len(context)} characters (both ends count as inside)",
                        )
        if not found:
            self._tolerate("missing offsets", "no answer span is given; MRQA questions have one")
        return list(found)


# ------------------------------------------------------------------------------------- writing


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
