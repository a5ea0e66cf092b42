"""The recorded benchmarks of skimming: by command anew, for a notebook once; their tables."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from qalib.benches.race import (
    BERT_BASE,
    MINILM,
    OLD,
    PLAIN,
    RIVALS,
    Grid,
    Model,
    SkimBench,
    padded_name,
    usable,
)
from qalib.benches.watch import STAGES, AnswerBench
from qalib.data.squad import Dataset
from qalib.errors import QalibError
from qalib.study.entries import Run
from qalib.study.session import Study
from qalib.study.store import Store

STAGE, ANSWERS = "bench-skim", "bench-answer"
RANDOM = "random"  # word pieces instead of questions
EMBEDDED = "almanac"


@dataclass(frozen=True)
class StageClock:
    """Where the time goes: one length and batch size of the first grid, in some dtypes."""

    length: int = 384
    batch: int = 1
    rounds: int = 9
    dtypes: tuple[str, ...] = ("fp32",)


@dataclass(frozen=True)
class SkimCosts:
    """All that ``bench skim`` measures, and on which questions.

    ``data``: "almanac" (embedded), "random" (word pieces), a source by name, or a file.
    """

    bench: SkimBench = field(default_factory=SkimBench)
    clock: StageClock = field(default_factory=StageClock)
    data: str = EMBEDDED


def bench_skim(config: SkimCosts | None = None, skimmer: str = "") -> Run:
    """Skimming and its rivals, and where the time goes; always measured anew.

    ``skimmer``: the folder of a trained one beside the reader that ships; "": the one that ships,
    if there is one. Raises QalibError for data that are not there and a skimmer that does not fit.
    """
    return _recorded(Store(), config or SkimCosts(), skimmer, force=True)


def wide(grid: Grid) -> Grid:
    """A grid with every length, batch size, dtype and rival, torch.compile too."""
    return replace(
        MINILM,
        **{name: getattr(grid, name) for name in ("name", "layers", "width", "heads")},
        **{"skim_at": grid.skim_at, "kept": grid.kept, "rivals": RIVALS},
    )


def configured(data: str, rounds: int, seconds: float, full: bool = False) -> SkimCosts:
    """What the command line asks for; ``full`` widens both grids and takes as long as it takes."""
    grids = tuple(map(wide, (MINILM, BERT_BASE))) if full else (MINILM, BERT_BASE)
    return SkimCosts(SkimBench(grids, rounds, min(2, rounds), seconds), data=data)


def skim_costs(study: Study) -> Run:
    """The same, measured once for a profile: section ``skim_bench``."""
    config = study.section("skim_bench", SkimCosts)
    return study.keep(_recorded(study.store, config, "", study.force))


def bench_answers(
    config: AnswerBench | None = None, data: str = EMBEDDED, skimmer: str = ""
) -> Run:
    """Whole questions per second with the answerer; always measured anew. Arguments as above."""
    config = config or AnswerBench()
    asked, folder = questions(data), trained_folder(skimmer)
    if asked is None:
        raise QalibError("random word pieces have no answers; name a data set.")

    def compute(work: Path) -> dict:
        from qalib.benches.watch import bench_answers as measure
        from qalib.study.stages import note_data

        note_data(work, asked)
        grid = replace(MINILM, dtypes=config.dtypes)
        model = Model.of(grid, SkimBench((grid,)), _load(folder))
        return {"rows": measure(config, model, asked), **_about(folder)}

    inputs = _inputs(asked, folder)
    return Store().get_or_run(ANSWERS, config, compute, inputs=inputs, force=True)


def _recorded(store: Store, config: SkimCosts, skimmer: str, force: bool | str) -> Run:
    asked, folder = questions(config.data), trained_folder(skimmer)

    def compute(work: Path) -> dict:
        from qalib.study.stages import note_data

        if asked is not None:
            note_data(work, asked)
        models = {g.name: Model.of(g, config.bench, _load(folder)) for g in config.bench.grids}
        return _measure(config, models, asked) | _about(folder)

    return store.get_or_run(STAGE, config, compute, inputs=_inputs(asked, folder), force=force)


def _measure(config: SkimCosts, models: dict[str, Model], asked: Dataset | None) -> dict:
    from qalib.benches.entrants import by_chance
    from qalib.benches.skimming import batches_of
    from qalib.benches.skimming import bench_skim as measure
    from qalib.benches.watch import time_stages

    found = measure(config.bench, models, asked)
    clock, grid = config.clock, config.bench.grids[0]
    model = models[grid.name]
    batch = batches_of(model.reader, clock.length, clock.batch, asked, config.bench.seed)[0]
    told = {
        f"skims, {share:g} kept": by_chance(model, share, config.bench.seed)(batch)
        for share in grid.kept
    }
    stages = [
        row | {"model": grid.name, "length": clock.length, "batch": clock.batch}
        for dtype in usable(clock.dtypes)
        for row in time_stages(model, dtype, batch, told, clock.rounds)
    ]
    return found | {"stages": stages}


def questions(name: str) -> Dataset | None:
    """The data that a name stands for, see ``SkimCosts``; None for random word pieces."""
    from qalib.data.almanac import AlmanacConfig, build_almanac
    from qalib.data.formats import load_any
    from qalib.data.sources import load

    if name == RANDOM:
        return None
    if name == EMBEDDED:  # as long as the almanac gets, to fill 512 word pieces
        return build_almanac(AlmanacConfig(questions=400, length=2500))
    return load_any(name) if Path(name).is_file() else load(name)


def trained_folder(skimmer: str) -> Path | None:
    """Where a trained skimmer is: the folder named, or the one that ships; None without."""
    from qalib.skim.storage import SETTINGS, SKIMMER

    if skimmer:
        return Path(skimmer)
    return SKIMMER if (SKIMMER / SETTINGS).is_file() else None


def _load(folder: Path | None):
    """A skimmer that belongs to the reader that ships. Raises QalibError for another one."""
    from qalib.readers.shipped import SHIPPED, checkpoint_hash
    from qalib.skim.storage import load_skimmer

    return load_skimmer(folder, reader=checkpoint_hash(SHIPPED)) if folder else None


def _inputs(data: Dataset | None, folder: Path | None) -> dict[str, str]:
    from qalib.data.squad import file_sha256
    from qalib.readers.shipped import SHIPPED, checkpoint_hash
    from qalib.skim.storage import SETTINGS

    inputs = {"reader": checkpoint_hash(SHIPPED)}
    if data is not None:
        inputs["data"] = data.content_sha256
    if folder is not None and (folder / SETTINGS).is_file():
        inputs["skimmer"] = file_sha256(folder / SETTINGS)
    return inputs


def _about(folder: Path | None) -> dict:
    """What a reader of the numbers must know besides the environment."""
    import torch

    said = [] if folder else ["no trained skimmer is here, so nobody skims as trained"]
    return {"capability": torch.backends.cpu.get_cpu_capability(), "notes": said}


# --- tables ------------------------------------------------------------------------------------


def bench_table(run: Run) -> pd.DataFrame:
    """All rows of a ``bench-skim`` run, seconds as milliseconds.

    columns model, length, batch, dtype, rival, ms, ms_low, ms_high, speedup, ..., over_padded,
    kept, ideal, ideal_macs, efficiency, difference, rounds
    """
    table = pd.DataFrame(run.metrics["rows"])
    for column in ("seconds", "seconds_low", "seconds_high"):
        table[column.replace("seconds", "ms")] = 1000 * table.pop(column)
    first = ["model", "length", "batch", "dtype", "rival", "ms", "ms_low", "ms_high"]
    return table[first + [column for column in table if column not in first]]


def stage_table(run: Run) -> pd.DataFrame:
    """Where the time goes: milliseconds per question by stage, a row for each way of reading.

    ``of plain``: predictor and bookkeeping as percent of the honest baseline's time.
    """
    table = pd.DataFrame(run.metrics["stages"]).set_index(["model", "length", "batch", "dtype"])
    numbers = [name for name in (*STAGES, "total") if name in table]
    table[numbers] = 1000 * table[numbers]
    plain = table.loc[table["reads"] == PLAIN, "total"]
    extra = table["predictor"] + table["bookkeeping"]
    table["of plain"] = 100 * extra / plain.reindex(table.index)
    first = ["model", "length", "batch", "dtype", "reads"]
    return table.reset_index()[[*first, *numbers, "of plain"]]


def summary(table: pd.DataFrame, lengths: Sequence[int] = (384,)) -> pd.DataFrame:
    """The rows that a command prints, one line each: speed-ups with their quartiles."""
    rows = table[table["length"].isin(lengths)] if lengths else table
    shown = rows[["model", "length", "batch", "dtype", "rival"]].copy()
    shown["ms"] = rows["ms"].map("{:.1f}".format)
    shown["speed-up"] = [
        _range(*row) for row in rows[["speedup", "speedup_low", "speedup_high"]].to_numpy(float)
    ]
    names = {"kept": ".2f", "ideal": ".2f", "ideal_macs": ".2f", "efficiency": ".2f"}
    names |= {"over_padded": ".1f", "difference": ".2g"}
    for name, form in names.items():
        shown[name] = [_number(value, form) for value in rows[name].to_numpy(float)]
    headings = {"ideal": "Eq. 6", "ideal_macs": "multiply-adds", "over_padded": f"over {OLD}"}
    return shown.rename(columns=headings)


def _number(value: float, form: str) -> str:
    return "" if pd.isna(value) else format(value, form)


def _range(middle: float, low: float, high: float) -> str:
    return "" if pd.isna(middle) else f"{middle:.2f} ({low:.2f} to {high:.2f})"


def bench_text(run: Run, lengths: Sequence[int] = (384,)) -> str:
    """A ``bench-skim`` run as text: the rivals at some lengths, and where the time goes."""
    stages = stage_table(run).drop(columns=["model"])
    said = [
        _machine(run),
        summary(bench_table(run), lengths).to_markdown(index=False, disable_numparse=True),
        "Speed-up: over the same model in the same dtype that reads everything without padding. "
        "Kept: share of the tokens that the last layer reads. Eq. 6 and multiply-adds: ideal "
        f"speed-ups; efficiency: speed-up / Eq. 6. Over {OLD}: speed-up over fp32 padded to "
        f"{OLD}. Difference: the largest of a logit from the baseline's.",
        "Where the time goes, milliseconds per question; predictor and bookkeeping as percent of "
        "the time of the plain model:",
        stages.round(2).astype(object).fillna("").to_markdown(index=False),
        *left_out(run),
    ]
    return "\n\n".join(said)


def left_out(run: Run) -> list[str]:
    """What a run did not measure, in words."""
    rows, notes = pd.DataFrame(run.metrics["rows"]), list(run.metrics["notes"])
    for model, cells in rows.groupby("model", sort=False):
        lengths, sizes = (sorted(set(cells[name])) for name in ("length", "batch"))
        rivals, dtypes = cells["rival"].nunique(), ", ".join(dict.fromkeys(cells["dtype"]))
        notes.append(
            f"{model}: lengths {', '.join(map(str, lengths))}, batches of "
            f"{', '.join(map(str, sizes))}, {dtypes}, {rivals} ways of reading; nothing else was "
            "measured"
        )
    return [f"{note}." for note in notes]


def answer_text(run: Run) -> str:
    """A ``bench-answer`` run as text."""
    rows = pd.DataFrame(run.metrics["rows"])
    shown = rows[["rival", "dtype"]].copy()
    triple = ["questions_per_second", "questions_per_second_low", "questions_per_second_high"]
    shown["questions/s"] = [f"{m:.1f} ({a:.1f} to {b:.1f})" for m, a, b in rows[triple].to_numpy()]
    for name in ("ratio", "over_padded", "exact_match", "f1"):
        shown[name] = [_number(value, ".2f") for value in rows[name].to_numpy(float)]
    shown["read"] = rows["read"].map("{:.0%}".format)
    shown = shown.rename(columns={"over_padded": f"over {padded_name(OLD)}, fp32"})
    table = shown.to_markdown(index=False, disable_numparse=True)
    return "\n\n".join([_machine(run), table, *(f"{note}." for note in run.metrics["notes"])])


def _machine(run: Run) -> str:
    env, found = run.env, run.metrics
    return (
        f"{env['cpu']['model']}, {found['capability']}, {env['torch_threads']} threads, torch "
        f"{env['packages']['torch']}; median and quartiles of interleaved rounds"
    )
