"""What ``qalib answer`` reads and writes: passages, questions, files of predictions."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean

from qalib.answer import Answered, Answerer, as_rows
from qalib.data.schema import Example, read_bytes
from qalib.errors import QalibError

Load = Callable[[], Answerer]  # after the files have been looked at: it takes seconds


def answer_question(load: Load, question: str, passage: Path | None, as_json: bool) -> None:
    """Print the answers to one question about a passage, a file or what is piped in."""
    asked, answerer = Example("question", question, read_text(passage)), load()
    answered = answerer.answer_all([asked])[0]
    if as_json:
        rows, counts = as_rows(answered.candidates), _counts(answerer, answered)
        print(_json({"answers": rows} | counts if counts else rows))
    else:
        _print(answered)
    tell(answerer, [answered])


def answer_list(load: Load, questions: Path, passage: Path | None, as_json: bool) -> None:
    """Print the answers to the lines of a file, all about one passage."""
    lines = [line.strip() for line in read_text(questions).splitlines() if line.strip()]
    text = read_text(passage)
    asked, answerer = [Example(str(n), line, text) for n, line in enumerate(lines, 1)], load()
    answered = answerer.answer_all(asked, progress=True)
    if as_json:
        told = [
            {"question": question, "answers": as_rows(a.candidates)} | _counts(answerer, a)
            for question, a in zip(lines, answered, strict=True)
        ]
        print(_json(told))
    else:
        for question, found in zip(lines, answered, strict=True):
            print(question)
            _print(found, indent="    ")
    tell(answerer, answered)


def answer_dataset(load: Load, dataset: Path, output: Path | None) -> None:
    """Write the official prediction file for a data set, and the n best answers beside it."""
    from qalib.data.formats import load_any
    from qalib.study.files import write_whole

    if output is None:
        raise QalibError(f"{dataset}: say where the predictions go: --output PREDICTIONS.json.")
    if not output.resolve().parent.is_dir():
        raise QalibError(f"{output}: its folder does not exist; make it first.")
    examples, answerer = load_any(dataset).examples, load()
    answered = answerer.answer_all(examples, progress=True)
    answers = [a.candidates for a in answered]
    predictions = {e.id: best[0].text for e, best in zip(examples, answers, strict=True)}
    write_whole(output, json.dumps(predictions, ensure_ascii=False))
    if answerer.config.n_best > 1:
        ranked = {e.id: as_rows(best) for e, best in zip(examples, answers, strict=True)}
        write_whole(output.with_suffix(".nbest.json"), json.dumps(ranked, ensure_ascii=False))
    print(f"{len(predictions)} answers written to {output}", file=sys.stderr)
    tell(answerer, answered)


def tell(answerer: Answerer, answered: Sequence[Answered]) -> None:
    """On stderr, of a reader that skims: what was promised and what was read."""
    if not _skims(answerer) or not answered:
        return
    if answerer.reader.promise:
        print(answerer.reader.promise, file=sys.stderr)
    said = f"read to the end: {mean(a.read for a in answered):.0%} of the passage"
    said += " on average" if len(answered) > 1 else ""
    windows, dropped = sum(a.windows for a in answered), sum(a.dropped for a in answered)
    if windows > len(answered):
        said += f"; {dropped:,} of {windows:,} windows dropped early"
    print(said, file=sys.stderr)


def read_text(path: Path | None) -> str:
    """A text file, or without a path what is piped in. Raises QalibError unless it is UTF-8."""
    raw = sys.stdin.buffer.read() if path is None else read_bytes(path)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise QalibError(
            f"{path or 'stdin'}: byte {error.start} is not UTF-8; save the text as UTF-8."
        ) from None
    if not text.strip():
        raise QalibError(f"{path or 'stdin'}: there is no text in it.")
    return text


def _skims(answerer: Answerer) -> bool:
    return hasattr(answerer.reader, "promise")


def _counts(answerer: Answerer, answered: Answered) -> dict:
    """What was read of a passage; nothing of a reader that does not skim."""
    names = ("read", "windows", "dropped") if _skims(answerer) else ()
    return {name: getattr(answered, name) for name in names}


def _print(answered: Answered, indent: str = "") -> None:
    for candidate in answered.candidates:
        print(f"{indent}{candidate.text}   ({candidate.probability:.0%})")


def _json(told: object) -> str:
    return json.dumps(told, ensure_ascii=False, indent=2)
