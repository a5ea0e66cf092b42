"""The recorded benchmark of the byte-level readers: by command anew, for a notebook once."""

from dataclasses import replace

from qalib.benches.byte_training import ByteBench, bench_byte_readers
from qalib.study.byte_stages import VARIANTS, ByteStudy, ByteTraining, variant
from qalib.study.entries import Run
from qalib.study.session import Study
from qalib.study.store import Store

STAGE = "bench-bytes"
SPEEDS = ["train_questions_per_second", "answer_questions_per_second"]


def bench_bytes(config: ByteBench | None = None) -> Run:
    """The literal reader against the kit's, and the cost of every variant; always measured anew."""
    config = config or ByteBench()
    return Store().get_or_run(STAGE, config, lambda work: _measure(config), force=True)


def byte_costs(study: Study) -> Run:
    """The same benchmark of the readers of section ``bytes``, measured once for a profile.

    Section ``byte_bench`` says how long; its ``reader`` is that of section ``bytes``.
    """
    base = study.section("bytes", ByteStudy).base.reader
    config = replace(study.section("byte_bench", ByteBench), reader=base, seed=study.seed)
    return study.keep(
        study.store.get_or_run(STAGE, config, lambda work: _measure(config), force=study.force)
    )


def _measure(config: ByteBench) -> dict:
    from qalib.data.almanac import AlmanacConfig, build_almanac

    almanac = AlmanacConfig(questions=config.questions, length=config.length, seed=config.seed)
    base = ByteTraining(reader=config.reader)
    variants = {name: variant(base, name).reader for name in VARIANTS}
    return bench_byte_readers(build_almanac(almanac).examples, config, variants)


def bench_bytes_table(run: Run) -> str:
    """A ``bench-bytes`` run as text: the rivals, how their losses differ, the variants."""
    found, apart = run.metrics, run.metrics["deviation"]
    cpu, threads = run.env["cpu"]["model"], run.env["torch_threads"]
    parts = [
        f"{cpu}, {threads} threads; median of interleaved rounds",
        _tabulated(found["rows"], ["name", "questions_per_second", "lowest", "highest", "ratio"]),
        f"Loss over {len(found['loss_literal'])} steps without dropout, largest deviation from the "
        f"literal one: {apart['literal_once']:.2%} by encoding passages once (rounding), "
        f"{apart['ours_fp32']:.2%} in the kit in fp32, {apart['ours_bf16']:.2%} in bf16.",
        f"Variants at equal parameters; multiply-adds (macs) of a question of {found['question']} "
        f"characters about a passage of {found['passage']}:",
        _tabulated(found["variants"], ["variant", "parameters", "macs", *SPEEDS]),
    ]
    return "\n\n".join(parts)


def _tabulated(rows: list[dict], columns: list[str]) -> str:
    from tabulate import tabulate

    cells = [[row[column] for column in columns] for row in rows]
    headers = [column.replace("_", " ") for column in columns]
    return tabulate(cells, headers=headers, intfmt=",", disable_numparse=[0])
