"""What distillation costs and saves: a student against an ensemble, a taught step against a plain.

Rivals take turns within one run, so only ratios are read. Reading is the readers' share alone;
answering is all of it, from text to text, of which cutting text into tokens is done once for an
ensemble, too.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from qalib.data.squad import Dataset, Example, make_dataset
from qalib.errors import QalibError
from qalib.study.distill_ensemble import reader_of
from qalib.study.distill_scores import (
    SINGLE,
    STUDENT_ROW,
    ensemble_name,
    ensembles,
)
from qalib.study.distill_settings import WordTraining, ablation_data, asked
from qalib.study.distill_stages import (
    answerer_of,
    learnt_windows,
    singles,
    teachers,
    trained_reader,
    training_of,
    word_task,
)
from qalib.study.distill_students import StudentTraining, student_task
from qalib.study.distill_study import knowledge, student
from qalib.study.entries import Run
from qalib.study.session import Study
from qalib.study.stages import note_data
from qalib.train import Task, choose_precision, make_optimizer


@dataclass(frozen=True)
class DistillBench:
    """How long to measure. ``steps`` of training for each rival in a round."""

    rounds: int = 5
    questions: int = 64  # of the test data, answered in each round
    batches: tuple[int, ...] = (1, 16)  # questions at a time
    steps: int = 6

    def __post_init__(self):
        if min(self.rounds, self.questions, self.steps, *self.batches, len(self.batches)) < 1:
            raise QalibError("distill_bench: rounds, questions, batches and steps are 1 or more.")


def bench(study: Study) -> Run:
    """Latency of single reader, student and ensemble, and the cost of a student's training step.

    Metrics: ``latency``, rows with batch, reader, milliseconds a question and ratio to the single
    reader, of reading and of answering; ``step``, rows with milliseconds and ratio to plain.
    """
    config = study.section("distill_bench", DistillBench)
    members, single, taught = teachers(study), singles(study)[0], student(study)
    lessons, test, data = knowledge(study), study.data("test"), ablation_data(study)

    def compute(work: Path) -> dict:
        note_data(work, test, data)
        readers = {SINGLE: trained_reader(single), STUDENT_ROW: trained_reader(taught)}
        for size in sorted({*asked(study).counts, asked(study).teachers} - {1}):
            readers[ensemble_name(study, size)] = reader_of(members[:size])
        how = training_of(single)
        step = {"step": step_rows(data, asked_lesson(study), lessons, config)}
        return {"latency": latency_rows(readers, how, test.examples, config), **step}

    inputs = {"student": taught.key, "knowledge": lessons.key, "test": test.content_sha256}
    inputs |= {f"teacher {n}": run.key for n, run in enumerate(members)}
    run = study.store.get_or_run("bench-distill", config, compute, inputs=inputs, force=study.force)
    return study.keep(run)


def asked_lesson(study: Study) -> StudentTraining:
    """The student with all losses and all teachers, whose step is measured."""
    plan = asked(study)
    return StudentTraining(plan.base, plan.loss, tuple(range(plan.teachers)))


def latency_rows(
    readers: Mapping[str, torch.nn.Module],
    how: WordTraining,
    examples: Sequence[Example],
    config: DistillBench,
) -> list[dict]:
    """Milliseconds a question of every reader, by batch size; ratios are to the first reader."""
    chosen = list(examples[: config.questions])
    answerers = {name: answerer_of(reader, how) for name, reader in readers.items()}
    rows = []
    for batch in config.batches:
        parts = [chosen[i : i + batch] for i in range(0, len(chosen), batch)]
        ready = [answerers[SINGLE].batch(answerers[SINGLE].cut(p), p) for p in parts]
        reading = {n: _reading(answerer, ready) for n, answerer in answerers.items()}
        answering = {n: _answering(answerer, parts) for n, answerer in answerers.items()}
        kinds = {"reading": reading, "answering": answering}
        timed = {kind: turns(rivals, config.rounds) for kind, rivals in kinds.items()}
        for name in answerers:
            row: dict = {"batch": batch, "reader": name}
            for kind, seconds in timed.items():
                row[f"{kind}_ms"] = 1000 * statistics.median(seconds[name]) / len(chosen)
                row[f"{kind}_ratio"] = ratio(seconds[name], seconds[SINGLE])
            rows.append(row)
    return rows


def _reading(answerer, batches: Sequence) -> Callable[[], object]:
    """Forward passes over batches that are ready, as the answerer makes them."""
    fast = answerer.precision == "bf16"

    @torch.inference_mode()
    def read() -> None:
        with torch.autocast(answerer.device.type, torch.bfloat16, enabled=fast):
            for batch in batches:
                answerer.reader(batch.to(answerer.device)).start_logits.sum().item()

    return read


def _answering(answerer, parts: Sequence[list[Example]]) -> Callable[[], object]:
    """All that lies between the text of some questions and their answers."""
    return lambda: [answerer.answer_many(part) for part in parts]


def step_rows(
    data: Dataset, config: StudentTraining, lessons: Run, bench: DistillBench
) -> list[dict]:
    """Milliseconds of a training step, plain and with cached knowledge, data work included."""
    from qalib.data.batches import training_batches

    budget = config.base.train.tokens_per_batch
    part = make_dataset(f"{data.name}-first", data.examples[: budget // 8], data.path)
    reader = fresh_reader(config.base)
    plain = word_task(learnt_windows(reader, part, config.base))
    taught, _ = student_task(reader, part, config, lessons)
    plan = training_batches(plain.lengths, budget, seed=0, epoch=0)
    plan = (plan * bench.steps)[: bench.steps]
    rivals = {
        name: _learning(fresh_reader(config.base), task, config.base, plan)
        for name, task in (("plain", plain), ("taught", taught))
    }
    seconds = turns(rivals, bench.rounds)
    return [
        {
            "step": name,
            "milliseconds": 1000 * statistics.median(seconds[name]) / len(plan),
            "ratio": ratio(seconds[name], seconds["plain"]),
        }
        for name in rivals
    ]


def fresh_reader(config: WordTraining):
    """A reader of a configuration before it has learnt anything."""
    from qalib.readers.mnemonic_reader import build_mnemonic_reader

    return build_mnemonic_reader(config.reader, seed=config.seed)


def _learning(
    reader, task: Task, config: WordTraining, plan: Sequence[Sequence[int]]
) -> Callable[[], object]:
    """The steps of a plan, as ``qalib.train`` takes them."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    fast = choose_precision(config.train.precision, device)[0] == "bf16"
    reader = reader.to(device).train()
    optimizer = make_optimizer(reader, config.train)

    def learn() -> None:
        for rows in plan:
            batch = task.collate(rows).to(torch.device(device))
            with torch.autocast(device, torch.bfloat16, enabled=fast):
                output = reader(batch)
            task.loss(output, batch).mean().backward()
            torch.nn.utils.clip_grad_norm_(reader.parameters(), config.train.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()

    return learn


def turns(rivals: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every rival in every round, after one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for turn in range(rounds + 1):
        for name, work in rivals.items():
            begin = time.perf_counter()
            work()
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def side_by_side(
    study: Study,
    clock: Run,
    sets: Mapping[str, Dataset],
    scored: Mapping[str, Mapping[str, Sequence[Run]]],
) -> pd.DataFrame:
    """What a question costs, one at a time and from text to text, and the F1 that it buys.

    ``scored``: the ``evaluate`` runs of the main table on these test sets. columns reader,
    milliseconds, times (the single reader's), and each test set: F1, the mean over seeds
    """
    rows = [row for row in clock.metrics["latency"] if row["batch"] == 1]
    names = {"reader": "reader", "milliseconds": "answering_ms", "times": "answering_ratio"}
    table = {name: [row[key] for row in rows] for name, key in names.items()}
    for place, runs in scored.items():
        f1 = {name: statistics.mean(run.metrics["f1"] for run in of) for name, of in runs.items()}
        for size, run in ensembles(study, sets[place], place).items():
            f1.setdefault(ensemble_name(study, size), run.metrics["f1"])
        table[place] = [f1[row["reader"]] for row in rows]
    return pd.DataFrame(table)
