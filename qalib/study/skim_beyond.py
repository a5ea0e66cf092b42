"""Notebook 07: what it trains beside Table 2, and how its readers skim.

Five readers that the paper does not have, each in all else as joint training:

    combined          the predictor that looks at question, hidden states, words and neighbours
    sentences         the same with blocks that end where sentences end
    taught            combined, trained on under a teacher: itself, reading everything
    taught, skimming  the same, with blocks left out while it learns
    answer head       the same, and what is left out may still be the answer

"taught" is there to be compared with: it has seen the data as often as the two below it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from torch import nn

from qalib.answer import AnswerConfig, Answerer
from qalib.data.batches import Batch
from qalib.data.features import Window, WindowConfig
from qalib.data.squad import Dataset, Example
from qalib.errors import QalibError
from qalib.skim.sentences import place_blocks, sentence_blocks
from qalib.study import skim_study
from qalib.study.entries import Run
from qalib.study.session import Study
from qalib.study.skim_scores import Skimming, evaluate_skimmed, judge_runs
from qalib.study.skim_training import (
    SkimTraining,
    train_skim,
    trained_skim_reader,
    training_of,
)
from qalib.study.stages import evaluate, sample

VARIANTS = ("combined", "sentences", "taught", "taught, skimming", "answer head")
NEEDED = ("plain", "joint", "released loss")  # rows of Table 2 that much is compared with


@dataclass(frozen=True)
class Beyond:
    """What notebook 07 runs of Table 2, what it adds, and how sharply the additions skim."""

    rows: tuple[str, ...] = ()  # of Table 2; () = all
    variants: tuple[str, ...] = VARIANTS
    predictor: str = "combined"  # kind of theirs
    threshold: float = 0.2  # of the readers that skim while they learn
    teacher: float = 1.0
    later: int = 4  # a layer behind those of Table 2
    shares: tuple[float, ...] = (0.4, 0.6, 0.8)  # of the tokens, that are read on
    rows_every: int = 1  # the rows' blocks are judged in every so many-th test question
    every: int = 1  # the additions are scored on every so many-th
    long_every: int = 1  # and predictors on every so many-th of the longer ones
    long: WindowConfig = field(default_factory=lambda: WindowConfig(max_length=512))

    def __post_init__(self):
        if self.rows and (missing := [name for name in NEEDED if name not in self.rows]):
            raise QalibError(f"rows must name {missing[0]!r}, which is compared with others.")
        if unknown := [name for name in self.variants if name not in VARIANTS]:
            raise QalibError(
                f"there is no variant {unknown[0]!r}; there are {', '.join(VARIANTS)}."
            )


def asked(study: Study) -> Beyond:
    """The profile's section."""
    return study.section("skim_beyond", Beyond)


def layers(study: Study) -> tuple[int, ...]:
    """The layers that are looked at: early, middle and a later one."""
    plan = skim_study.asked(study)
    return tuple(sorted({plan.early, plan.middle, asked(study).later}))


# --- trainings ---------------------------------------------------------------------------------


def table2_runs(study: Study) -> dict[str, Run]:
    """The rows of Table 2 that the profile asks for, by name."""
    known = ("plain", "frozen", *skim_study.ablations(study))
    rows = asked(study).rows or known
    if unknown := [name for name in rows if name not in known]:
        raise QalibError(f"Table 2 has no row {unknown[0]!r}; it has {', '.join(known)}.")
    return {name: skim_study.ablation(study, name) for name in known if name in rows}


def score_rows(study: Study, runs: dict[str, Run]) -> dict[str, Run]:
    """EM and F1 of every row, reading everything. A frozen reader answers as the plain one does."""
    rows = {name: runs["plain"] if name == "frozen" else run for name, run in runs.items()}
    return {
        name: skim_study.score(study, "plain" if name == "frozen" else name, run)
        for name, run in rows.items()
    }


def judge_rows(study: Study, runs: dict[str, Run]) -> dict[str, Run]:
    """The blocks of ``judged_part`` as every row's predictors see them; the plain reader has none.

    Where it starts from the reader that ships, some stand beside it, but they learn nothing.
    """
    judges = {name: run for name, run in runs.items() if name != "plain"}
    return skim_study.judged(study, judges, judged_part(study))


def judged_part(study: Study) -> Dataset:
    """The test questions in whose passages the rows' predictors judge blocks."""
    return _part(study, study.data("test"), asked(study).rows_every)


def predictors(study: Study) -> dict[str, Run]:
    """Every kind of predictor, trained beside the plain reader of Table 2 on its data."""
    plain = skim_study.ablation(study, "plain")
    return skim_study.predictor_runs(study, plain, study.data("train", "skim_ablations"))


def variants(study: Study) -> dict[str, SkimTraining]:
    """The configuration of every addition, by name."""
    plan, beyond = skim_study.asked(study), asked(study)
    base = replace(plan.base, seed=study.seed)
    combined = plan.joint(base=base, predictor=replace(plan.predictor, kind=beyond.predictor))
    taught = replace(combined, start="run", teacher=beyond.teacher)
    skims = replace(taught, skim_at=(plan.middle,), thresholds=(beyond.threshold,))
    configs = (
        combined,
        replace(combined, sentences=True),
        taught,
        skims,
        replace(skims, answer_head=True),
    )
    return dict(zip(VARIANTS, configs, strict=True))


