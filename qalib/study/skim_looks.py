"""Notebook 05 looks at attention: of one example, and on average over a sample of questions.

Notation: B batch, L tokens of a window, K blocks, N layers, S block size.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from qalib.data.features import Window, make_windows
from qalib.data.squad import Dataset
from qalib.errors import QalibError
from qalib.skim.blocks import KEPT, Blocks, answer_blocks
from qalib.skim.views import FullAttention, LayerView, Sight
from qalib.study.entries import Run
from qalib.study.session import Study
from qalib.study.skim_study import asked
from qalib.study.skim_training import (
    SkimTraining,
    build_skim_reader,
    trained_skim_reader,
    training_of,
)
from qalib.study.skim_views import recorded
from qalib.study.stages import note_data, trained_reader

WHEN = ("before", "after")  # joint training
LOOKED_THROUGH = 200  # test questions among which the example is sought
BLOCKS_WANTED = 5  # of its passage


# --- one example -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """One window of the test data in the eyes of a reader before and after joint training."""

    asks: str
    answer: str
    texts: list[str]  # of the blocks
    size: int  # S
    layer: int  # whose attention it is
    of: np.ndarray  # (L,) the block of every token
    question: np.ndarray  # (L,) bool
    separators: np.ndarray  # (L,) bool
    labels: np.ndarray  # (K,) bool, which blocks hold the answer
    maps: np.ndarray  # (2, L, L) attention, mean of the heads, before and after
    logits: np.ndarray  # (2, N, K) of the predictors, before and after
    answer_loss: np.ndarray  # (2,)

    @property
    def probabilities(self) -> np.ndarray:
        """(2, N, K)"""
        return 1 / (1 + np.exp(-self.logits))

    @property
    def blocks(self) -> Blocks:
        """The window as a batch of one."""
        of, question, separators = (
            torch.from_numpy(x)[None] for x in (self.of, self.question, self.separators)
        )
        return Blocks(of, question, separators, len(self.labels))

    def sight(self, attention: Tensor) -> Sight:
        """What a predictor for one head would be shown of a map.  (L, L)"""
        hidden = torch.zeros(1, len(self.of), 1)
        view = LayerView(FullAttention(attention[None, None]), hidden)
        return Sight({1: view}, self.blocks, torch.zeros(1, len(self.of), dtype=torch.long))


ARRAYS = [field.name for field in fields(Shown) if field.type is np.ndarray]


def example(study: Study, joint: Run) -> Shown:
    """A test question as a jointly trained reader sees it, and as it did before training.

    It is the first of the first 200 whose passage has five blocks in one window (or the most, if
    none has five), with all its gold answers in one of them that is not the first. Raises
    QalibError if there is no such question at all.
    """
    test, plan = study.data("test"), asked(study)

    def compute(work: Path) -> dict:
        from safetensors.numpy import save_file

        note_data(work, test)
        config = training_of(joint)
        readers = {
            "before": build_skim_reader(config, None, study.store).eval(),
            "after": trained_skim_reader(joint, study.store),
        }
        shown = _show(readers, test, config, plan.middle)
        texts = {f.name: getattr(shown, f.name) for f in fields(Shown) if f.name not in ARRAYS}
        (work / "example.json").write_text(json.dumps(texts, indent=2, ensure_ascii=False))
        arrays = {name: np.ascontiguousarray(getattr(shown, name)) for name in ARRAYS}
        save_file(arrays | {"maps": arrays["maps"].astype(np.float16)}, work / "arrays.safetensors")
        return {"tokens": len(shown.of), "blocks": len(shown.labels)}

    inputs = {"weights": joint.key, "data": test.content_sha256}
    config = {"layer": plan.middle}
    return _read_shown(recorded(study, "skim-example", config, compute, inputs))


def _read_shown(run: Run) -> Shown:
    from safetensors.numpy import load_file

    texts = json.loads(run.file("example.json").read_text(encoding="utf-8"))
    arrays = load_file(run.file("arrays.safetensors"))
    return Shown(**texts, **(arrays | {"maps": arrays["maps"].astype(np.float32)}))


def _show(readers: dict[str, nn.Module], test: Dataset, config: SkimTraining, layer: int) -> Shown:
    from qalib.data.batches import collate
    from qalib.losses import span_loss
    from qalib.spans import ReaderOutput

    tokenizer = readers["after"].tokenizer
    size = config.predictor.block_size
    windows = make_windows(test.examples[:LOOKED_THROUGH], tokenizer, config.base.windows)
    window = choose_window(windows, size)
    batch = collate([window], tokenizer.pad_token_id or 0)
    length, maps, logits, losses = len(window), [], [], []
    with torch.inference_mode():
        for when in WHEN:
            output = readers[when].run(batch, skim=False)
            told = ReaderOutput(output.start_logits, output.end_logits, batch.mask)
            losses.append(span_loss(told, batch.spans, batch.weights).item())
            logits.append(torch.stack([x[0] for _, x in sorted(output.scores.items())]).numpy())
            views = dict(layer_views(readers[when], batch, output.blocks))
            maps.append(views[layer].attention.probabilities[0].mean(0)[:length, :length].numpy())
    blocks, source = output.blocks, test.examples[window.example]
    edges = range(0, len(window.offsets), size)
    spans = [window.offsets[edge : edge + size] for edge in edges]
    return Shown(
        asks=source.question,
        answer=source.answers[0].text,
        texts=[source.context[offsets[0, 0] : offsets[-1, 1]] for offsets in spans],
        size=size,
        layer=layer,
        of=blocks.of[0, :length].numpy(),
        question=blocks.question[0, :length].numpy(),
        separators=blocks.separators[0, :length].numpy(),
        labels=answer_blocks(blocks, batch.spans, batch.weights)[0].numpy(),
        maps=np.stack(maps),
        logits=np.stack(logits),
        answer_loss=np.array(losses, dtype=np.float32),
    )


def choose_window(windows: list[Window], size: int) -> Window:
    """The first window that is fit to be looked at; see :func:`example`."""
    alone = np.bincount([window.example for window in windows]) == 1
    fit = []
    for window in windows:
        held = {(edge - window.first) // size for span in window.spans for edge in span}
        if alone[window.example] and len(held) == 1 and held != {0}:
            fit.append(window)
    if not fit:
        raise QalibError(
            f"no test question has its answer in one block of {size} tokens behind the first; "
            "take smaller blocks or longer passages."
        )
    return max(fit, key=lambda w: min(BLOCKS_WANTED, -(-len(w.offsets) // size)))


def layer_views(reader: nn.Module, batch, blocks: Blocks) -> Iterator[tuple[int, LayerView]]:
    """Every layer of a reader as a predictor could see it, from 1; nothing is skipped.

    ``reader`` is an encoder reader, with or without predictors beside it.
    """
    from qalib.skim.families import parts
    from qalib.skim.walk import Walk

    bare = getattr(reader, "reader", reader)
    types = batch.inputs["token_type_ids"] if bare.uses_types else None
    walk = Walk.begin(parts(bare.encoder), batch.inputs["input_ids"], types, blocks)
    for number, layer in enumerate(walk.parts.layers, 1):
        context = walk.attend(layer, number, shown=True, detach=True)
        yield number, walk.views.pop(number)
        walk.hidden = layer.finish(context, walk.hidden)


def where_it_goes(shown: Shown) -> pd.DataFrame:
    """What the tokens of each block give to what, percent, after training.  index block"""
    seen = torch.from_numpy(shown.maps[1])
    rows = {}
    for block in range(len(shown.labels)):
        mean = seen[torch.from_numpy(shown.of == block)].mean(0).numpy()
        kept = shown.of == KEPT
        rows[block + 1] = {
            "its own block": mean[shown.of == block].sum(),
            "other blocks": mean[~kept & (shown.of != block)].sum(),
            "the question": mean[shown.question].sum(),
            "[CLS] and [SEP]": mean[kept & ~shown.question].sum(),
        }
    return (100 * pd.DataFrame(rows).T.astype(float)).rename_axis("block")


# --- where attention goes ----------------------------------------------------------------------


def answer_attention(study: Study, trained: Run, questions: int = 500) -> Run:
    """Where the attention of a trained reader goes, mean over test questions.

    ``metrics["layers"]`` has a row a layer, in percent: ``given``, what a question token gives to
    the blocks with the answer; ``share``, that of what it gives to the whole passage; ``own
    answer`` and ``own other``, what the tokens of a block with an answer, and of others, give to
    their own block, short last ones left out. ``even`` is the answer blocks' share of the tokens.
    At most so many ``questions`` are taken, evenly.
    """
    test, plan = study.data("test"), asked(study)
    count, size = min(questions, len(test)), plan.predictor.block_size
    windows = plan.base.windows

    def compute(work: Path) -> dict:
        note_data(work, test)
        skims = trained.stage == "train-skim"
        reader = trained_skim_reader(trained, study.store) if skims else trained_reader(trained)
        chosen = [test.examples[i * len(test) // count] for i in range(count)]
        found = make_windows(chosen, reader.tokenizer, windows)
        return mean_attention(reader.eval(), [w for w in found if len(w.spans)], size)

    config = {"questions": count, "block_size": size, "windows": windows}
    inputs = {"weights": trained.key, "data": test.content_sha256}
    return recorded(study, "answer-attention", config, compute, inputs)


def mean_attention(reader: nn.Module, windows: list[Window], size: int, budget: int = 4096) -> dict:
    """The numbers of :func:`answer_attention` for windows that hold an answer."""
    from qalib.data.batches import collate, inference_batches
    from qalib.skim.keep import window_blocks

    rows: list[pd.DataFrame] = []
    even: list[Tensor] = []
    for numbers in inference_batches([len(window) for window in windows], budget):
        pad = reader.tokenizer.pad_token_id or 0
        batch = collate([windows[n] for n in numbers], pad)
        ids, real = batch.inputs["input_ids"], batch.inputs["attention_mask"]
        blocks = window_blocks(ids, real, batch.mask, size)
        holds = answer_blocks(blocks, batch.spans, batch.weights)
        there = blocks.spread(holds, False)  # (B, L)
        even.append(there.sum(1) / blocks.passage.sum(1))
        with torch.inference_mode():
            for layer, view in layer_views(reader, batch, blocks):
                told = _attention_of(view.attention, blocks, holds, there, size)
                rows.append(pd.DataFrame({name: x.numpy() for name, x in told.items()}))
                rows[-1]["layer"] = layer
    table = 100 * pd.concat(rows).groupby("layer").mean()  # NaN, no such block, is left out
    layers = [{"layer": int(n), **row.astype(float).to_dict()} for n, row in table.iterrows()]
    return {"even": 100 * torch.cat(even).mean().item(), "layers": layers}


def _attention_of(attention, blocks: Blocks, holds: Tensor, there: Tensor, size: int) -> dict:
    """One value a row of a batch; NaN where a row has no such block.  each (B,)"""
    to = attention.out_of(blocks.question[:, None]).float().mean(dim=(1, 2))  # (B, L)
    given, passage = (to * there).sum(1), (to * blocks.passage).sum(1)
    inside = attention.diagonal(blocks, size).float().sum((-1, -2)).mean(dim=1)  # (B, K)
    inside = inside / size
    whole = blocks.sizes() == size
    means = {}
    for name, chosen in (("own answer", whole & holds), ("own other", whole & ~holds)):
        means[name] = (inside * chosen).sum(1) / chosen.sum(1)  # 0 / 0 is NaN
    return {"given": given, "share": given / passage.clamp(min=1e-12), **means}
