"""The ``answer`` command: read passages and questions, print answers or write predictions."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from qalib.errors import QalibError

if TYPE_CHECKING:
    from qalib.inference import Prediction, QuestionAnswerer


def answer_command(
    question: str,
    passage: Path | None,
    questions: Path | None,
    dataset: Path | None,
    output: Path | None,
    n_best: int,
    as_json: bool,
    checkpoint: str,
    null: bool,
    skim: bool,
    min_recall: float | None,
    max_flops: float | None,
    max_f1_drop: float | None,
    window_threshold: float | None,
) -> None:
    """Answer one question, the lines of a file or a data set; arguments as of ``qalib answer``."""
    if [bool(question), bool(questions), bool(dataset)].count(True) != 1:
        raise QalibError(
            'give either a question, as in: qalib answer "Who ...?", or --questions, or --dataset.'
        )
    limits = {"min_recall": min_recall, "max_flops": max_flops, "max_f1_drop": max_f1_drop}
    limits = {name: value for name, value in limits.items() if value is not None}
    if not skim and (limits or window_threshold is not None):
        raise QalibError("an operating point and --window-threshold need skimming; add --skim.")

    def load() -> "QuestionAnswerer":  # takes seconds: after all files have been checked
        from qalib.inference import AnswerConfig, QuestionAnswerer
        from qalib.models.pretrained import windows_of

        windows = replace(windows_of(checkpoint), null=null)
        config = AnswerConfig(windows=windows, n_best_size=n_best)
        if not skim:
            return QuestionAnswerer.load(checkpoint, config)
        from qalib.skim.calibration import OperatingPointTarget
        from qalib.skim.reader import load_skim_answerer

        target = OperatingPointTarget(**limits) if limits else None
        return load_skim_answerer(
            checkpoint, config, target=target, window_threshold=window_threshold
        )

    if dataset:
        _answer_dataset(load, dataset, output)
    elif questions:
        lines = [line.strip() for line in read_text(questions).splitlines() if line.strip()]
        _answer_questions(load, lines, passage, as_json, single=False)
    else:
        _answer_questions(load, [question], passage, as_json, single=True)


def _answer_questions(
    load: Callable, lines: Sequence[str], passage: Path | None, as_json: bool, single: bool
) -> None:
    """Print the answers to questions about one passage, a file or standard input."""
    from qalib.data.schema import Example

    text = read_text(passage)
    answerer = load()
    examples = [Example(str(n), line, text) for n, line in enumerate(lines, 1)]
    predictions = answerer.predict(examples, progress=not single)
    if as_json:
        rows = [_json_row(answerer, p) for p in predictions]
        if not single:
            rows = [{"question": q} | row for q, row in zip(lines, rows, strict=True)]
        result = rows if not single else rows[0] if _skims(answerer) else rows[0]["answers"]
        print(json.dumps(result, ensure_ascii=False, indent=2))
    else:
        for line, prediction in zip(lines, predictions, strict=True):
            if not single:
                print(line)
            for candidate in prediction.candidates:
                indent = "" if single else "    "
                print(f"{indent}{candidate.text}   ({candidate.probability:.0%})")
    _report_skimming(answerer, predictions)


def _answer_dataset(load: Callable, dataset: Path, output: Path | None) -> None:
    """Write the official prediction file of a data set, and the n best answers next to it."""
    from qalib.data.formats import load_any

    if output is None:
        raise QalibError(f"{dataset}: name the file for the predictions: --output FILE.json.")
    if not output.parent.is_dir():
        raise QalibError(f"{output}: its folder does not exist; create it first.")
    examples, answerer = load_any(dataset).examples, load()
    predictions = answerer.predict(examples, progress=True)
    found = {e.id: p.candidates for e, p in zip(examples, predictions, strict=True)}
    write_output(output, json.dumps({i: c[0].text for i, c in found.items()}, ensure_ascii=False))
    if answerer.config.n_best_size > 1 and not is_special(output):
        ranked = {i: list(map(asdict, candidates)) for i, candidates in found.items()}
        write_output(output.with_suffix(".nbest.json"), json.dumps(ranked, ensure_ascii=False))
    print(f"{len(found)} answers written to {output}", file=sys.stderr)
    _report_skimming(answerer, predictions)


def is_special(path: Path) -> bool:
    """Whether a path is a device, a pipe or a link, such as /dev/stdout; never to be replaced."""
    return path.is_symlink() or (path.exists() and not path.is_file())


def write_output(path: Path, text: str) -> None:
    """Write a file: a regular one atomically, a device, pipe or link directly.

    Raises QalibError if it cannot be written.
    """
    try:
        if is_special(path):
            with path.open("w", encoding="utf-8") as file:
                file.write(text)
            return
        partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise QalibError(f"{path}: cannot be written ({error.strerror or error}).") from None


def read_text(path: Path | None) -> str:
    """A text file, or standard input. Raises QalibError if it is empty or not UTF-8."""
    from qalib.data.formats import read_bytes

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


def _skims(answerer: "QuestionAnswerer") -> bool:
    return hasattr(answerer.reader, "operating_point")


def _json_row(answerer: "QuestionAnswerer", prediction: "Prediction") -> dict:
    """Answers, and of a skimming reader how much of the passage was processed."""
    names = ("token_fraction", "windows", "dropped") if _skims(answerer) else ()
    answers = {"answers": [asdict(candidate) for candidate in prediction.candidates]}
    return answers | {name: getattr(prediction, name) for name in names}


def _report_skimming(answerer: "QuestionAnswerer", predictions: Sequence["Prediction"]) -> None:
    """Print the operating point and the processed fraction of a skimming reader to stderr."""
    if not _skims(answerer) or not predictions:
        return
    if answerer.reader.operating_point:
        print(answerer.reader.operating_point, file=sys.stderr)
    line = f"processed by all layers: {mean(p.token_fraction for p in predictions):.0%} of the text"
    windows = sum(p.windows for p in predictions)
    if windows > len(predictions):
        dropped = sum(p.dropped for p in predictions)
        line += f"; {dropped:,} of {windows:,} windows dropped early"
    print(line, file=sys.stderr)
