"""What notebooks 05 and 07 train: joint training against plain, the ablations, the predictors."""

from dataclasses import dataclass, field, replace

from qalib.data.squad import Dataset, hold_out
from qalib.skim.loss import SkimLossConfig
from qalib.skim.predictors import PredictorConfig
from qalib.study.entries import Run
from qalib.study.session import Study
from qalib.study.skim_scores import Skimming, evaluate_skimmed, judge_runs
from qalib.study.skim_training import SkimTraining, train_skim
from qalib.study.stages import EncoderTraining, evaluate_encoder, train_encoder


@dataclass(frozen=True)
class SkimStudy:
    """One set-up of the encoder, with and without predictors beside it."""

    base: EncoderTraining = field(default_factory=EncoderTraining)  # that of the section "encoder"
    epochs: int = 1  # instead of its own
    learning_rate: float = 0.0  # 0 = its own
    start: str = "pretrained"  # or "shipped"
    predictor: PredictorConfig = field(default_factory=lambda: PredictorConfig("diagonal"))
    loss: SkimLossConfig = field(default_factory=SkimLossConfig)
    predictor_rate: float = 10.0  # times the encoder's learning rate
    seeds: int = 1  # of plain and of joint training
    alphas: tuple[float, ...] = (1.0, 0.1)  # tried on passages held out
    held_out: float = 0.1
    early: int = 2  # the layers of the tables: the paper's 4 and 6 of 12
    middle: int = 3
    sizes: tuple[int, ...] = (1, 8, 16, 64, 128)  # of blocks, beside the base's
    threshold: float = 0.5  # of skimming during training
    kinds: tuple[str, ...] = ("random", "lexical", "diagonal", "question", "late", "tokens")

    def joint(self, **changes) -> SkimTraining:
        """Joint training as the paper has it, but for ``changes``."""
        whole = SkimTraining(self.base, self.predictor, self.loss, self.start, self.predictor_rate)
        return replace(whole, **changes)


def asked(study: Study) -> SkimStudy:
    """The profile's section, with the encoder's own as its base."""
    plan, base = study.section("skim", SkimStudy), study.section("encoder", EncoderTraining)
    rate = plan.learning_rate or base.train.learning_rate
    schedule = replace(base.train, epochs=plan.epochs, learning_rate=rate)
    return replace(plan, base=replace(base, train=schedule))


def tuning(study: Study) -> dict[float, tuple[Run, Run]]:
    """Joint training with each alpha on the ablations' passages but some, and its scores on these.

    -> by alpha: the ``train-skim`` run and the ``evaluate`` run on the passages held out.
    """
    return {alpha: tuning_run(study, alpha) for alpha in asked(study).alphas}


def tuning_run(study: Study, alpha: float) -> tuple[Run, Run]:
    """One of :func:`tuning`; alpha 0 is an encoder that learns nothing from its predictors."""
    plan, data = asked(study), study.data("train", "skim_ablations")
    base = replace(plan.base, held_out=plan.held_out, seed=study.seed)
    config = plan.joint(base=base, loss=replace(plan.loss, alpha=alpha))
    run = study.keep(train_skim(study.store, data, config, force=study.force))
    held = hold_out(data, plan.held_out)[1]
    return run, evaluate_skimmed(study, "skim: tuning", run, test=held)


def plain_runs(study: Study, seeds: int = 0) -> list[Run]:
    """The encoder trained to answer and to nothing else, one run a seed (0 = as the profile)."""
    plan, data = asked(study), study.data("train", "skim_ablations")
    bases = [replace(plan.base, seed=study.seed + n) for n in range(seeds or plan.seeds)]
    return [study.keep(plain_reader(study, data, base)) for base in bases]


def plain_reader(study: Study, data: Dataset, base: EncoderTraining) -> Run:
    """The encoder of one configuration, trained on some data to answer and to nothing else."""
    plan = asked(study)
    if plan.start == "pretrained":
        return train_encoder(study.store, data, base, force=study.force)
    silent = plan.joint(base=base, loss=replace(plan.loss, alpha=0.0), detached=True)
    return train_skim(study.store, data, silent, force=study.force)


