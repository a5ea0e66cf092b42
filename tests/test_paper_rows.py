"""The rows of the paper's table: costs without weights, and a few steps of every family."""

import json

import pytest
from test_families import save_family
from tiny import LAUNCH, examples, launched
from typer.testing import CliRunner

from qalib.__main__ import app
from qalib.data.sources import SOURCES
from qalib.errors import QalibError
from qalib.models.pretrained import load_reader
from qalib.skim.storage import load_skimmer
from qalib.study.paper import describe_row, paper_rows


def test_every_row_is_described_without_weights_or_network(monkeypatch):
    monkeypatch.setattr("socket.socket", None)
    rows = paper_rows()
    millions = {name: describe_row(rows, f"{name}/squad")["millions"] for name in rows.encoders}
    published = [109, 334, 124, 354, 11.1, 16.6, 66.4]  # with a span head, without a pooler
    assert list(millions.values()) == pytest.approx(published, rel=0.005)
    base = describe_row(rows, "bert-base/newsqa")
    assert (base["layers"], base["tokens"]) == ("12 x 768, 12 heads", 512)
    assert base["third"] < 0.55 * base["gmacs"]


def test_the_settings_of_a_row_are_the_papers():
    rows = paper_rows()
    for name, rate, alpha, tokens in (
        ("bert-large/squad", 3e-5, 1.0, 2920),  # about 16 windows
        ("albert-base/squad", 5e-5, 0.05, 2920),
        ("bert-base/hotpotqa", 3e-5, 1.0, 32 * 512),
    ):
        config = rows.training(name)
        assert (config.train.learning_rate, config.skim_loss.alpha) == (rate, alpha)
        assert (config.train.tokens_per_batch, config.train.num_train_epochs) == (tokens, 2)
        assert (config.seed, config.skim_loss.beta, config.predictor.block_size) == (42, 4, 32)
    assert rows.training("bert-base/squad", plain=True).skim_loss.alpha == 0
    assert {s for data in rows.sets.values() for s in (data.train, data.test)} <= set(SOURCES)
    with pytest.raises(QalibError, match="did you mean 'bert-base/squad'"):
        rows.find("bert-bas/squad")


@pytest.mark.parametrize("row", ["bert-base", "roberta-base", "albert-base", "distilbert"])
def test_a_row_is_trained_with_a_small_model_of_its_family(row, tmp_path):
    family = row.removesuffix("-base")
    save_family(family, tmp_path / "model", max_position_embeddings=400)
    data = [
        {"id": e.id, "question": e.question, "context": e.context}
        | {"answers": [{"text": a.text, "answer_start": a.start} for a in e.answers]}
        for e in examples(4)
    ]
    (tmp_path / "data.json").write_text(json.dumps(data))
    words = ["study", "paper-row", f"{row}/squad", "--output", str(tmp_path / "out")]
    words += ["--model", str(tmp_path / "model"), "--data", str(tmp_path / "data.json")]
    words += ["--dev", str(tmp_path / "data.json"), "--max-steps", "1"]
    if row == "distilbert":  # on two processes
        said = launched([*LAUNCH, "-m", "qalib", *words])
    else:
        run = CliRunner().invoke(app, words)
        assert run.exit_code == 0, run.output
        said = run.output
    assert 0 <= json.loads(said[said.index("{") :])["f1"] <= 100
    reader = load_reader(tmp_path / "out")
    assert load_skimmer(tmp_path / "out", reader.encoder).config.layers == (1, 2)