def trained(study: Study, name: str) -> Run:
    """One addition, on the data of Table 2."""
    config, data = variants(study)[name], study.data("train", "skim_ablations")
    start = trained(study, "combined") if config.start == "run" else None
    return study.keep(train_skim(study.store, data, config, start, force=study.force))


def on_all_data(study: Study, names: Sequence[str] = ("plain", "combined")) -> dict[str, Run]:
    """The plain reader and "combined", trained on all of the profile's data, by name."""
    plan, data = skim_study.asked(study), study.data("train")
    base = replace(plan.base, seed=study.seed)
    return {
        name: study.keep(skim_study.plain_reader(study, data, base))
        if name == "plain"
        else study.keep(train_skim(study.store, data, variants(study)[name], force=study.force))
        for name in names
    }


def variant_runs(study: Study) -> dict[str, Run]:
    """The additions that the profile asks for, by name."""
    return {name: trained(study, name) for name in asked(study).variants}


# --- readers that skim -------------------------------------------------------------------------


def part(study: Study) -> Dataset:
    """The test questions that skimming readers answer."""
    return _part(study, study.data("test"), asked(study).every)


def _part(study: Study, data: Dataset, every: int) -> Dataset:
    found = sample(data, every) if every > 1 else data
    study.datasets[found.name] = found
    return found


def answers(
    study: Study, name: str, run: Run, layer: int, thresholds: Mapping[float, float]
) -> dict[float, Run]:
    """A reader that skims at a layer: EM, F1 and the share it reads, on ``part``.

    ``thresholds`` by the share of tokens that each is to keep; the result has those shares and 1,
    for reading everything. A reader that was trained to skim treats what it leaves out as it did
    in training.
    """
    config, test = training_of(run), part(study)
    restore = "forward" if config.skim_at else "minus-infinity"
    found = {1.0: evaluate_skimmed(study, f"skimming: {name}", run, test=test)}
    answer = _answer_sentences if config.sentences else evaluate_skimmed
    for share, threshold in thresholds.items():
        point = Skimming((layer,), (threshold,), restore=restore)
        found[share] = answer(study, f"skimming: {name}", run, point, test)
    return found


def _answer_sentences(study: Study, name: str, run: Run, skimming: Skimming, test: Dataset) -> Run:
    """``evaluate_skimmed`` for a reader whose blocks end where sentences end."""
    config = training_of(run)
    settings = AnswerConfig(windows=config.base.windows)

    def answer(test: Dataset) -> tuple[dict, dict]:
        model = trained_skim_reader(run, study.store)
        model.skimmer.tune(**asdict(skimming))
        answerer = SentenceAnswerer(model, settings, config.predictor.block_size)
        found = answerer.answer_all(test.examples)
        texts = {e.id: a.candidates[0].text for e, a in zip(test.examples, found, strict=True)}
        return texts, {"read": sum(answered.read for answered in found) / len(found)}

    about = {"answer": settings, "skim": asdict(skimming), "blocks": "sentences"}
    return evaluate(study, name, {"weights": run.key}, answer, about, test)


class SentenceAnswerer(Answerer):
    """Answers with a skimming reader whose blocks, of about ``size`` tokens, are sentences."""

    def __init__(self, reader: nn.Module, config: AnswerConfig, size: int):
        super().__init__(reader, config)
        self.size = size

    def batch(self, windows: list[Window], examples: Sequence[Example]) -> Batch:
        """See :class:`Answerer`."""
        batch = super().batch(windows, examples)
        cut = [sentence_blocks(w, examples[w.example].context, self.size) for w in windows]
        of = place_blocks(cut, windows, batch.mask.shape[1])
        return replace(batch, inputs={**batch.inputs, "blocks": of})


# --- longer passages ---------------------------------------------------------------------------


def longer(study: Study, data: Dataset | None = None) -> Dataset:
    """Questions with their paragraphs among their neighbours, see ``qalib.data.long``.

    Those of ``data``, or every so many-th of the test data.
    """
    from qalib.data.long import LongConfig, lengthen
    from qalib.readers.encoder_reader import build_encoder

    beyond = asked(study)
    tokenizer = build_encoder(skim_study.asked(study).base.encoder).tokenizer
    size = LongConfig(beyond.long.max_length)
    if data is not None:
        return lengthen(data, tokenizer, size)
    return _part(study, lengthen(study.data("test"), tokenizer, size), beyond.long_every)


def judge_longer(study: Study, runs: dict[str, Run], data: Dataset) -> dict[str, Run]:
    """The blocks of ``longer`` as predictors see them that learnt on short passages.

    As ``judge_blocks``, but whole passages are read at once, in windows of the section's size.
    """
    return judge_runs(study, runs, data, asked(study).long)
