"""Runs as tidy DataFrames, for further work in pandas."""

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from qalib.study.run_cache import Run

Runs = Mapping[str, Run | Sequence[Run]]


def runs_frame(runs: Runs) -> pd.DataFrame:
    """One row per run: name, seed, run and all scalar metrics; nested ones have dotted names."""
    rows = []
    for name, _, run in _each(runs):
        [metrics] = pd.json_normalize(run.metrics).to_dict("records")
        row = {"name": name, "seed": run.env.get("seed"), "run": run.short}
        rows.append(row | {k: v for k, v in metrics.items() if not isinstance(v, list)})
    return pd.DataFrame(rows)


def logs_frame(runs: Runs) -> pd.DataFrame:
    """The concatenated training logs of runs; the first columns are name and seed (or number)."""
    parts = []
    for name, number, run in _each(runs):
        log = run.log()
        log.insert(0, "seed", number if run.env.get("seed") is None else run.env["seed"])
        log.insert(0, "name", name)
        parts.append(log)
    return pd.concat(parts, ignore_index=True)


def _each(runs: Runs) -> Iterator[tuple[str, int, Run]]:
    """Every run with its name and its number under that name."""
    for name, several in runs.items():
        for number, run in enumerate([several] if isinstance(several, Run) else several):
            yield name, number, run
