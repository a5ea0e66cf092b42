"""The command line: ``python -m qalib COMMAND``. ``--help`` lists the commands."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from qalib.errors import QalibError

app = typer.Typer(
    help="Efficient extractive question answering: a study kit.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
bench = typer.Typer(help="Wall-clock benchmarks; ratios within one run.", no_args_is_help=True)
app.add_typer(bench, name="bench")

ProfileOption = Annotated[str, typer.Option("--profile", "-P", help="ci, laptop, study or paper")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON")]


@app.command()
def answer(
    question: Annotated[str, typer.Argument(help="the question")] = "",
    passage: Annotated[Path | None, typer.Option(help="text file; without it, stdin")] = None,
    questions: Annotated[Path | None, typer.Option(help="a file of them, one a line")] = None,
    dataset: Annotated[Path | None, typer.Option(help="answer a SQuAD or MRQA file")] = None,
    output: Annotated[Path | None, typer.Option(help="where its predictions go (JSON)")] = None,
    n_best: Annotated[int, typer.Option(help="how many answers")] = 1,
    as_json: JsonOption = False,
    checkpoint: Annotated[str, typer.Option(help="a checkpoint folder; default: shipped")] = "",
    null: Annotated[bool, typer.Option(help="allow 'no answer' (SQuAD 2.0 models)")] = False,
    skim: Annotated[bool, typer.Option("--skim", help="read only what matters")] = False,
    keep: Annotated[float | None, typer.Option(help="... and keep so many answers: 0.995")] = None,
    work: Annotated[float | None, typer.Option(help="... or do so much of the work: 0.5")] = None,
    lost: Annotated[float | None, typer.Option(help="... or lose so many F1 points: 0.5")] = None,
    drop: Annotated[
        float | None, typer.Option(help="... and of long passages no window below: 0.1")
    ] = None,
) -> None:
    """Answer a question about a passage, a list of questions, or a whole data set.

    What --keep and --lost promise was counted on held-out questions, and holds for such.
    """
    from qalib.answer import AnswerConfig, Answerer
    from qalib.readers.shipped import windows_of
    from qalib.skim.wishes import Wish
    from qalib.study import answers

    if [bool(question), bool(dataset), bool(questions)].count(True) != 1:
        raise QalibError(
            'give either a question, as in: qalib answer "Who ...?", or --questions, or --dataset.'
        )
    asked = (keep, work, lost)
    wish = None if asked == (None, None, None) else Wish(*asked)
    config = AnswerConfig(windows=replace(windows_of(checkpoint), null=null), n_best=n_best)

    def load() -> Answerer:
        return Answerer.load(checkpoint, config, skim, wish, drop)

    if dataset:
        answers.answer_dataset(load, dataset, output)
    elif questions:
        answers.answer_list(load, questions, passage, as_json)
    else:
        answers.answer_question(load, question, passage, as_json)


@app.command()
def score(dataset: Path, predictions: Path) -> None:
    """Score PREDICTIONS (one JSON object: id to answer text) as the official SQuAD scripts do."""
    from qalib.metrics import score_files

    print(json.dumps(score_files(dataset, predictions), indent=2))


@app.command()
def fetch(
    names: Annotated[list[str] | None, typer.Argument(help="sources; none: list them")] = None,
) -> None:
    """Fetch data by name, verify it and say where it is; without a name, list what there is."""
    from qalib.data.sources import fetch as fetch_source

    if not names:
        print(_sources())
    for name in names or ():
        print(fetch_source(name))


def _sources() -> str:
    from tabulate import tabulate

    from qalib.data.registry import SOURCES
    from qalib.data.sources import find

    rows = [
        [source.name, "here" if find(source.name) else "", source.questions, source.file]
        for source in SOURCES.values()
    ]
    return tabulate(rows, headers=["name", "", "questions", "file"], intfmt=",")


@app.command()
def figures(
    profile: ProfileOption = "laptop",
    only: Annotated[list[str] | None, typer.Option(help="notebook numbers, e.g. 00")] = None,
    force: Annotated[bool, typer.Option(help="compute everything again")] = False,
    check: Annotated[bool, typer.Option(help="only say what is out of date")] = False,
    param: Annotated[list[str] | None, typer.Option("-p", help="NAME=VALUE for a notebook")] = None,
) -> None:
    """Run the notebooks and regenerate their figures."""
    from qalib.study.notebooks import command_figures

    raise typer.Exit(
        command_figures(profile, only=only, force=force, check=check, params=param or ())
    )


@app.command()
def train(
    stage: Annotated[
        str, typer.Argument(help="encoder, 'bytes: VARIANT', 'bytes: final', 'skim: ROW', ...")
    ],
    profile: ProfileOption = "laptop",
    seed: Annotated[int, typer.Option(help="seed")] = 0,
) -> None:
    """Train a reader into the store; with several GPUs: accelerate launch -m qalib train ..."""
    from qalib.study import session
    from qalib.study.commands import stages_by_name

    study = session.start("train", profile, seed)
    known = stages_by_name(study)
    if stage not in known:
        raise QalibError(f"nothing called {stage!r} can be trained; there is {'; '.join(known)}.")
    for run in known[stage](study):
        print(f"{run.short}: {json.dumps(run.metrics)}")


@app.command()
def ship(
    what: Annotated[str, typer.Argument(help="reader or skimmer")] = "reader",
    profile: ProfileOption = "study",
) -> None:
    """Write data/checkpoints from what a profile trained, scored, with its card."""
    from qalib.study.session import start
    from qalib.study.ship import ship as ship_reader
    from qalib.study.ship_skim import ship_skimmer

    known = {"reader": ship_reader, "skimmer": ship_skimmer}
    if what not in known:
        raise QalibError(f"nothing called {what!r} ships; there is {' and '.join(known)}.")
    print(known[what](start("ship", profile)))


@app.command()
def runs(
    why: Annotated[str, typer.Option(help="KEY: how this run differs from its neighbours")] = "",
    drop: Annotated[str, typer.Option(help="KEY: delete this run")] = "",
    as_json: JsonOption = False,
) -> None:
    """List recorded runs, explain why one was computed anew, or delete one."""
    from qalib.study.store import command_runs

    print(command_runs(why=why, drop=drop, as_json=as_json))


@bench.command("train")
def bench_train(
    rounds: Annotated[int, typer.Option(help="interleaved rounds; the median counts")] = 5,
    as_json: JsonOption = False,
) -> None:
    """Training throughput against the defaults of transformers, on the same questions."""
    from qalib.benches.training import TrainBench
    from qalib.study.stages import bench_training, bench_training_table

    run = bench_training(TrainBench(rounds=rounds))
    print(json.dumps(run.metrics, indent=2) if as_json else bench_training_table(run))


@bench.command("bytes")
def bench_bytes(
    rounds: Annotated[int, typer.Option(help="interleaved rounds; the median counts")] = 5,
    as_json: JsonOption = False,
) -> None:
    """The byte-level page, literally, against this kit's reader, and what each variant costs."""
    from qalib.benches.byte_training import ByteBench
    from qalib.study import byte_bench_stage

    run = byte_bench_stage.bench_bytes(ByteBench(rounds=rounds))
    print(json.dumps(run.metrics, indent=2) if as_json else byte_bench_stage.bench_bytes_table(run))


