"""What ``python -m qalib train`` can be asked for, by name."""

from collections.abc import Callable, Sequence
from functools import partial

from qalib.study import byte_final, byte_stages, ship_skim, skim_beyond, skim_study, stages
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
    return known


def _one(study: Study, name: str) -> list[Run]:
    return [skim_study.ablation(study, name)]


def _beyond(study: Study, name: str) -> list[Run]:
    return [skim_beyond.trained(study, name)]


def _on_all_data(study: Study, name: str) -> list[Run]:
    return list(skim_beyond.on_all_data(study, [name]).values())
