"""Notebook 03's readers: what they see, measured; tables from runs; paired gains."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from qalib.data.squad import Answer, Example, make_dataset
from qalib.errors import QalibError
from qalib.metrics import paired_bootstrap
from qalib.readers.byte_reader import ByteReaderConfig, build_byte_reader
from qalib.study import reader_stages
from qalib.study.byte_stages import VARIANTS
from qalib.study.entries import Run
from qalib.study.files import plain
from qalib.study.reader_stages import Readers, receptive_field

SMALL = ByteReaderConfig(width=4, layers=3, kernel=5, heads=1, head_width=4, embedding=4)
TEST = make_dataset(
    "toy", [Example(str(n), "Who?", "A cat saw a dog.", (Answer("cat", 2),)) for n in range(40)]
)


def made(stage: str, folder: Path, config: object = None, **metrics) -> Run:
    return Run(stage, "0" * 64, folder, plain(config, stage) if config else {}, {}, metrics, {})


def reach(run, ids: torch.Tensor, centre: int) -> int:
    """Positions that the output at ``centre`` is made of: a gradient cannot vanish by chance."""
    embedded = torch.randn(*ids.shape, 4, dtype=torch.float64, requires_grad=True)
    run(embedded)[0, centre].square().sum().backward()
    return int((embedded.grad.abs().sum(dim=2)[0] > 0).sum())


@pytest.mark.parametrize("kinds", VARIANTS.values(), ids=list(VARIANTS))
def test_the_receptive_field_is_what_the_gradient_says(kinds):
    """Without instance norm; a mixer is measured behind its encoder, as the logits see them."""
    encoder, mixer = kinds
    config = replace(SMALL, encoder=encoder, mixer=mixer, norm=False, input="embedding")
    reader = build_byte_reader(config).double().eval()
    for norm in (m for m in reader.modules() if hasattr(m, "normalise")):
        torch.nn.init.constant_(norm.shift, 5.0)  # every ReLU is open
    ids = torch.zeros(1, 91, dtype=torch.long)
    real = torch.ones_like(ids, dtype=torch.bool)

    def encode(x):
        return reader.encoder(ids, x, real)

    def mix(x):
        c = encode(x)
        return reader.mixer(None, torch.cat([c, torch.zeros_like(c)], dim=2), real)

    for seen, run in zip(receptive_field(config), (encode, mix), strict=True):
        assert reach(run, ids, 45) == min(91, seen)


def test_the_receptive_fields_of_the_page():
    def seen(encoder: str, mixer: str) -> tuple[float, float]:
        return receptive_field(ByteReaderConfig(encoder=encoder, mixer=mixer))

    assert seen("conv", "conv") == seen("dense", "dense") == (51, 101)  # the page: 55 and 110
    assert seen("dilated", "dilated") == (311, 621)
    assert seen("conv", "lstm") == (51, math.inf)
    assert seen("gru", "conv") == (math.inf, math.inf)


def test_what_is_compared_must_be_there():
    with pytest.raises(QalibError, match="'recurrent'"):
        Readers(("plain", "dense"))


def test_plain_and_dense_are_the_runs_of_the_other_notebook(monkeypatch):
    asked = []

    class Toy:
        def section(self, name, kind):
            return kind(("plain", "dilated", "dense", "recurrent"))

    def trained(study, name, seeds=0):
        asked.append((name, seeds))
        return [name]

    monkeypatch.setattr(reader_stages, "trained_variants", trained)
    assert list(reader_stages.train_readers(Toy())) == ["plain", "dilated", "dense", "recurrent"]
    assert asked == [("plain", 0), ("dilated", 1), ("dense", 0), ("recurrent", 1)]


def test_readers_side_by_side(tmp_path):
    from qalib.study.byte_stages import ByteTraining

    def trained(encoder: str, mixer: str, count: int) -> list[Run]:
        config = ByteTraining(reader=ByteReaderConfig(encoder=encoder, mixer=mixer, width=20.25))
        return [made("train-bytes", tmp_path, config, parameters=count)] * 2

    table = reader_stages.describe_readers(
        {"recurrent": trained("lstm", "lstm", 99_100), "plain": trained("conv", "conv", 100_000)}
    )
    assert table.loc["recurrent", "beside plain"] == "-0.90 %"
    assert table.loc["recurrent", ["encoder sees", "reader sees"]].tolist() == ["all", "all"]
    assert table.loc["plain", ["encoder sees", "reader sees"]].tolist() == ["51", "101"]
    assert table.loc["plain", "parameters"] == "100,000"


def test_curves_are_those_of_the_first_seed(tmp_path):
    def logged(name: str, *lines: dict) -> Run:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return made("train-bytes", folder)

    first = logged("a", {"step": 1, "epoch": 0.5, "loss": 3.0}, {"epoch": 1, "held_out_f1": 1})
    second = logged("b", {"step": 1, "epoch": 0.5, "loss": 9.0})
    curves = reader_stages.training_curves({"plain": [first, second], "dense": [second]})
    expected = {"epoch": [0.5, 0.5], "loss": [3.0, 9.0], "reader": ["plain", "dense"]}
    pd.testing.assert_frame_equal(curves, pd.DataFrame(expected), check_dtype=False)


def test_score_tables(tmp_path):
    def scored(em: float) -> Run:
        shares = {f"p@{n}": em / n for n in (1, 2, 3, 4, 5)}
        return made("evaluate", tmp_path, exact_match=em, f1=em + 1, **shares)

    runs = {"plain": [scored(10.0), scored(14.0)], "recurrent": [scored(20.0)]}
    table = reader_stages.score_table(runs)
    assert table.loc["plain"].tolist() == [2, "12.0 ± 2.8", "13.0 ± 2.8", "27.4 ± 6.5"]
    assert table.loc["recurrent"].tolist() == [1, "20.0", "21.0", "45.7"]
    shares = reader_stages.precision_table(runs)
    assert shares.loc["plain", "p@2"] == 5.0  # of the first seed
    assert shares.sum(axis=1).to_dict() == {
        name: pytest.approx(reader_stages.hits_at_5(each[0])) for name, each in runs.items()
    }


def test_gains_are_paired(tmp_path):
    def answered(name: str, right: int) -> Run:
        folder = tmp_path / name
        folder.mkdir()
        texts = {e.id: "cat" if n < right else "dog" for n, e in enumerate(TEST)}
        (folder / "predictions.json").write_text(json.dumps(texts))
        return made("evaluate", folder)

    plain, ours = answered("plain", 10), answered("ours", 20)
    table = reader_stages.gains(TEST, {"ours": ours, "same": plain}, plain)
    exact = [100.0 * (np.arange(40) < right) for right in (20, 10)]
    gain = paired_bootstrap(*exact)
    assert gain.difference == 25
    assert table.loc["ours", "EM"] == f"+25.0 [{gain.low:.1f}, {gain.high:.1f}]"
    assert table.loc["same"].tolist() == ["+0.0 [0.0, 0.0]"] * 2


def test_recurrent_mixers_stand_against_the_same_encoder(monkeypatch):
    calls = []

    def noted(test, ours, theirs):
        calls.append((list(ours), theirs))
        return pd.DataFrame({"EM": ["+0.0"]}, index=list(ours))

    monkeypatch.setattr(reader_stages, "gains", noted)
    scored = dict.fromkeys(["plain", "dense", "dilated", "plain, recurrent", "dense, recurrent"])
    table = reader_stages.recurrence_gains(None, {name: name for name in scored})
    assert calls == [(["plain, recurrent"], "plain"), (["dense, recurrent"], "dense")]
    assert list(table.index) == [("plain", "plain, recurrent"), ("dense", "dense, recurrent")]
