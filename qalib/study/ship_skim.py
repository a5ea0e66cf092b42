"""Making the skimmer that ships: predictors beside the reader that ships, thresholds, the card.

The reader stays as it is, so that it answers the same when it does not skim. Its predictors learn
on the training passages but some; on these the thresholds are chosen, and there it is counted what
others would do, for those who wish for something else (``qalib.skim.wishes``).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from qalib.answer import LIGHT
from qalib.data.squad import Dataset, hold_out
from qalib.skim.predictors import PredictorConfig
from qalib.skim.recall import question_scores
from qalib.skim.wishes import Calibration, save_calibration
from qalib.study import skim_beyond, skim_study
from qalib.study.entries import Run
from qalib.study.paper import markdown_table
from qalib.study.session import Study
from qalib.study.ship_wishes import calibration, promises_kept
from qalib.study.skim_scores import (
    FOUND,
    KEPT,
    Skimming,
    evaluate_skimmed,
    judge_blocks,
    layer_table,
    read_judged,
)
from qalib.study.skim_training import train_skim, trained_skim_reader

SHORT, LONG = "as they are", "longer"  # passages
EVERYTHING, SKIMS = "reads everything", "skims"  # the reader


@dataclass(frozen=True)
class ShippedSkimmer:
    """Which predictors ship, where they stand, and how much they may lose."""

    predictor: PredictorConfig = field(default_factory=lambda: PredictorConfig("combined"))
    layers: tuple[int, ...] = (2, 3, 4)
    epochs: int = 1
    held_out: float = 0.1  # of the passages
    found: float = 0.99  # share of the held-out questions whose answer is to be kept
    spare: float = 0.1  # rows that would be spared less go on whole; see ``SkimConfig``
    min_tokens: int = 96  # and shorter ones are not judged
    measured: tuple[float, ...] = (0.999, 0.995, 0.99, 0.98, 0.95, 0.9)  # kept, where F1 is scored


def asked(study: Study) -> ShippedSkimmer:
    """The profile's section."""
    return study.section("ship_skim", ShippedSkimmer)


@dataclass(frozen=True)
class Shipped(Skimming):
    """How the skimmer skims as it ships: only where notebook 06 finds that it pays."""

    spare: float = 0.0
    min_tokens: int = 0


def skimmer_run(study: Study) -> Run:
    """The predictors, trained beside the reader that ships."""
    plan, shared = asked(study), skim_study.asked(study)
    schedule = replace(shared.base.train, epochs=plan.epochs)
    base = replace(shared.base, train=schedule, held_out=plan.held_out, seed=study.seed)
    config = shared.joint(
        base=base, start="shipped", frozen=True, predictor=plan.predictor, layers=plan.layers
    )
    return study.keep(train_skim(study.store, study.data("train"), config, force=study.force))


def held_out(study: Study) -> Dataset:
    """The passages that the predictors have not seen, with their questions."""
    return hold_out(study.data("train"), asked(study).held_out)[1]


def held_out_blocks(study: Study, run: Run) -> dict[str, Run]:
    """The blocks of these passages as the predictors see them: as they are, and longer ones."""
    held = held_out(study)
    far = skim_beyond.judge_longer(study, {LONG: run}, skim_beyond.longer(study, held))
    return {SHORT: judge_blocks(study, run, held), **far}


def cheapest(study: Study, judged: Run, depth: int) -> Shipped:
    """The layer that leaves least work when it is to keep ``found`` of the answers judged.

    Work is counted in tokens read by layers: a skim layer l of N leaves l + (N - l) k of N, for
    the share k of the tokens that it keeps (Block-Skim, Eq. 6); what ``spare`` and ``min_tokens``
    leave whole comes on top. ``depth`` is N.
    """
    plan, table = asked(study), layer_table(judged)
    share = plan.found
    work = table.index + (depth - table.index) * table[f"kept at {share:g}"]
    best = int(work.idxmin())
    threshold = float(table.loc[best, f"threshold at {share:g}"])
    return Shipped((best,), (threshold,), spare=plan.spare, min_tokens=plan.min_tokens)