DataOption = Annotated[str, typer.Option(help="almanac (embedded), a source or a file")]
SkimmerOption = Annotated[str, typer.Option(help="folder of a trained skimmer; default: shipped")]


@bench.command("skim")
def bench_skim(
    data: DataOption = "almanac",
    skimmer: SkimmerOption = "",
    rounds: Annotated[int, typer.Option(help="interleaved rounds of a cell, at most")] = 25,
    seconds: Annotated[float, typer.Option(help="for all cells together, about")] = 200.0,
    full: Annotated[bool, typer.Option("--full", help="every length, batch and rival")] = False,
    lengths: Annotated[str, typer.Option(help="lengths to print; empty: all")] = "384",
    as_json: JsonOption = False,
) -> None:
    """Skimming against its rivals on the same questions: speed-ups, ideals, where the time goes."""
    from qalib.study import skim_bench_stage as stage

    shown = _whole_numbers(lengths)
    run = stage.bench_skim(stage.configured(data, rounds, seconds, full), skimmer)
    print(json.dumps(run.metrics, indent=2) if as_json else stage.bench_text(run, shown))


@bench.command("answer")
def bench_answer(
    data: DataOption = "almanac",
    skimmer: SkimmerOption = "",
    questions: Annotated[int, typer.Option(help="how many, the first of the data")] = 200,
    rounds: Annotated[int, typer.Option(help="interleaved rounds; the median counts")] = 3,
    as_json: JsonOption = False,
) -> None:
    """Whole questions per second: tokenising, reading and decoding, with EM and F1."""
    from qalib.benches.watch import AnswerBench
    from qalib.study import skim_bench_stage as stage

    run = stage.bench_answers(AnswerBench(questions, rounds), data, skimmer)
    print(json.dumps(run.metrics, indent=2) if as_json else stage.answer_text(run))


def _whole_numbers(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not all(word.isdigit() for word in words):
        raise QalibError(f"{text!r}: give whole numbers with commas, as in --lengths 128,384.")
    return [int(word) for word in words]


def main() -> None:
    """Run the command line; a user's mistake is one line and exit status 2."""
    try:
        app()
    except QalibError as error:
        print(f"qalib: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("qalib: interrupted; what was recorded is kept.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
