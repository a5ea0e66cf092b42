"""Making the skimmer that ships: predictors beside the reader that ships, thresholds, the card.

The reader stays as it is, so that it answers the same when it does not skim. Its predictors learn
on the training passages but some; on these the thresholds are chosen.
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from qalib.data.squad import hold_out
from qalib.skim.predictors import PredictorConfig
from qalib.study import skim_study
from qalib.study.entries import Run
from qalib.study.paper import markdown_table
from qalib.study.session import Study
from qalib.study.skim_scores import Skimming, evaluate_skimmed, judge_blocks, layer_table
from qalib.study.skim_training import train_skim, trained_skim_reader
from qalib.study.stages import evaluate_shipped


@dataclass(frozen=True)
class ShippedSkimmer:
    """Which predictors ship, where they stand, and how much they may lose."""

    predictor: PredictorConfig = field(default_factory=lambda: PredictorConfig("combined"))
    layers: tuple[int, ...] = (2, 3, 4)
    epochs: int = 1
    held_out: float = 0.1  # of the passages
    found: float = 0.99  # share of the held-out questions whose answer is to be kept


def asked(study: Study) -> ShippedSkimmer:
    """The profile's section."""
    return study.section("ship_skim", ShippedSkimmer)


def skimmer_run(study: Study) -> Run:
    """The predictors, trained beside the reader that ships."""
    plan, shared = asked(study), skim_study.asked(study)
    schedule = replace(shared.base.train, epochs=plan.epochs)
    base = replace(shared.base, train=schedule, held_out=plan.held_out, seed=study.seed)
    config = shared.joint(
        base=base, start="shipped", frozen=True, predictor=plan.predictor, layers=plan.layers
    )
    return study.keep(train_skim(study.store, study.data("train"), config, force=study.force))


def held_out_blocks(study: Study, run: Run) -> Run:
    """The blocks of the passages that the predictors have not seen, as they see them."""
    return judge_blocks(study, run, hold_out(study.data("train"), asked(study).held_out)[1])


def cheapest(study: Study, run: Run) -> Skimming:
    """The layer that leaves least work when it is to keep ``found`` of the answers held out.

    Work is counted in tokens read by layers: a skim layer l of N leaves l + (N - l) k of N, for
    the share k of the tokens that it keeps (Block-Skim, Eq. 6).
    """
    share = asked(study).found
    table = layer_table(held_out_blocks(study, run))
    depth = skimming_depth(study, run)
    work = table.index + (depth - table.index) * table[f"kept at {share:g}"]
    best = int(work.idxmin())
    return Skimming((best,), (float(table.loc[best, f"threshold at {share:g}"]),))


def skimming_depth(study: Study, run: Run) -> int:
    """How many layers the encoder has."""
    return trained_skim_reader(run, study.store).skimmer.shape.layers


def scores(study: Study, run: Run, skimming: Skimming) -> dict[str, Run]:
    """The reader on the test data, reading everything and skimming."""
    return {
        "reads everything": evaluate_shipped(study),
        "skims": evaluate_skimmed(study, "shipped, skimming", run, skimming),
    }


def ship_skimmer(study: Study) -> Path:
    """Write the skimmer that ships, with its thresholds, and its card."""
    from qalib.readers.shipped import SHIPPED, checkpoint_hash
    from qalib.skim.storage import SKIMMER, save_skimmer

    run = skimmer_run(study)
    skimming = cheapest(study, run)
    skimmer = trained_skim_reader(run, study.store).skimmer
    skimmer.tune(**asdict(skimming))
    save_skimmer(SKIMMER, skimmer, reader=checkpoint_hash(SHIPPED))
    write_card(SKIMMER, study, run, skimming, scores(study, run, skimming))
    return SKIMMER


CARD = """# {name}

Predictors that read the attention maps, hidden states and words at layers {layers} of the reader
`{reader}` and say which blocks of {size} tokens hold the answer; {parameters:,} parameters. The
reader is not changed: without `--skim` it answers as before.

- **As it ships** it decides at layer {at}, at a threshold of {threshold:.4f}: {found:.0%} of the
  answers to {held:,} questions on held-out passages of the training data were kept. The predictors
  have not seen these passages; the reader has, so expect less on new text.
- **Data:** {questions:,} questions of SQuADShifts (Miller et al. 2020): {data}; content
  `{content}`. No question of SQuAD was trained on, and none had a part in the choice.
- **Seed:** {seed}. **Precision of training:** {precision}. **Steps:** {steps:,}.
- **Made again by** `{command}`; run `{run}`, commit `{commit}`.
- **Licence** of the data: CC BY 4.0; of the base model: Apache-2.0.

The answers of all blocks of those held-out passages, by layer:

{by_layer}

On {tested}:

{scores}
"""


def write_card(
    folder: Path, study: Study, run: Run, skimming: Skimming, scored: dict[str, Run]
) -> None:
    """Write the model card from the recorded runs."""
    from qalib.readers.shipped import SHIPPED

    plan, data, held = asked(study), study.data("train"), held_out_blocks(study, run)
    share = f"{plan.found:g}"
    by_layer = [
        {
            "layer": layer,
            f"tokens kept for {share} of the answers": f"{row[f'kept at {share}']:.1%}",
            "answers found at 60 % of the tokens": f"{row['found at 0.6']:.1%}",
            "F1 of the blocks": f"{row['f1']:.1f}",
        }
        for layer, row in layer_table(held).iterrows()
    ]
    answered = [
        {
            "reader": name,
            "test questions": one.metrics["questions"],
            "EM": f"{one.metrics['exact_match']:.1f}",
            "F1": f"{one.metrics['f1']:.1f}",
            "passage read to the end": f"{one.metrics.get('read', 1.0):.1%}",
            "run": one.short,
        }
        for name, one in scored.items()
    ]
    text = CARD.format(
        name=folder.name,
        reader=SHIPPED.name,
        layers=", ".join(map(str, plan.layers)),
        size=plan.predictor.block_size,
        parameters=run.metrics["skim_parameters"],
        at=skimming.skim_at[0],
        threshold=skimming.thresholds[0],
        found=plan.found,
        held=len(hold_out(data, plan.held_out)[1]),
        data=data.name.replace("+", ", "),
        questions=run.metrics["questions"],
        content=data.content_sha256[:16],
        seed=run.config["base"]["seed"],
        precision=run.metrics["precision"],
        steps=run.metrics["steps"],
        command=run.env["command"],
        run=run.short,
        commit=(run.env["git"]["commit"] or "none")[:12],
        by_layer=markdown_table(by_layer),
        tested=study.data("test").name,
        scores=markdown_table(answered),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
