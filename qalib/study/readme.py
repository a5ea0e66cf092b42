"""The results table of the README, written from the recorded runs and nothing else.

``data/results/table.toml`` says what stands in it:

    [columns]
    F1 = "metrics.f1"               # heading = where the number is in a run
    minutes = "env.minutes"
    [[row]]
    label = "MiniLM-L6 on SQuAD 1.1"
    stage = "score"
    where = { reader = "encoder" }  # what the run's configuration must hold

Runs that differ in nothing but ``where`` leaves open, as seeds do, share a row: mean and spread.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path

from qalib.errors import QalibError
from qalib.paths import ROOT
from qalib.study.entries import Run, read_run, split_name
from qalib.study.files import write_whole
from qalib.study.paper import markdown_table, mean_and_spread
from qalib.study.store import RECORDS

README = ROOT / "README.md"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def readme_table(records: Path = RECORDS) -> str:
    """The table as markdown. Raises QalibError for a damaged record or a broken table.toml."""
    path = records / "table.toml"
    try:
        spec = tomllib.loads(path.read_text(encoding="utf-8"))
        columns, rows = dict(spec["columns"]), list(spec["row"])
        wanted = [(row["label"], row["stage"], dict(row.get("where", {}))) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise QalibError(f"{path}: is no table of columns and rows ({error!r}).") from None
    runs = recorded_runs(records)
    table = []
    for label, stage, where in wanted:
        chosen = [run for run in runs if run.stage == stage and _holds(run.config, where)]
        cells = {name: _cell(chosen, place) for name, place in columns.items()}
        table.append({"": label, **cells, "runs": str(len(chosen))})
    return markdown_table(table)


def recorded_runs(records: Path = RECORDS) -> list[Run]:
    """Every run that is published in ``records``, in the order of their names."""
    folders = sorted(records.iterdir()) if records.is_dir() else []
    return [read_run(folder) for folder in folders if folder.is_dir() and split_name(folder)]


def update_readme(records: Path = RECORDS, path: Path = README) -> bool:
    """Put the table between the README's markers; returns whether anything changed.

    Raises QalibError if the README has no markers. Without a table.toml there is nothing to do.
    """
    old, new = _before_and_after(records, path)
    if new != old:
        write_whole(path, new)
    return new != old


def check_readme(records: Path = RECORDS, path: Path = README) -> list[str]:
    """What is wrong with the README's table: an empty list if it is the one of the records."""
    old, new = _before_and_after(records, path)
    mend = "run `python -m qalib figures --profile study`"
    return [] if old == new else [f"{path.name}: its results are not those recorded; {mend}."]


def _before_and_after(records: Path, path: Path) -> tuple[str, str]:
    if not (records / "table.toml").exists():
        return "", ""
    text = path.read_text(encoding="utf-8")
    return text, _with_table(text, readme_table(records), path)


def _with_table(text: str, table: str, readme: Path) -> str:
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise QalibError(f"{readme}: has no lines {BEGIN} and {END} to put the results between.")
    return f"{head}{begin}\n\n{table}\n\n{end}{tail}"


def _holds(config: object, where: Mapping) -> bool:
    """Whether every key of ``where`` is in the configuration with that value."""
    return isinstance(config, dict) and all(
        _holds(config.get(key), value) if isinstance(value, dict) else config.get(key) == value
        for key, value in where.items()
    )


def _cell(runs: list[Run], place: str) -> str:
    values = []
    for run in runs:
        value: object = {"metrics": run.metrics, "env": run.env, "config": run.config}
        for key in place.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, int | float):
            values.append(float(value))
    return mean_and_spread(values) if values else "-"