def wishes(study: Study, run: Run) -> Calibration:
    """What is needed to grant wishes: what thresholds do to the held-out passages as they are."""
    judged, held = held_out_blocks(study, run)[SHORT], held_out(study)
    return calibration(study, run, judged, held, asked(study).measured)


def choices(study: Study, run: Run) -> dict[str, Shipped]:
    """Where to skim, and how sharply, on passages as they are and on longer ones."""
    depth = trained_skim_reader(run, study.store).skimmer.shape.layers
    found = held_out_blocks(study, run)
    return {name: cheapest(study, judged, depth) for name, judged in found.items()}


def scores(study: Study, run: Run, chosen: Mapping[str, Skimming]) -> dict[str, dict[str, Run]]:
    """The reader on the test data and on longer passages, reading everything and skimming."""
    windows = {SHORT: None, LONG: skim_beyond.asked(study).long}
    tests = {SHORT: study.data("test"), LONG: skim_beyond.longer(study)}

    def score(name: str, skimming: Skimming) -> Run:
        reads = SKIMS if skimming.skim_at else EVERYTHING
        told = f"skimmer: {name}, {reads}"
        return evaluate_skimmed(study, told, run, skimming, tests[name], windows[name])

    return {
        name: {EVERYTHING: score(name, Skimming()), SKIMS: score(name, skimming)}
        for name, skimming in chosen.items()
    }


def tested_blocks(study: Study, run: Run) -> dict[str, Run]:
    """The blocks of the test data, and of longer passages, as the predictors see them."""
    far = skim_beyond.judge_longer(study, {LONG: run}, skim_beyond.longer(study))
    return {SHORT: judge_blocks(study, run, study.data("test")), **far}


def answers_kept(blocks: Mapping[str, Run], chosen: Mapping[str, Skimming]) -> dict[str, float]:
    """Percent of the questions of judged blocks that keep a whole gold answer, by passages.

    To be held against what was asked for on the passages that thresholds were chosen on.
    """
    kept = {}
    for name, run in blocks.items():
        told, point = read_judged(run), chosen[name]
        reached = question_scores(told.scores[point.skim_at[0]], told.answers, told.row)
        answered = reached[reached > -np.inf]
        kept[name] = 100 * float((answered >= point.thresholds[0]).mean())
    return kept


def answer_table(scored: Mapping[str, Mapping[str, Run]]) -> pd.DataFrame:
    """Readers as rows.  columns questions, EM, F1, read (percent of the passage)"""
    rows = {
        (name, reads): {
            "questions": run.metrics["questions"],
            "EM": run.metrics["exact_match"],
            "F1": run.metrics["f1"],
            "read": 100 * run.metrics["read"],
        }
        for name, both in scored.items()
        for reads, run in both.items()
    }
    return pd.DataFrame(rows).T.rename_axis(index=["passages", "reader"]).astype({"questions": int})


def block_table(blocks: Mapping[str, Run]) -> pd.DataFrame:
    """What each layer's predictor is good for, percent.

    index passages, layer; columns F1 of the blocks; "for 99 %" and so on, tokens kept for so many
    of the answers; "at 60 %" and so on, answers kept with so many of the tokens
    """
    tables = {name: layer_table(run) for name, run in blocks.items()}
    whole = pd.concat(tables, names=["passages"])
    kept = {f"kept at {x:g}": f"for {100 * x:.0f} %" for x in FOUND}
    found = {f"found at {x:g}": f"at {100 * x:.0f} %" for x in KEPT}
    shares = whole[[*kept, *found]].rename(columns=kept | found)
    return pd.concat([whole["f1"].rename("F1"), 100 * shares], axis=1)