def joint_runs(study: Study, seeds: int = 0) -> list[Run]:
    """The same with the paper's predictors at every layer, one run a seed."""
    plan, data = asked(study), study.data("train", "skim_ablations")
    runs = []
    for number in range(seeds or plan.seeds):
        config = plan.joint(base=replace(plan.base, seed=study.seed + number))
        runs.append(study.keep(train_skim(study.store, data, config, force=study.force)))
    return runs


def score(study: Study, name: str, run: Run, test: Dataset | None = None) -> Run:
    """A reader with or without predictors, reading everything: EM and F1."""
    if run.stage == "train-encoder":
        return evaluate_encoder(study, run, test, f"skim: {name}")
    return evaluate_skimmed(study, f"skim: {name}", run, test=test)


def ablations(study: Study) -> dict[str, SkimTraining]:
    """The rows of the paper's Table 2 that train encoder and predictors together, by name."""
    plan = asked(study)
    early = (plan.early,)
    rows = {
        "joint": plan.joint(),
        "hand-crafted": plan.joint(predictor=replace(plan.predictor, kind="handcrafted")),
        "one layer": plan.joint(layers=early),
        "skimming in training": plan.joint(skim_at=early, thresholds=(plan.threshold,)),
        "released loss": plan.joint(loss=SkimLossConfig("released", 0.1, 20.0, two_tokens=True)),
        "Eq. 3": plan.joint(predictor=replace(plan.predictor, kind="equation")),
    }
    for size in plan.sizes:
        sized = replace(plan.predictor, block_size=size)
        rows[f"blocks of {size}"] = plan.joint(predictor=sized)
    base = replace(plan.base, seed=study.seed)
    return {name: replace(config, base=base) for name, config in rows.items()}


def ablation(study: Study, name: str) -> Run:
    """One row of Table 2 on the ablations' data: "plain", "frozen" or one of ``ablations``."""
    plan, data = asked(study), study.data("train", "skim_ablations")
    base = replace(plan.base, seed=study.seed)
    if name == "plain":
        return study.keep(plain_reader(study, data, base))
    if name == "frozen":
        frozen = plan.joint(base=base, start="run", frozen=True)
        first = ablation(study, "plain")
        return study.keep(train_skim(study.store, data, frozen, first, force=study.force))
    config = ablations(study)[name]
    return study.keep(train_skim(study.store, data, config, force=study.force))


def ablation_runs(study: Study) -> dict[str, Run]:
    """Every row of Table 2, by name."""
    return {name: ablation(study, name) for name in ("plain", "frozen", *ablations(study))}


def judged(study: Study, runs: dict[str, Run], data: Dataset) -> dict[str, Run]:
    """The blocks of ``data`` as every run with predictors that have learnt sees them."""
    known = {
        name: run
        for name, run in runs.items()
        if run.stage == "train-skim" and run.config["loss"]["alpha"] > 0
    }
    return judge_runs(study, known, data)


def predictor_runs(study: Study, reader: Run, data: Dataset) -> dict[str, Run]:
    """Every kind of predictor, trained beside one reader that stays as it is."""
    plan = asked(study)
    runs = {}
    for kind in plan.kinds:
        predictor = replace(plan.predictor, kind=kind)
        base = replace(plan.base, seed=study.seed)
        config = plan.joint(base=base, start="run", frozen=True, predictor=predictor)
        runs[kind] = study.keep(train_skim(study.store, data, config, reader, force=study.force))
    return runs


def skimmed(study: Study, name: str, run: Run, layer: int, thresholds: list[float]) -> list[Run]:
    """A reader skimming at one layer, at several thresholds."""
    points = [Skimming((layer,), (threshold,)) for threshold in thresholds]
    return [evaluate_skimmed(study, f"skim: {name}", run, point) for point in points]
