"""What ``python -m qalib train`` can be asked for, by name."""

from collections.abc import Callable, Sequence
from functools import partial

from qalib.study import (
    byte_final,
    byte_stages,
    distill_bytes,
    distill_settings,
    distill_stages,
    distill_study,
    ship_skim,
    skim_beyond,
    skim_promise,
    skim_study,
    stages,
)
from qalib.study.entries import Run
from qalib.study.session import Study


def stages_by_name(study: Study) -> dict[str, Callable[[Study], Sequence[Run]]]:
    """Every training that can be run by itself; those of several seeds run the study's own."""
    known: dict[str, Callable[[Study], Sequence[Run]]] = {
        "encoder": lambda study: [stages.encoder(study)],
        "bytes: final": byte_final.final_reader,
        "skimmer": lambda study: [ship_skim.skimmer_run(study)],
        "skim: plain": partial(skim_study.plain_runs, seeds=1),
        "skim: joint": partial(skim_study.joint_runs, seeds=1),
    }
    for name in byte_stages.VARIANTS:
        known[f"bytes: {name}"] = partial(byte_stages.train_variant, name=name)
        known[f"bytes: {name}, longer"] = partial(byte_stages.trained_longer, name=name)
    for alpha in skim_study.asked(study).alphas:
        known[f"skim: alpha {alpha:g}"] = partial(skim_study.tuning_run, alpha=alpha)
    for name in ("plain", "frozen", *skim_study.ablations(study)):
        known[f"ablation: {name}"] = partial(_one, name=name)
    known["predictors"] = lambda study: list(skim_beyond.predictors(study).values())
    for name in ("plain", "combined"):
        known[f"all data: {name}"] = partial(_on_all_data, name=name)
    for name in skim_beyond.VARIANTS:
        known[f"beyond: {name}"] = partial(_beyond, name=name)
    known["promise: predictors"] = lambda study: [skim_promise.predictors(study)]
    return known | _readers_of_words(study)


def _readers_of_words(study: Study) -> dict[str, Callable[[Study], Sequence[Run]]]:
    """The word-level readers: teachers, what they know, students of them."""
    plan = distill_settings.asked(study)
    known: dict[str, Callable[[Study], Sequence[Run]]] = {}
    for rate, epochs in plan.choices:
        name = distill_stages.choice_name(rate, epochs)
        known[f"words: tuning {name}"] = partial(_tuning, rate=rate, epochs=epochs)
    for number in range(plan.teachers):
        known[f"words: teacher {number}"] = partial(_teacher, number=number)
    for fold in range(plan.folds):
        known[f"words: without fold {fold}"] = partial(_without_fold, fold=fold)
    known["teachers"] = lambda study: list(distill_study.mining(study).values())
    for number in range(plan.seeds):
        known[f"student {number}"] = partial(_student, number=number)
    for name in distill_study.row_names(study):
        for number in range(plan.row_seeds):
            known[f"student: {name}" + f" {number}" * (number > 0)] = partial(
                _row, name=name, number=number
            )
    known["other students"] = distill_bytes.trained
    return known


def _one(study: Study, name: str) -> list[Run]:
    return [skim_study.ablation(study, name)]


def _beyond(study: Study, name: str) -> list[Run]:
    return [skim_beyond.trained(study, name)]


def _on_all_data(study: Study, name: str) -> list[Run]:
    return list(skim_beyond.on_all_data(study, [name]).values())


def _tuning(study: Study, rate: float, epochs: int) -> list[Run]:
    return [distill_stages.tuning_run(study, rate, epochs)]


def _teacher(study: Study, number: int) -> list[Run]:
    return [distill_stages.teacher(study, number)]


def _without_fold(study: Study, fold: int) -> list[Run]:
    return [distill_study.outside_teacher(study, fold)]


def _student(study: Study, number: int) -> list[Run]:
    return [distill_study.student(study, number)]


def _row(study: Study, name: str, number: int) -> list[Run]:
    return [distill_study.row(study, name, number)]