def ship_skimmer(study: Study) -> Path:
    """Write the skimmer that ships, with its thresholds, and its card."""
    from qalib.readers.shipped import SHIPPED, checkpoint_hash
    from qalib.skim.storage import SKIMMER, save_skimmer

    run = skimmer_run(study)
    chosen = choices(study, run)
    skimmer = trained_skim_reader(run, study.store).skimmer
    skimmer.tune(**asdict(chosen[SHORT]))
    save_skimmer(SKIMMER, skimmer, reader=checkpoint_hash(SHIPPED))
    granted = wishes(study, run)
    save_calibration(SKIMMER, granted)
    write_card(SKIMMER, study, run, chosen, granted)
    return SKIMMER


CARD = """# {name}

Predictors that read the attention maps, hidden states and words at layers {layers} of the reader
`{reader}` and say which blocks of {size} tokens hold the answer; {parameters:,} parameters. The
reader is not changed: without `--skim` it answers as before.

- **As it ships** it decides at layer {at}, at a threshold of {threshold:.4f}: {found} of the
  answers to {held:,} questions on held-out passages of the training data were kept. The predictors
  have not seen these passages; the reader has, so expect less on new text. Inputs of fewer than
  {min_tokens} tokens (of {light}, where `qalib answer` reads in bf16 on a CPU) are not judged, and
  one that would be spared less than {spare} of its tokens is read whole.
- **Asked for by meaning** (`--keep`, `--work`, `--lost`) it decides where `calibration.json` says
  that the wish was granted on these passages. The promise is about questions like those; on
  {tested} it kept
{promised}
- **Data:** {questions:,} questions of SQuADShifts (Miller et al. 2020): {data}; content
  `{content}`. No question of SQuAD was trained on, and none had a part in the choice.
- **Seed:** {seed}. **Precision of training:** {precision}. **Steps:** {steps:,}.
- **Made again by** `python -m qalib ship skimmer --profile {profile}`; run `{run}`, commit
  `{commit}`.
- **Licence** of the data: CC BY 4.0; of the base model: Apache-2.0.

What it is worth on {tested} and on longer passages made of it, in percent: F1 of the blocks, tokens
kept *for* so many of the answers, answers kept *at* so many of the tokens; then readers. Of the
answers on {tested}, its threshold keeps {kept:.1f} %.

{by_layer}

{scores}
"""


def write_card(
    folder: Path, study: Study, run: Run, chosen: Mapping[str, Skimming], granted: Calibration
) -> None:
    """Write the model card from the recorded runs."""
    from qalib.readers.shipped import SHIPPED

    plan, data = asked(study), study.data("train")
    tested = tested_blocks(study, run)
    tables = block_table(tested), answer_table(scores(study, run, chosen))
    by_layer, answered = (table.round(1).reset_index().to_dict("records") for table in tables)
    text = CARD.format(
        name=folder.name,
        reader=SHIPPED.name,
        layers=", ".join(map(str, plan.layers)),
        size=plan.predictor.block_size,
        parameters=run.metrics["skim_parameters"],
        at=chosen[SHORT].skim_at[0],
        threshold=chosen[SHORT].thresholds[0],
        found=f"{100 * plan.found:g} %",
        min_tokens=plan.min_tokens,
        light=LIGHT,
        spare=f"{100 * plan.spare:g} %",
        held=len(held_out(study)),
        data=data.name.replace("+", ", "),
        questions=run.metrics["questions"],
        content=data.content_sha256[:16],
        seed=run.config["base"]["seed"],
        precision=run.metrics["precision"],
        steps=run.metrics["steps"],
        profile=study.profile.name,
        run=run.short,
        commit=(run.env["git"]["commit"] or "none")[:12],
        by_layer=markdown_table(by_layer),
        tested=study.data("test").name,
        kept=answers_kept(tested, chosen)[SHORT],
        promised=promises_kept(granted, tested[SHORT]),
        scores=markdown_table(answered),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
