"""Who takes part in the benchmark of skimming: from a grid to entrants that can be timed."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from qalib.benches.race import OLD, PLAIN, Entrant, Grid, Model, SkimBench, padded_name, usable
from qalib.benches.rivals import (
    Lexical,
    Padded,
    StaticLengths,
    Threshold,
    best_blocks,
    passage_blocks,
    schedule,
    theta_for,
)
from qalib.data.batches import Batch
from qalib.skim.blocks import answer_blocks
from qalib.skim.cost import CostModel, ideal_speedup
from qalib.skim.export import (
    OnnxReader,
    OnnxSkimReader,
    quantise_onnx,
    save_onnx,
    save_whole,
)
from qalib.skim.halves import compiled
from qalib.skim.reader import SkimReader
from qalib.spans import ReaderOutput

Exports = Mapping[str, nn.Module]


def entrants_of(
    grid: Grid, model: Model, config: SkimBench, batch: Batch, exports: Exports
) -> list[Entrant]:
    """All who take part in one cell. ``batch`` is one of its batches, to set a threshold by."""
    found, length = [], batch.mask.shape[1]
    for dtype in usable(grid.dtypes):
        found.append(Entrant(PLAIN, dtype, model.readers[dtype], model.plain_cost))
        found += _skimming(grid, model, config, dtype)
        if dtype == usable(grid.dtypes)[0]:
            found += _pruning(grid, model, dtype, batch)
    if "padded" in grid.rivals:
        size = OLD if length <= OLD else 512
        reader = Padded(model.reader, size)
        found.append(Entrant(padded_name(size), "fp32", reader, model.plain_cost))
    for name, reader in exports.items():
        dtype = "int8" if "int8" in name else "fp32"
        skims = "skims" in name
        prepare = by_chance(model, grid.kept[-1], config.seed) if skims else _as_it_is
        cost = model.cost if skims else model.plain_cost
        found.append(Entrant(name, dtype, reader, cost, prepare))
    return found


def _skimming(grid: Grid, model: Model, config: SkimBench, dtype: str) -> list[Entrant]:
    """With shares of blocks drawn by chance, with the answer's blocks, and as trained.

    The predictors are asked in each of them.
    """
    reader, found = model.readers[dtype], []
    fresh = SkimReader(reader, model.skimmer).eval()
    if "skim" in grid.rivals:
        for share in grid.kept:
            prepare = by_chance(model, share, config.seed)
            found.append(Entrant(f"skims, {share:g} kept", dtype, fresh.run, model.cost, prepare))
    if "oracle" in grid.rivals:
        known = "skims, answer blocks"
        found.append(Entrant(known, dtype, fresh.run, model.cost, _answers(model)))
    if "trained" in grid.rivals and model.trained is not None:
        trained = SkimReader(reader, model.trained).eval()
        cost = CostModel.of(model.reader.encoder, model.trained)
        found.append(Entrant("skims, as trained", dtype, trained.run, cost))
    return found


def _pruning(grid: Grid, model: Model, dtype: str, batch: Batch) -> list[Entrant]:
    """Rivals that read less in other ways, each leaving the work that skimming leaves by Eq. 6."""
    reader, found, cost = model.readers[dtype], [], model.plain_cost
    layers = len(cost.layers)
    for share in grid.kept:
        work = 1 / ideal_speedup({grid.skim_at: share}, layers)
        made = {
            "lexical": lambda share=share: Lexical(reader, share, _size(model)),
            "static": lambda work=work: StaticLengths(reader, schedule(layers, work)),
            "threshold": lambda work=work: Threshold(reader, theta_for(reader, _one(batch), work)),
        }
        names = {
            "lexical": f"lexical blocks, {share:g} kept",
            "static": f"static lengths, work as {share:g}",
            "threshold": f"attention threshold, work as {share:g}",
        }
        for name, make in made.items():
            if name in grid.rivals:
                found.append(Entrant(names[name], dtype, make().eval(), cost))
    return found


def _one(batch: Batch) -> Batch:
    """Its first question."""
    inputs = {name: x[:1] for name, x in batch.inputs.items()}
    real = int(inputs["attention_mask"].sum())
    return Batch(inputs, batch.mask[:1], batch.spans[:1], batch.weights[:1], real)


def _size(model: Model) -> int:
    return model.skimmer.config.predictor.block_size


def _as_it_is(batch: Batch) -> Batch:
    return batch


def by_chance(model: Model, share: float, seed: int) -> Callable[[Batch], Batch]:
    """Tells the skimmer which blocks to keep: any, up to a share of the tokens."""

    def prepare(batch: Batch) -> Batch:
        blocks = passage_blocks(model.reader, batch, _size(model))
        generator = torch.Generator().manual_seed(seed)
        draw = torch.rand(blocks.real.shape, generator=generator)
        return told(batch, best_blocks(draw, blocks, share))

    return prepare


def _answers(model: Model) -> Callable[[Batch], Batch]:
    """Tells the skimmer which blocks hold an answer; the first block where none does."""

    def prepare(batch: Batch) -> Batch:
        blocks = passage_blocks(model.reader, batch, _size(model))
        return told(batch, oracle_keep(answer_blocks(blocks, batch.spans, batch.weights)))

    return prepare


def oracle_keep(answers: Tensor) -> Tensor:
    """The blocks with an answer, or else the first.  (B, K) bool -> (B, K) bool"""
    kept = answers.clone()
    kept[:, :1] |= ~answers.any(dim=1, keepdim=True)
    return kept


@contextlib.contextmanager
def prepared_exports(config: SkimBench, models: Mapping[str, Model]) -> Iterator[dict]:
    """Readers that run elsewhere, by name, for each grid that asks for them.

    Their graphs lie in a folder that is deleted afterwards. What is compiled is compiled here, so
    that no round waits for it.
    """
    with tempfile.TemporaryDirectory() as folder:
        yield {
            grid.name: _exports(grid, models[grid.name], Path(folder) / str(number))
            for number, grid in enumerate(config.grids)
        }


def _exports(grid: Grid, model: Model, folder: Path) -> Exports:
    encoder, readers = model.reader.encoder, {}
    share = f"{grid.kept[-1]:g} kept"
    if "onnx" in grid.rivals:
        folder.mkdir()
        save_whole(folder / "whole.onnx", encoder)
        quantise_onnx(folder / "whole.onnx", folder / "int8.onnx")
        save_onnx(folder / "skims", encoder, model.skimmer)
        readers["onnxruntime"] = OnnxReader(folder / "whole.onnx")
        readers["onnxruntime, int8"] = OnnxReader(folder / "int8.onnx")
        readers[f"onnxruntime, skims, {share}"] = OnnxSkimReader.load(folder / "skims")
    if "compiled" in grid.rivals:
        readers[f"torch.compile, skims, {share}"] = compiled(encoder, model.skimmer)
        readers["torch.compile"] = _Compiled(model.reader)
    return readers


class _Compiled(nn.Module):
    """The plain reader, its encoder compiled for any length."""

    def __init__(self, reader: nn.Module):
        super().__init__()
        self.reader = reader
        self.encoder = torch.compile(reader.encoder, dynamic=True)

    def forward(self, batch: Batch):
        """See :class:`EncoderReader`."""
        inputs = dict(batch.inputs)
        if not self.reader.uses_types:
            inputs.pop("token_type_ids")
        output = self.encoder(**inputs)
        return ReaderOutput(output.start_logits, output.end_logits, batch.mask)


def told(batch: Batch, kept: Tensor) -> Batch:
    """The batch for a skimming reader whose decision is told.  kept (B, K) bool"""
    return replace(batch, inputs={**batch.inputs, "keep": kept})
