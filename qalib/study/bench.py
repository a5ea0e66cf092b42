"""The reports of ``python -m qalib bench``: every benchmark measured anew, as text or as JSON.

Progress goes to the standard error output, a line every few seconds.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from qalib.data.schema import Dataset
from qalib.study.stages import benchmarks, skim_benchmarks


def print_progress(line: str) -> None:
    """Show a line while something is measured."""
    print(f"bench: {line}", file=sys.stderr, flush=True)


def training_report(rounds: int = 5, as_json: bool = False) -> str:
    """Training throughput, from the defaults of transformers to qalib."""
    config = benchmarks.TrainingBenchmark(rounds=rounds)
    rows = benchmarks.bench_training(config, print_progress)
    if as_json:
        return json.dumps(rows, indent=2)
    names = ["setup", *interval_columns("tokens_per_second"), "speedup"]
    return f"{machine()}\n\n{as_table(rows, names)}"


def byte_model_report(rounds: int = 5, as_json: bool = False) -> str:
    """The byte-level page taken literally against qalib, and the cost of every variant."""
    config = benchmarks.ByteModelBenchmark(rounds=rounds)
    found = benchmarks.bench_byte_models(config, progress=print_progress)
    if as_json:
        return json.dumps(found, indent=2)
    setups = as_table(found["rows"], ["setup", "questions_per_second", "speedup"])
    speeds = ["train_questions_per_second", "answer_questions_per_second"]
    variants = as_table(found["variants"], ["variant", "parameters", "macs", *speeds])
    lengths = f"{found['question']} characters about a passage of {found['passage']}"
    return (
        f"{machine()}\n\nTraining the same reader:\n\n{setups}\n\nVariants with equally many "
        f"parameters; multiply-adds (macs) of a question of {lengths}:\n\n{variants}"
    )


def block_skim_report(
    data: str = "almanac",
    skimmer: str = "",
    seconds: float = 200.0,
    full: bool = False,
    as_json: bool = False,
) -> str:
    """Block-Skim against other ways to process fewer tokens, in about ``seconds``.

    ``full`` times every length, batch size and dtype, however long that takes.
    """
    config = skim_benchmarks.BlockSkimBenchmark(seconds=seconds, keep_time=True)
    if full:
        wide = {"lengths": (128, 256, 384, 512), "batches": (1, 4, 16)}
        wide |= {"dtypes": skim_benchmarks.DTYPES}
        grids = [{**vars(grid), **wide} for grid in config.grids]
        grids = tuple(skim_benchmarks.Grid(**grid) for grid in grids)
        config = skim_benchmarks.BlockSkimBenchmark(grids, seconds=seconds)
    trained = load_trained(skimmer)
    found = skim_benchmarks.time_block_skim(config, bench_data(data), trained, print_progress)
    if as_json:
        return json.dumps(found, indent=2)
    place = ["model", "length", "batch", "dtype", "reader"]
    names = [*place, *interval_columns("speedup"), "speedup_over_padded"]
    names += ["kept", "ideal_eq6", "ideal_macs", "efficiency", "logit_difference", "rounds"]
    milliseconds = [
        {k: 1000 * v if k in (*skim_benchmarks.STAGES, "total") else v for k, v in row.items()}
        for row in found["stages"]
    ]
    stages = ["reader", "dtype", *skim_benchmarks.STAGES, "total"]
    return "\n\n".join(
        [
            machine(),
            as_table(found["rows"], names),
            "speedup: over the full encoder in the same dtype without padding (quartiles over "
            "rounds); over_padded: over fp32 padded to 384; kept: fraction of the tokens in the "
            "last layer; ideal: speed-ups by Eq. 6 and by multiply-adds; efficiency: measured / "
            "Eq. 6.",
            "Milliseconds a question by stage of a pass:",
            as_table(milliseconds, stages),
            *(f"{note}." for note in found["notes"]),
        ]
    )


def end_to_end_report(
    data: str = "almanac",
    skimmer: str = "",
    questions: int = 200,
    rounds: int = 3,
    as_json: bool = False,
) -> str:
    """Whole questions per second, with EM and F1."""
    from qalib.models.pretrained import load_reader, windows_of

    config = benchmarks.EndToEndBenchmark(questions, rounds, windows=windows_of())
    rows = benchmarks.bench_end_to_end(
        config, bench_data(data), load_reader(), load_trained(skimmer), print_progress
    )
    if as_json:
        return json.dumps(rows, indent=2)
    names = ["reader", "dtype", *interval_columns("questions_per_second"), "speedup"]
    names += ["speedup_over_padded", "exact_match", "f1", "token_fraction"]
    return f"{machine()}\n\n{as_table(rows, names)}"


def bench_data(name: str) -> Dataset:
    """A data set by name or file; "almanac" is the embedded corpus with its longest passages."""
    from qalib.data.corpus import CorpusConfig, build_corpus
    from qalib.data.formats import load_any
    from qalib.data.sources import load

    if name == "almanac":
        return build_corpus(CorpusConfig(questions=400, length=2500))
    return load_any(name) if Path(name).is_file() else load(name)


def load_trained(folder: str = ""):
    """The skimmer in a folder, or the published one; None if that is missing.

    Raises QalibError for a skimmer that was trained with another reader.
    """
    from qalib.models.pretrained import DEFAULT_CHECKPOINT, checkpoint_hash
    from qalib.skim.storage import DEFAULT_SKIMMER, SETTINGS, load_skimmer

    if not folder and not (DEFAULT_SKIMMER / SETTINGS).is_file():
        return None
    return load_skimmer(folder or DEFAULT_SKIMMER, reader_hash=checkpoint_hash(DEFAULT_CHECKPOINT))


def machine() -> str:
    """Processor, threads and versions, in a line."""
    import torch

    from qalib.study.provenance import environment

    env = environment()
    return (
        f"{env['cpu']['model']}, {torch.backends.cpu.get_cpu_capability()}, "
        f"{env['torch_threads']} threads, torch {env['packages']['torch']}; median of interleaved "
        "rounds"
    )


def interval_columns(name: str) -> list[str]:
    """A column and its quartiles."""
    return [name, f"{name}_low", f"{name}_high"]


def as_table(rows: Sequence[Mapping], names: Sequence[str]) -> str:
    """Some columns as a text table, numbers with three digits; empty where there is none."""
    from tabulate import tabulate

    cells = [[row.get(name) for name in names] for row in rows]
    headers = [name.replace("_", " ") for name in names]
    return tabulate(cells, headers=headers, floatfmt=",.3g", intfmt=",", missingval="")
