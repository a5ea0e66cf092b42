"""The commands of the study: notebooks, the runs of its profiles; and all benchmarks."""

import json
from typing import Annotated

import typer

from qalib.commands.options import JsonOption, ModelOption, SkimmerOption
from qalib.errors import QalibError

app = typer.Typer(help="The study: notebooks, runs, benchmarks.", no_args_is_help=True)
bench = typer.Typer(help="Benchmarks: interleaved rounds, ratios in one run.", no_args_is_help=True)
machine = typer.Typer(help="How fast this machine trains and answers.", no_args_is_help=True)
app.add_typer(bench, name="bench")

ProfileOption = Annotated[str, typer.Option("--profile", "-P", help="ci, laptop, study or paper")]
DataOption = Annotated[str, typer.Option(help="almanac (embedded), a source or a file")]
RoundsOption = Annotated[int, typer.Option(help="interleaved rounds; the median is reported")]


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


@app.command("train")
def study_train_command(
    stage: Annotated[str, typer.Argument(help="encoder, bytes, block-skim or words")],
    profile: ProfileOption = "laptop",
    seed: Annotated[int, typer.Option(help="random seed")] = 0,
) -> None:
    """Train a reader with the settings of a profile, also under ``accelerate launch``.

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


@app.command("runs")
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


@machine.command("train")
def bench_train(rounds: RoundsOption = 5, as_json: JsonOption = False) -> None:
    """Training throughput against the defaults of transformers, on the same questions."""
    from qalib.study import bench

    print(bench.training_report(rounds=rounds, as_json=as_json))


@machine.command("answer")
def bench_answer(
    data: DataOption = "almanac",
    model: ModelOption = "",
    skimmer: SkimmerOption = "",
    questions: Annotated[int, typer.Option(help="the first so many of the data")] = 200,
    rounds: RoundsOption = 3,
    as_json: JsonOption = False,
) -> None:
    """Questions per second with tokenisation and decoding, and EM and F1."""
    from qalib.study import bench

    print(bench.answer_report(model, skimmer, data, questions, rounds, as_json=as_json))


@bench.command("block-skim")
def bench_block_skim_command(
    data: DataOption = "almanac",
    skimmer: SkimmerOption = "",
    seconds: Annotated[float, typer.Option(help="time for the whole benchmark, about")] = 200.0,
    as_json: JsonOption = False,
) -> None:
    """Skimming against other ways to run the same encoder on the same batches."""
    from qalib.study import bench

    print(bench.block_skim_report(data, skimmer, seconds, as_json=as_json))
