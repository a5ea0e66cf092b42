"""What notebooks 08 and 09 train with teachers: the student, the rows of Table 5, the controls."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from qalib.distill.schedule import Schedule
from qalib.errors import QalibError
from qalib.study.distill_settings import ablation_data, asked, training_data
from qalib.study.distill_stages import ablated, plain, teachers, train_words
from qalib.study.distill_students import StudentTraining, stage_names, train_student
from qalib.study.distill_teaching import Asking, ask_teachers, without_fold
from qalib.study.entries import Run
from qalib.study.marks import LEAN
from qalib.study.session import Study

T = TypeVar("T")
STUDENT = "all losses"
PLAIN, SMOOTHED = "no distillation", "smoothed labels"  # trained without teachers
OUTSIDE = "out-of-fold distractors"


def knowledge(study: Study) -> Run:
    """What all teachers know of the training data: the cache that every student learns from."""
    plan = asked(study)
    sizes = tuple(sorted({1, *plan.counts, plan.teachers} - {1}))
    asking = Asking(plan.mining, ensembles=sizes)
    run = ask_teachers(study.store, training_data(study), teachers(study), asking, study.force)
    return study.keep(run, LEAN)


def outside_teacher(study: Study, fold: int) -> Run:
    """A teacher that learnt from the ablations' passages but those of one fold."""
    rest = without_fold(ablation_data(study), fold, asked(study).folds)
    return study.keep(train_words(study.store, rest, ablated(study), study.force))


def outside_knowledge(study: Study) -> Run:
    """The confusing answers of teachers that have not learnt from the passages in question.

    Raises QalibError if the profile has no folds.
    """
    plan = asked(study)
    if not plan.folds:
        raise QalibError("distill: folds is 0 in this profile, so nobody is asked out-of-fold.")
    asking = Asking(plan.mining, attention=False, folds=plan.folds)
    outside = [outside_teacher(study, fold) for fold in range(plan.folds)]
    run = ask_teachers(study.store, ablation_data(study), outside, asking, study.force)
    return study.keep(run, LEAN)


def mining(study: Study) -> dict[str, Run]:
    """The ``teacher-knowledge`` runs of the profile, by how they were mined."""
    found = {"in-fold": knowledge(study)}
    return found | ({"out-of-fold": outside_knowledge(study)} if asked(study).folds else {})


def students(study: Study, seeds: int = 0) -> list[Run]:
    """The student with all losses on all training data, one run a seed (0 = as the profile)."""
    return [student(study, number) for number in range(seeds or asked(study).seeds)]


def student(study: Study, number: int = 0) -> Run:
    """The student with all losses on all training data, of one seed counted from the study's."""
    plan = asked(study)
    base = replace(plan.base, seed=study.seed + number)
    config = StudentTraining(base, plan.loss, tuple(range(plan.teachers)))
    taught = (training_data(study), config, knowledge(study))
    return study.keep(train_student(study.store, *taught, force=study.force))


def rows(study: Study, number: int = 0) -> dict[str, StudentTraining]:
    """The students of notebook 09 by name: Table 5 of the paper and the controls it lacks."""
    plan = asked(study)
    whole = StudentTraining(ablated(study, number), plan.loss, tuple(range(plan.teachers)))

    def without(**weights) -> StudentTraining:
        return replace(whole, loss=replace(plan.loss, **weights))

    found = {
        STUDENT: whole,
        "minus KD": without(kd=0.0),
        "minus ATT": without(delta=0.0),
        "minus ANS": without(gamma=0.0),
        "stage-wise": replace(whole, schedule=Schedule("stage-wise")),
        "random distractors": replace(whole, distractors="random"),
    }
    if plan.folds:
        found[OUTSIDE] = replace(whole, distractors="out-of-fold")
    # the last teacher is none whose first weights and order of questions the student has
    found["1 teacher"] = replace(whole, teachers=(plan.teachers - 1,))
    for count in plan.counts:
        found[f"{count} teachers"] = replace(whole, teachers=tuple(range(count)))
    return found


def row_names(study: Study) -> list[str]:
    """All that notebook 09 trains, by name."""
    return [PLAIN, SMOOTHED, *rows(study)]


def row(study: Study, name: str, number: int = 0) -> Run:
    """One reader of notebook 09, on the ablations' data, of one seed counted from the study's.

    Raises QalibError for an unknown name.
    """
    if name in (PLAIN, SMOOTHED):
        return plain(study, asked(study).smoothing if name == SMOOTHED else 0.0, number)
    known = rows(study, number)
    if name not in known:
        raise QalibError(f"no student is called {name!r}; there is {', '.join(row_names(study))}.")
    config, data, taught_by = known[name], ablation_data(study), knowledge(study)
    outside = outside_knowledge(study) if config.distractors == "out-of-fold" else None
    run = None
    for part in range(len(stage_names(config))):
        config = replace(config, part=part)
        run = train_student(study.store, data, config, taught_by, run, outside, study.force)
        study.keep(run)
    return run


def row_runs(study: Study) -> dict[str, list[Run]]:
    """Every reader of notebook 09 by name, one run a seed."""
    seeds = range(asked(study).row_seeds)
    return {name: [row(study, name, number) for number in seeds] for name in row_names(study)}


def by_teachers(study: Study, by_row: Mapping[str, T]) -> dict[int, T]:
    """The rows of notebook 09 that differ by the number of teachers alone, by that number."""
    plan = asked(study)
    names = {1: "1 teacher", plan.teachers: STUDENT}
    names |= {count: f"{count} teachers" for count in plan.counts}
    return {size: by_row[name] for size, name in sorted(names.items())}
