"""The commands of the study: notebooks, the runs of its profiles, the published checkpoints."""

from typing import Annotated

import typer

from qalib.commands.options import JsonOption
from qalib.commands.output import to_json
from qalib.errors import QalibError

app = typer.Typer(help="The study: notebooks, runs, checkpoints.", no_args_is_help=True)


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
    """Run the notebooks with papermill and regenerate their figures.

    --check runs nothing: it compares figures, notebooks and, in profile study, the README with
    what they were made from.
    """
    from qalib.files import write_atomically
    from qalib.study.notebooks import parse_params, run_notebooks
    from qalib.study.readme import README, updated_readme
    from qalib.study.stamps import check as stale

    profile = profile or ("study" if check else "laptop")
    if check:
        problems = stale(profile)
        if profile == "study" and updated_readme() != README.read_text(encoding="utf-8"):
            problems.append("README.md: its results are not those recorded; run the notebooks.")
        print("\n".join(problems) or "Everything is up to date.")
        raise typer.Exit(bool(problems))
    failed = list(
        filter(None, run_notebooks(profile, only, force, parse_params(param or ())).values())
    )
    if profile == "study":
        write_atomically(README, updated_readme())
    if failed:
        print(f"\n{len(failed)} failed:", *failed, sep="\n")
        raise typer.Exit(1)


@app.command("export-checkpoint")
def export_checkpoint(
    what: Annotated[str, typer.Argument(help="reader, base or skimmer")] = "reader",
    profile: Annotated[str, typer.Option("--profile", "-P", help="ci to paper")] = "study",
) -> None:
    """Write data/checkpoints from what a profile trained: adapter, scores, model card."""
    from functools import partial

    from qalib.study.publish import export_reader, export_skimmer
    from qalib.study.session import open_study

    base = partial(export_reader, size="base")
    known = {"reader": export_reader, "base": base, "skimmer": export_skimmer}
    if what not in known:
        raise QalibError(f"{what!r} is not shipped; choose {' or '.join(known)}.")
    print(known[what](open_study("export-checkpoint", profile)))


@app.command("runs")
def runs_list(as_json: JsonOption = False) -> None:
    """List the finished runs of the store and the records, the newest first."""
    from tabulate import tabulate

    from qalib.study.run_cache import RunCache

    runs = sorted(RunCache().runs(), key=lambda run: run.env["started"], reverse=True)
    names = ("started", "seconds")
    rows = [
        {"run": run.short, **{name: run.env[name] for name in names}, "metrics": run.metrics}
        for run in runs
    ]
    if as_json:
        print(to_json(rows))
        return
    for row in rows:
        numbers = [(k, v) for k, v in row["metrics"].items() if isinstance(v, int | float)]
        row["metrics"] = ", ".join(f"{k} {v:.6g}" for k, v in numbers[:4])
    print(tabulate(rows, headers="keys", tablefmt="github") if rows else "No runs yet.")
