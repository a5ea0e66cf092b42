"""The command line: ``python -m qalib COMMAND``. ``--help`` lists the commands."""

import json
import signal
import sys
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
bench = typer.Typer(help="Benchmarks: interleaved rounds, ratios in one run.", no_args_is_help=True)
runs = typer.Typer(help="List or delete cached runs.", no_args_is_help=True)
app.add_typer(bench, name="bench")
app.add_typer(runs, name="runs")

ProfileOption = Annotated[str, typer.Option("--profile", "-P", help="ci, laptop, study or paper")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON")]
RoundsOption = Annotated[int, typer.Option(help="interleaved rounds; the median is reported")]


@app.command("answer")
def _answer(
    question: Annotated[str, typer.Argument(help="the question")] = "",
    passage: Annotated[Path | None, typer.Option(help="text file; default: stdin")] = None,
    questions: Annotated[Path | None, typer.Option(help="a file of questions, one a line")] = None,
    dataset: Annotated[Path | None, typer.Option(help="a SQuAD or MRQA file to answer")] = None,
    output: Annotated[Path | None, typer.Option(help="file for its predictions (JSON)")] = None,
    n_best: Annotated[int, typer.Option(help="number of answers")] = 1,
    as_json: JsonOption = False,
    checkpoint: Annotated[str, typer.Option(help="checkpoint folder; default: shipped")] = "",
    null: Annotated[bool, typer.Option(help="allow 'no answer' (SQuAD 2.0 models)")] = False,
    skim: Annotated[bool, typer.Option("--skim", help="enable block skimming")] = False,
    min_recall: Annotated[
        float | None, typer.Option(help="skimming: minimum share of answers kept, e.g. 0.995")
    ] = None,
    max_flops: Annotated[
        float | None, typer.Option(help="skimming: maximum FLOPs relative to full inference")
    ] = None,
    max_f1_drop: Annotated[
        float | None, typer.Option(help="skimming: maximum drop in F1 points, e.g. 0.5")
    ] = None,
    window_threshold: Annotated[
        float | None,
        typer.Option(help="skimming: stop windows whose best block scores below, e.g. 0.1"),
    ] = None,
) -> None:
    """Answer a question about a passage, a list of questions, or a whole data set.

    Operating points (--min-recall, --max-f1-drop) were calibrated on held-out questions and hold
    for questions of the same kind.
    """
    from qalib.answer_command import answer_command

    answer_command(
        question,
        passage,
        questions,
        dataset,
        output,
        n_best,
        as_json,
        checkpoint,
        null,
        skim,
        min_recall,
        max_flops,
        max_f1_drop,
        window_threshold,
    )


@app.command("score")
def score_command(dataset: Path, predictions: Path) -> None:
    """Score PREDICTIONS (one JSON object: id to answer text) as the official SQuAD scripts do."""
    from qalib.metrics import score_files

    print(json.dumps(score_files(dataset, predictions), indent=2))


@app.command("fetch")
def fetch_command(
    names: Annotated[list[str] | None, typer.Argument(help="sources; none: list them")] = None,
) -> None:
    """Download data by name, verify it and print its path; without a name, list the sources."""
    from qalib.data.sources import fetch

    if not names:
        print(_sources())
    for name in names or ():
        print(fetch(name))


def _sources() -> str:
    from tabulate import tabulate

    from qalib.data.sources import SOURCES, find

    rows = [
        [source.name, "here" if find(source.name) else "", source.questions, source.file]
        for source in SOURCES.values()
    ]
    return tabulate(rows, headers=["name", "", "questions", "file"], intfmt=",")


@app.command("run-notebooks")
def run_notebooks_command(
    profile: Annotated[
        str, typer.Option("--profile", "-P", help="default: laptop; with --check: study")
    ] = "",
    only: Annotated[list[str] | None, typer.Option(help="notebook numbers, e.g. 00")] = None,
    force: Annotated[bool, typer.Option(help="compute every run again")] = False,
    check: Annotated[bool, typer.Option(help="only report what is out of date")] = False,
    param: Annotated[list[str] | None, typer.Option("-p", help="NAME=VALUE for a notebook")] = None,
) -> None:
    """Run the notebooks with papermill and regenerate their figures."""
    from qalib.study.notebooks import command

    profile = profile or ("study" if check else "laptop")
    raise typer.Exit(command(profile, only, force, check, param or ()))


app.command("figures", help="The same as run-notebooks.")(run_notebooks_command)


@app.command("train")
def train_command(
    stage: Annotated[str, typer.Argument(help="encoder, bytes, block-skim or words")],
    profile: ProfileOption = "laptop",
    seed: Annotated[int, typer.Option(help="random seed")] = 0,
) -> None:
    """Train a reader with the settings of a profile; with several GPUs: accelerate launch -m qalib.

    The notebooks train all others: variants, ablations and students.
    """
    from qalib.study.session import train_by_name

    run = train_by_name(stage, profile, seed)
    print(f"{run.short}: {json.dumps(run.metrics)}")


@app.command("export-checkpoint")
def export_checkpoint(
    what: Annotated[str, typer.Argument(help="reader or skimmer")] = "reader",
    profile: ProfileOption = "study",
) -> None:
    """Write data/checkpoints from what a profile trained: adapter, scores, model card."""
    from qalib.study.publish import export_reader, export_skimmer
    from qalib.study.session import open_study

    known = {"reader": export_reader, "skimmer": export_skimmer}
    if what not in known:
        raise QalibError(f"{what!r} is not shipped; choose {' or '.join(known)}.")
    print(known[what](open_study("export-checkpoint", profile)))


@runs.command("list")
def runs_list(as_json: JsonOption = False) -> None:
    """List the runs of the store and the records, the newest first."""
    from tabulate import tabulate

    from qalib.study.run_cache import RunCache

    rows = RunCache().rows()
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        numbers = {k: v for k, v in row["metrics"].items() if isinstance(v, int | float)}
        row["metrics"] = ", ".join(f"{k} {v:.6g}" for k, v in list(numbers.items())[:4])
    print(tabulate(rows, headers="keys", tablefmt="github") if rows else "No runs yet.")


@runs.command("delete")
def runs_delete(
    key: Annotated[str, typer.Argument(help="name or beginning of a key")],
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """Delete a run from the store; records are never deleted."""
    from qalib.study.run_cache import RunCache

    if not yes:
        typer.confirm(f"Delete the run {key} from the store?", abort=True)
    for folder in RunCache().delete(key):
        print(f"Deleted {folder}")


DataOption = Annotated[str, typer.Option(help="almanac (embedded), a source or a file")]
SkimmerOption = Annotated[str, typer.Option(help="folder of a trained skimmer; default: shipped")]
SecondsOption = Annotated[float, typer.Option(help="time for the whole benchmark, about")]


@bench.command("training")
def _bench_training(rounds: RoundsOption = 5, as_json: JsonOption = False) -> None:
    """Training throughput against the defaults of transformers, on the same questions."""
    from qalib.study import bench

    print(bench.training_report(rounds=rounds, as_json=as_json))


@bench.command("byte-models")
def _bench_byte_models(rounds: RoundsOption = 5, as_json: JsonOption = False) -> None:
    """Byte-level readers with equally many parameters: training and answering throughput."""
    from qalib.study import bench

    print(bench.byte_model_report(rounds=rounds, as_json=as_json))


@bench.command("block-skim")
def _bench_block_skim(
    data: DataOption = "almanac",
    skimmer: SkimmerOption = "",
    seconds: SecondsOption = 200.0,
    as_json: JsonOption = False,
) -> None:
    """Skimming against other ways to run the same encoder on the same batches."""
    from qalib.study import bench

    print(bench.block_skim_report(data, skimmer, seconds, as_json=as_json))


@bench.command("end-to-end")
def _bench_end_to_end(
    data: DataOption = "almanac",
    skimmer: SkimmerOption = "",
    questions: Annotated[int, typer.Option(help="the first so many of the data")] = 200,
    rounds: RoundsOption = 3,
    as_json: JsonOption = False,
) -> None:
    """Questions per second with tokenisation and decoding, and EM and F1."""
    from qalib.study import bench

    print(bench.end_to_end_report(data, skimmer, questions, rounds, as_json=as_json))


class _Interrupted(BaseException):
    """Ctrl-C; typer would answer a KeyboardInterrupt with an empty line."""


def _interrupt(*_) -> None:
    raise _Interrupted


def main() -> None:
    """Run the command line; a user error is one line and exit status 2."""
    signal.signal(signal.SIGINT, _interrupt)
    try:
        app()
    except QalibError as error:
        print(f"qalib: {error}", file=sys.stderr)
        sys.exit(2)
    except _Interrupted:
        print("qalib: interrupted; finished runs and checkpoints are kept.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
