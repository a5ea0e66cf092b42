"""Write the published checkpoints and their cards: the readers, and the small one's skimmer."""

from collections.abc import Sequence
from pathlib import Path

from qalib.checkpoints import load_weights
from qalib.data.schema import SAMPLE, Dataset, hold_out, passage_digests
from qalib.inference import AnswerConfig
from qalib.models import pretrained
from qalib.skim.storage import DEFAULT_SKIMMER, save_skimmer
from qalib.study.claims import markdown_table
from qalib.study.run_cache import Run
from qalib.study.session import Study
from qalib.study.stages import baseline, block_skim, readers

CARDS = Path(__file__).with_name("cards")  # templates of the model cards


def write_reader(folder: Path, trained: Run, passages: Sequence[str] = ()) -> None:
    """Write the reader of a ``train-adapter`` run, with digests of its training ``passages``."""
    config = trained.settings(baseline.AdapterTraining)
    changed = load_weights(trained.file("weights.safetensors"))
    base = config.base
    pretrained.save_reader(folder, base.encoder, base.windows, changed, config.rank, passages)


def export_reader(study: Study, size: readers.Size = "small") -> Path:
    """Write a published checkpoint, score it, and write its card.  -> its folder

    "small" is the distilled reader, the default of ``qalib answer``, scored as trained and as
    published; "base" is its teacher, scored as trained only.
    """
    small, test = size == "small", study.data("test", "readers_data")
    trained = readers.taught_reader(study) if small else readers.best_reader(study, "base")
    data, config = study.data("train", "readers_data"), trained.settings(baseline.AdapterTraining)
    folder = pretrained.DEFAULT_CHECKPOINT if small else pretrained.BASE_CHECKPOINT
    read = hold_out(data, config.base.held_out)[0]
    write_reader(folder, trained, passage_digests(read, SAMPLE))
    name = "small, taught" if small else "base"
    runs = {"as trained": readers.score_reader(study, name, trained, test)}
    if small:
        decoding = baseline.Evaluation(
            "shipped", AnswerConfig(windows=config.base.windows, precision="fp32")
        )
        shipped = {"checkpoint": pretrained.checkpoint_hash(folder)}
        runs["as published"] = study.run(baseline.evaluate, decoding, test=test, **shipped)
    rows = []
    for label, run in runs.items():
        scores = {"EM": f"{run.metrics['exact_match']:.1f}", "F1": f"{run.metrics['f1']:.1f}"}
        questions = {"test questions": run.metrics["questions"]}
        rows.append({"reader": label, **questions, **scores, "run": run.short})
    facts = {"rank": config.rank, "seed": config.base.seed, "scores": markdown_table(rows)}
    write_card(folder, "reader" if small else "base", trained, data, **facts)
    return folder


def write_card(folder: Path, template: str, run: Run, data: Dataset, **facts: object) -> None:
    """Write a model card from its template: what was trained, on which data, by which run."""
    text = (CARDS / f"{template}.md").read_text(encoding="utf-8")
    card = text.format(
        data=data.name.replace("+", ", "),
        content=data.content_sha256[:16],
        questions=run.metrics["questions"],
        precision=run.metrics["precision"],
        steps=run.metrics["steps"],
        run=run.short,
        commit=(run.env["git"]["commit"] or "none")[:12],
        **facts,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


# --- the skimmer ----------------------------------------------------------------------------------


def export_skimmer(study: Study) -> Path:
    """Write the published skimmer and its card; `skim calibrate` adds the threshold to both."""
    plan = study.config("base_skim", readers.BaseSkim)
    reader = readers.taught_reader(study)
    run = readers.skim_beside(study, reader, "combined", plan.small_layers)
    skimmer = block_skim.load_skim_reader(run).skimmer
    skimmer.set_options(min_pruned_fraction=plan.min_pruned_fraction, min_tokens=plan.min_tokens)
    save_skimmer(DEFAULT_SKIMMER, skimmer, pretrained.load_reader().encoder)
    write_card(
        DEFAULT_SKIMMER,
        "skimmer",
        run,
        study.data("train", "readers_data"),
        layers=", ".join(map(str, plan.small_layers)),
        size=skimmer.config.predictor.block_size,
        parameters=run.metrics["skim_parameters"],
        min_tokens=plan.min_tokens,
        least=100 * plan.min_pruned_fraction,
        seed=run.config["seed"],
    )
    return DEFAULT_SKIMMER
