"""Students: a word-level reader that learns from gold answers and from what an ensemble knows.

A student has the seed, the first weights and the order of questions of a single reader, so the two
differ by what they are taught and by nothing else.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from qalib.data.squad import Dataset
from qalib.distill.distractors import Mined, Miner, random_distractors
from qalib.distill.lessons import Lessons
from qalib.distill.losses import DistillConfig
from qalib.distill.schedule import Schedule, Stage
from qalib.errors import QalibError
from qalib.study.distill_settings import WordTraining
from qalib.study.distill_stages import learn, learnt_windows, parted, put_trained, word_task
from qalib.study.distill_teaching import lessons_of, outside_mined
from qalib.study.entries import Run
from qalib.study.parallel import get_or_run
from qalib.study.stages import note_data
from qalib.study.store import Store
from qalib.train import Task

DISTRACTORS = ("mined", "random", "out-of-fold")


@dataclass(frozen=True)
class StudentTraining:
    """All that a student depends on, next to its data and what its teachers know.

    ``base``: as a plain reader is trained. ``distractors``: the wrong answers that are unlearnt,
    those mined from the teachers, random ones in their places, or mined out-of-fold. ``part``:
    which stage of the schedule this is; joint training has one.
    """

    base: WordTraining = field(default_factory=WordTraining)
    loss: DistillConfig = field(default_factory=DistillConfig)
    teachers: tuple[int, ...] = (0,)
    distractors: str = "mined"
    schedule: Schedule = field(default_factory=Schedule)
    part: int = 0

    def __post_init__(self):
        if self.distractors not in DISTRACTORS:
            known = ", ".join(DISTRACTORS)
            raise QalibError(f"distractors must be one of {known}, not {self.distractors!r}.")
        if not self.teachers:
            raise QalibError("a student needs at least one teacher.")
        if self.base.smoothing:
            raise QalibError("a student's labels are smoothed by loss.smoothing, not base's.")


def train_student(
    store: Store,
    data: Dataset,
    config: StudentTraining,
    knowledge: Run,
    start: Run | None = None,
    outside: Run | None = None,
    force: bool | str = False,
) -> Run:
    """Train a word-level reader on ``data`` and on what its teachers know of it.

    ``start``: the run of the stage before this one. ``outside``: the ``teacher-knowledge`` run
    that out-of-fold distractors come from. Keeps log.jsonl, with the parts of the loss, and
    weights.safetensors. Raises QalibError if the teachers have not read the data.
    """
    if (outside is None) == (config.distractors == "out-of-fold"):
        raise QalibError(
            "knowledge from outside goes with distractors out-of-fold, only and always."
        )
    if (start is None) == (config.part > 0):
        raise QalibError("a run to start from goes with a later stage, only and always.")

    def compute(work: Path) -> dict:
        from qalib.readers.mnemonic_reader import build_mnemonic_reader

        note_data(work, data)
        base = config.base
        rest, held = parted(data, base.held_out)
        reader = build_mnemonic_reader(base.reader, seed=base.seed)
        if start is not None:
            put_trained(reader, start)
        task, stage = student_task(reader, rest, config, knowledge, outside)
        base = replace(base, train=replace(base.train, max_steps=stage.steps))
        return {"stage": stage.name, **learn(work, reader, task, base, len(rest), held)}

    inputs = {"data": data.content_sha256, "knowledge": knowledge.key}
    inputs |= {name: run.key for name, run in (("start", start), ("outside", outside)) if run}
    return get_or_run(store, "train-student", config, compute, inputs=inputs, force=force)


def student_task(
    reader, data: Dataset, config: StudentTraining, knowledge: Run, outside: Run | None = None
) -> tuple[Task, Stage]:
    """What a student learns: gold answers with the lesson of its teachers; and in which stage."""
    from qalib.distill.characters import tokenizer_hash, word_places
    from qalib.distill.objective import Distillation

    windows = learnt_windows(reader, data, config.base)
    task = word_task(windows)
    stage = config.schedule.stages(config.loss, all_steps(task, config.base))[config.part]
    lessons = lessons_of(knowledge, config.teachers)
    distillation = Distillation(
        task.collate,
        word_places(windows, data.examples),
        lessons,
        stage.config,
        distractors(lessons, data, config, outside),
        tokenizer_hash(reader.vocabulary.tokenizer),
    )
    taught = replace(task, collate=distillation.collate, loss=distillation)
    return replace(taught, told=distillation.told), stage


def all_steps(task: Task, config: WordTraining) -> int:
    """How many steps plain training takes with this task."""
    from qalib.data.batches import training_batches

    schedule = config.train
    plans = (
        training_batches(task.lengths, schedule.tokens_per_batch, config.seed, epoch)
        for epoch in range(schedule.epochs)
    )
    total = sum(len(plan) for plan in plans)
    return min(total, schedule.max_steps) if schedule.max_steps else total


def distractors(
    lessons: Lessons, data: Dataset, config: StudentTraining, outside: Run | None
) -> Mined:
    """The wrong answer of every row of the lessons that the student is to unlearn."""
    if config.distractors == "mined":
        return lessons.mined()
    if config.distractors == "random":
        known = {example.id for example in data.examples}  # a student may read a part of the rows
        mined = lessons.mined()
        learnt = np.array([place.id in known for place in lessons.places])
        mined = Mined(mined.spans, np.where(learnt, mined.confidence, 0.0))
        return random_distractors(mined, lessons.places, Miner(data.examples), config.base.seed)
    return outside_mined(lessons, data, outside)


def stage_names(config: StudentTraining) -> list[str]:
    """The stages of a student's schedule, in order."""
    return [stage.name for stage in config.schedule.stages(config.loss, 1000)]
