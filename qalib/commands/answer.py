"""The ``answer`` command: read passages and questions, print answers or write predictions."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Annotated

import typer

from qalib.commands import options
from qalib.commands.output import (
    check_output,
    is_main_process,
    is_special,
    read_text,
    to_json,
    write_output,
)
from qalib.errors import QalibError

if TYPE_CHECKING:
    from qalib.data.schema import Example
    from qalib.inference import Prediction, QuestionAnswerer


@options.takes(options.AnswerOptions, "decoding")
def answer_command(
    decoding: options.AnswerOptions,
    question: Annotated[str, typer.Argument(help="the question, or with --output the data")] = "",
    passage: Annotated[Path | None, typer.Option(help="text file; default: stdin")] = None,
    questions: Annotated[Path | None, typer.Option(help="a file of questions, one a line")] = None,
    dataset: Annotated[str, typer.Option(help="data to answer: a file or a name")] = "",
    output: Annotated[Path | None, typer.Option(help="file for the predictions (JSON)")] = None,
    null_odds: Annotated[
        Path | None, typer.Option(help='file for the scores of "no answer" less the best span\'s')
    ] = None,
    as_json: options.JsonOption = False,
    model: options.ModelOption = "",
    device: options.DeviceOption = "",
    skim: Annotated[bool, typer.Option("--skim", help="skim with the model's skimmer")] = False,
    skimmer: options.SkimmerOption = "",
) -> None:
    """Answer a question about a passage, a list of questions, or a data set.

    With `accelerate launch -m qalib answer ...`, each process answers its share of a data set.
    """
    if output and question and not (dataset or questions or passage):
        question, dataset = "", question
    if [bool(question), bool(questions), bool(dataset)].count(True) != 1:
        raise QalibError(
            'give either a question, as in: qalib answer "Who ...?", or --questions, or --dataset.'
        )
    if null_odds and not dataset:
        raise QalibError("--null-odds is written for the questions of a data set only.")
    skim = skim or bool(skimmer)

    def load(place: str = "") -> "QuestionAnswerer":  # slow: called after the file checks
        from qalib.inference import QuestionAnswerer

        where = place if place.startswith(device) else device  # each process uses its own GPU
        if not skim:
            return QuestionAnswerer.load(model, decoding.config(model), where)
        from qalib.skim.reader import load_skim_answerer, skimmer_folders

        config = decoding.config(skimmer_folders(model, skimmer)[0])
        return load_skim_answerer(model, skimmer, config, device=where)

    n_best = output and decoding.n_best_size > 1 and dataset and _n_best_path(output)
    outputs = [path for path in (output, null_odds, n_best) if path]
    for number, path in enumerate(outputs):
        check_output(path, (dataset, questions, passage, model, skimmer, *outputs[:number]))
    if dataset:
        _answer_dataset(load, dataset, output, null_odds)
    elif is_main_process():
        text = read_text(questions).split("\n") if questions else [question]
        lines = [line.strip() for line in text if line.strip() or not questions]
        found = _answer_questions(load, lines, passage, as_json, single=not questions)
        write_output(output, found) if output else print(found)


def _answer_questions(
    load: Callable, lines: Sequence[str], passage: Path | None, as_json: bool, single: bool
) -> str:
    """Answer questions about one passage (a file or standard input); returns text or JSON."""
    from qalib.data.schema import Example

    text = read_text(passage)
    answerer = load()
    examples = [Example(str(n), line, text) for n, line in enumerate(lines, 1)]
    predictions = answerer.predict(examples, progress=not single)
    _report_skimming(answerer, predictions)
    skims = _skims(answerer)
    if as_json:
        rows = [{"answers": [asdict(c) for c in p.candidates]} for p in predictions]
        for row, p in zip(rows, predictions, strict=True):
            row |= {"token_fraction": p.token_fraction, "windows": p.windows} if skims else {}
        if not single:
            return to_json([{"question": q} | r for q, r in zip(lines, rows, strict=True)])
        return to_json(rows[0] if skims else rows[0]["answers"])
    printed = []
    for line, prediction in zip(lines, predictions, strict=True):
        printed += [] if single else [line]
        indent = "" if single else "    "
        printed += [f"{indent}{c.text}   ({c.probability:.0%})" for c in prediction.candidates]
    return "\n".join(printed)


def _answer_dataset(
    load: Callable, dataset: str, output: Path | None, null_odds: Path | None
) -> None:
    """Write the SQuAD prediction file of a data set, and its n-best and null-odds files."""
    from qalib.data.sources import load_data

    if output is None:
        raise QalibError(f"{dataset}: name the file for the predictions: --output FILE.json.")
    data = load_data(dataset, "answer")
    examples = data.examples
    for path in filter(None, (output, null_odds, _n_best_path(output))):
        check_output(path, [data.path])  # for a name, the path is known only now
    answerer, predictions = _predict_shared(load, examples)
    if not is_main_process():
        return
    found = {e.id: p for e, p in zip(examples, predictions, strict=True)}
    texts = {output: {i: p.candidates[0].text for i, p in found.items()}}
    if answerer.config.n_best_size > 1 and (n_best := _n_best_path(output)):
        texts[n_best] = {i: list(map(asdict, p.candidates)) for i, p in found.items()}
    if null_odds:
        texts[null_odds] = {i: p.null_odds for i, p in found.items()}
    for path, value in texts.items():
        write_output(path, to_json(value, indent=None))
    print(f"{len(found)} answers written to {output}", file=sys.stderr)
    _report_skimming(answerer, predictions)


def _n_best_path(output: Path) -> Path | None:
    """The n-best file beside the prediction file; None if that is a device, a pipe or a link."""
    name = output.name.removesuffix(".json") + ".nbest.json"
    return None if is_special(output) else output.with_name(name)


def _predict_shared(
    load: Callable, examples: Sequence["Example"]
) -> tuple["QuestionAnswerer", list["Prediction"]]:
    """The answerer and all predictions; each process answers a contiguous share, and a QalibError
    in one is raised in all, so that none waits forever.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        answerer = load()
        return answerer, answerer.predict(examples, progress=True)
    from accelerate.utils import gather_object

    from qalib.training import make_accelerator

    accelerator = make_accelerator()
    answerer, found, error = None, [], None
    try:
        answerer = load(str(accelerator.device))
        with accelerator.split_between_processes(list(examples)) as share:
            found = answerer.predict(share, progress=accelerator.is_main_process) if share else []
    except QalibError as raised:
        error = raised
    shares = gather_object([(found, error)])
    if errors := [error for _, error in shares if error]:
        raise errors[0]
    return answerer, [prediction for found, _ in shares for prediction in found]


def _skims(answerer: "QuestionAnswerer") -> bool:
    return hasattr(answerer.reader, "operating_point")


def _report_skimming(answerer: "QuestionAnswerer", predictions: Sequence["Prediction"]) -> None:
    """Print a skimming reader's operating point and mean token fraction to standard error."""
    if not _skims(answerer) or not predictions:
        return
    if answerer.reader.operating_point:
        print(answerer.reader.operating_point, file=sys.stderr)
    share = mean(prediction.token_fraction for prediction in predictions)
    print(f"processed by all layers: {share:.0%} of the text", file=sys.stderr)
