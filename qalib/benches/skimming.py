"""``python -m qalib bench skim``: skimming against its rivals, on the same questions.

    found = bench_skim(SkimBench(), models, data)     # -> {"rows": [...], ...}

How is told in ``qalib.benches.race``, against whom in ``qalib.benches.entrants``.
"""

from collections.abc import Mapping

import numpy as np
import torch

from qalib.benches.entrants import entrants_of, prepared_exports
from qalib.benches.race import QUESTION, Grid, Model, SkimBench, race, rows_of
from qalib.data.batches import Batch, collate
from qalib.data.features import Window, WindowConfig, make_windows
from qalib.data.squad import Dataset
from qalib.errors import QalibError
from qalib.readers.encoder_reader import EncoderReader
from qalib.skim.cost import lengths

DISTINCT = 8  # batches of a cell, at most; later rounds see them again


def bench_skim(config: SkimBench, models: Mapping[str, Model], data: Dataset | None = None) -> dict:
    """Every cell of every grid; ``models`` by the name of the grid.

    ``rows``: one for each cell and entrant, see ``rows_of``, with ``model``, ``length`` and
    ``batch``. Without ``data`` the questions are random word pieces, which is all that timing
    needs but nothing that a trained predictor could judge.
    """
    cells = [(g, n, b) for g in config.grids for n in g.lengths for b in g.batches]
    weights = [_work(grid, models[grid.name]) * n * b for grid, n, b in cells]
    rows: list[dict] = []
    with prepared_exports(config, models) as exports:
        for (grid, length, size), weight in zip(cells, np.sqrt(weights), strict=True):
            model = models[grid.name]
            batches = batches_of(model.reader, length, size, data, config.seed)
            entrants = entrants_of(grid, model, config, batches[0], exports.get(grid.name, {}))
            share = config.seconds * float(weight / np.sqrt(weights).sum())
            cell = {"model": grid.name, "length": length, "batch": size}
            tallies = race(entrants, batches, config, share)
            rows += [cell | row for row in rows_of(entrants, tallies)]
    return {"rows": rows, "capability": torch.backends.cpu.get_cpu_capability()}


def _work(grid: Grid, model: Model) -> float:
    return float(model.plain_cost.encoder(lengths(1, {}, len(model.plain_cost.layers))))


def batches_of(
    reader: EncoderReader, length: int, size: int, data: Dataset | None, seed: int = 0
) -> list[Batch]:
    """Batches of ``size`` questions, all of exactly ``length`` tokens; at most ``DISTINCT``.

    Of ``data`` the inputs that a passage fills to the end, those with an answer first; few are
    used again. Raises QalibError if there is none.
    """
    if data is None:
        windows = random_windows(reader.tokenizer, length, size * DISTINCT, seed)
    else:
        asked = WindowConfig(length, stride=0, max_question=min(64, length // 4))
        found = make_windows(data.examples, reader.tokenizer, asked)
        windows = sorted((w for w in found if len(w) == length), key=lambda w: not len(w.spans))
    if not windows:
        raise QalibError(
            f"no passage of {data.name} fills {length} tokens; name data with longer passages, or "
            "shorter lengths."
        )
    count = min(DISTINCT, -(-len(windows) // size))
    chosen = [[windows[(b * size + i) % len(windows)] for i in range(size)] for b in range(count)]
    return [collate(rows, reader.tokenizer.pad_token_id or 0) for rows in chosen]


def random_windows(tokenizer, length: int, count: int, seed: int = 0) -> list[Window]:
    """Questions and passages of random word pieces, with an answer of one token somewhere."""
    random = np.random.default_rng([seed, length])
    first, made = QUESTION + 2, []
    for number in range(count):
        ids = random.integers(len(tokenizer) // 10, len(tokenizer), length).astype(np.int32)
        ids[0], ids[[first - 1, -1]] = tokenizer.cls_token_id, tokenizer.sep_token_id
        types = (np.arange(length) >= first).astype(np.int8)
        answer = int(random.integers(first, length - 1))
        spans = np.array([[answer, answer]], dtype=np.int32)
        offsets = np.zeros((length - first - 1, 2), dtype=np.int32)
        weights = np.ones(1, dtype=np.float32)
        made.append(Window(number, ids, types, first, offsets, spans, weights))
    return made
