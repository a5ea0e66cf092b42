"""The tables of the README, written from the recorded runs.

``data/results/table.toml`` defines them:

    inputs = { test = "f7d2..." }   # content hash of the test data of all rows
    [columns]
    F1 = "metrics.f1"               # heading = where the number is in a run
    minutes = "env.minutes"
    "trained on" = "trained.metrics.questions"  # in the run that its weights are from
    "F1, paper" = "paper"
    [[row]]
    label = "MiniLM-L6 on SQuAD 1.1"
    stage = "score"
    where = { reader = "encoder" }  # what the run's configuration must hold
    inputs = { test = "4cb4..." }   # and its inputs, if not those of the table
    paper = "bst-bert-base-f1"      # a claim of data/paper, if there is one to stand beside it
    trained = "train-encoder-0123456789ab"  # if its inputs do not name its weights

The index of notebooks gives the minutes that they took: ``data/results/minutes.json``, noted from
the stamps of passes that computed everything anew.

Runs that differ in nothing but ``where`` leaves open, as seeds do, share a row: mean and spread.
"""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path

from qalib.errors import QalibError
from qalib.files import pretty, write_atomically
from qalib.paths import ROOT
from qalib.study.claims import Claim, load_claims, markdown_table, mean_and_spread
from qalib.study.run_cache import RECORDS, Run, RunCache, read_records

README = ROOT / "README.md"
NOTEBOOKS, FIGURES = ROOT / "notebooks", ROOT / "figures"
PROFILES = ("laptop", "study")  # the ones whose minutes the index gives
SEEDS = {0: "-", 1: "1 (single)"}
MARKS = "<!-- {}:begin -->", "<!-- {}:end -->"


def readme_table(records: Path = RECORDS) -> str:
    """The table as markdown. Raises QalibError for a damaged record or a broken table.toml."""
    path = records / "table.toml"
    try:
        spec = tomllib.loads(path.read_text(encoding="utf-8"))
        columns, rows = dict(spec["columns"]), list(spec["row"])
        for row in rows:
            row["label"], row["stage"], dict(row.get("where", {}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise QalibError(f"{path}: is no table of columns and rows ({error!r}).") from None
    runs, claims = recorded_runs(records), load_claims()
    table = []
    for row in rows:
        where, inputs = row.get("where", {}), row.get("inputs", spec.get("inputs", {}))
        chosen = [
            run
            for run in runs
            if run.stage == row["stage"]
            and _holds(run.config, where)
            and _holds(run.inputs, inputs)
        ]
        found = [_facts(run, runs, row.get("trained", "")) for run in chosen]
        cells = {name: _cell(found, place) for name, place in columns.items()}
        for name in [name for name, place in columns.items() if place == "paper"]:
            cells[name] = _claimed(row.get("paper", ""), claims, path)
        table.append({"": row["label"], **cells, "seeds": SEEDS.get(len(chosen), str(len(chosen)))})
    return markdown_table(table)


def _facts(run: Run, runs: list[Run], trained: str) -> dict:
    """What a cell may show of a run, and of the run that its weights are from."""
    weights = run.inputs.get("weights", run.inputs.get("weights.0"))
    source = [r for r in runs if (r.short == trained if trained else r.key == weights)]
    own = {"metrics": run.metrics, "env": run.env, "config": run.config}
    return own | ({"trained": {"metrics": source[0].metrics}} if source else {})


def _claimed(name: str, claims: Mapping[str, Claim], path: Path) -> str:
    if name and name not in claims:
        raise QalibError(f"{path}: no paper claims {name!r}; the claims stand in data/paper.")
    return claims[name].value if name else "-"


def recorded_runs(records: Path = RECORDS) -> list[Run]:
    """Every recorded run, by stage and key."""
    return [run for path in sorted(records.glob("*.jsonl")) for run in read_records(path).values()]


def update_readme(records: Path = RECORDS, path: Path = README) -> bool:
    """Put the table between the README's markers; returns whether anything changed.

    Raises QalibError if the README has no markers. Without a table.toml there is nothing to do.
    """
    old, new = _before_and_after(records, path)
    if new != old:
        write_atomically(path, new)
    return new != old


def check_readme(records: Path = RECORDS, path: Path = README) -> list[str]:
    """What is wrong with the README's table: an empty list if it is the one of the records."""
    old, new = _before_and_after(records, path)
    mend = "run `python -m qalib study run-notebooks --profile study`"
    return [] if old == new else [f"{path.name}: its results are not those recorded; {mend}."]


def _before_and_after(records: Path, path: Path) -> tuple[str, str]:
    if not (records / "table.toml").exists():
        return "", ""
    text = path.read_text(encoding="utf-8")
    new = _with_table(text, "results", readme_table(records), path)
    if (records / "minutes.json").exists():
        new = _with_table(new, "notebooks", notebook_index(records), path)
    return text, new


def _with_table(text: str, name: str, table: str, readme: Path) -> str:
    begin, end = (mark.format(name) for mark in MARKS)
    head, found_begin, rest = text.partition(begin)
    _, found_end, tail = rest.partition(end)
    if not found_begin or not found_end:
        raise QalibError(f"{readme}: has no lines {begin} and {end} to put a table between.")
    return f"{head}{begin}\n\n{table}\n\n{end}{tail}"


def notebook_index(records: Path = RECORDS, notebooks: Path = NOTEBOOKS) -> str:
    """The notebooks with their questions and the minutes that they were measured to take."""
    minutes = json.loads((records / "minutes.json").read_text(encoding="utf-8"))
    rows = []
    for path in sorted(notebooks.glob("[0-9][0-9]_*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        title = "".join(cells[0]["source"]).splitlines()[0].removeprefix("# ")
        taken = minutes.get(path.stem, {})
        shown = {name: f"{taken[name]:.0f}" if name in taken else "-" for name in PROFILES}
        columns = {f"{name}, minutes": value for name, value in shown.items()}
        rows.append(
            {"notebook": f"[{path.stem}](notebooks/{path.name})", "question": title, **columns}
        )
    return markdown_table(rows)


def note_minutes(records: Path = RECORDS, figures: Path = FIGURES) -> None:
    """Note the minutes of passes on this machine: all that their runs and their cells took."""
    path = records / "minutes.json"
    minutes = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    cache = RunCache(records=records)
    for profile in PROFILES:
        for stamp in sorted((figures / profile).glob("*.stamp.json")):
            told = json.loads(stamp.read_text(encoding="utf-8"))
            try:
                computed = sum(cache.get(run).env["seconds"] for run in told["runs"])
            except QalibError:  # its runs were removed: what they took is no longer known
                continue
            name = stamp.name.removesuffix(".stamp.json")
            whole = max(computed, told["seconds"]) / 60
            minutes.setdefault(name, {})[profile] = max(1, round(whole))
    write_atomically(path, pretty(minutes))


def _holds(config: object, where: Mapping) -> bool:
    """Whether every key of ``where`` is in the configuration with that value."""
    return isinstance(config, dict) and all(
        _holds(config.get(key), value) if isinstance(value, dict) else config.get(key) == value
        for key, value in where.items()
    )


def _cell(found: list[dict], place: str) -> str:
    values = []
    for value in found:
        for key in place.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, int | float):
            values.append(value)
    if values and all(isinstance(value, int) and value == values[0] for value in values):
        return f"{values[0]:,}"  # a count
    return mean_and_spread(values) if values else "-"
