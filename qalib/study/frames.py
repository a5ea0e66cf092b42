"""Runs as tables: one tidy DataFrame that a notebook goes on with in pandas."""

from collections.abc import Mapping, Sequence

import pandas as pd

from qalib.study.run_cache import Run, flatten


def runs_frame(runs: Mapping[str, Run | Sequence[Run]], config: Sequence[str] = ()) -> pd.DataFrame:
    """A row per run: name, seed, run, every scalar metric, and the ``config`` fields named.

    Fields of the configuration are named with dots ("base.train.learning_rate").
    """
    rows = []
    for name, several in runs.items():
        for run in [several] if isinstance(several, Run) else several:
            settings = flatten(run.config)
            metrics = {k: v for k, v in flatten(run.metrics).items() if not isinstance(v, list)}
            row = {"name": name, "seed": run.env.get("seed"), "run": run.short}
            rows.append({**row, **{field: settings.get(field) for field in config}, **metrics})
    return pd.DataFrame(rows)


def logs_frame(runs: Mapping[str, Run | Sequence[Run]]) -> pd.DataFrame:
    """The training logs of runs below each other, with the columns name and seed in front."""
    parts = []
    for name, several in runs.items():
        for number, run in enumerate([several] if isinstance(several, Run) else several):
            log = run.log()
            log.insert(0, "seed", number if run.env.get("seed") is None else run.env["seed"])
            log.insert(0, "name", name)
            parts.append(log)
    return pd.concat(parts, ignore_index=True)
