"""The command line as a user meets it: answers, and one line for each mistake."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import TINY, examples, tiny_reader
from typer.testing import CliRunner

from qalib.__main__ import app, main
from qalib.data.features import WindowConfig
from qalib.data.squad import write_squad
from qalib.errors import QalibError
from qalib.readers.shipped import checkpoint_hash, load_reader, save_reader
from qalib.skim.predictors import PredictorConfig
from qalib.skim.settings import SkimConfig
from qalib.skim.skimmer import Skimmer
from qalib.skim.storage import save_skimmer
from qalib.skim.wishes import Calibration, Point, save_calibration


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reader")
    reader = tiny_reader()
    moved = {name: p for name, p in reader.named_parameters() if p.requires_grad}
    save_reader(folder, TINY, WindowConfig(), moved, rank=4)
    return str(folder)


def run(*words, text=None):
    return CliRunner().invoke(app, [str(word) for word in words], input=text)


def test_a_question_is_answered_from_a_file_and_from_stdin(checkpoint, tmp_path):
    passage = tmp_path / "passage.txt"
    passage.write_text("Ada met Bo in Oslo.", encoding="utf-8")
    said = run("answer", "Where?", "--passage", passage, "--checkpoint", checkpoint)
    piped = run("answer", "Where?", "--checkpoint", checkpoint, text="Ada met Bo in Oslo.")
    assert said.exit_code == 0
    assert said.output == piped.output
    assert said.output.strip().endswith("%)")


def test_json_holds_offsets(checkpoint):
    text = "Ada met Bo in Oslo."
    words = ("answer", "Where?", "--json", "--n-best", 3, "--checkpoint", checkpoint)
    found = json.loads(run(*words, text=text).output)
    assert len(found) == 3
    assert all(text[c["start"] : c["end"]] == c["text"] for c in found)


@pytest.fixture(scope="module")
def skimmed(checkpoint):
    """The reader's folder with a skimmer and what grants wishes; not where others look."""
    reader = load_reader(checkpoint)
    beside = checkpoint_hash(Path(checkpoint))
    config = SkimConfig(PredictorConfig("question", block_size=8), (1,), (1,), (0.4,))
    save_skimmer(checkpoint, Skimmer.beside(reader.encoder, config), beside)
    points = (Point(1, 0.2, 0.99, 0.8, 0.1), Point(1, 0.6, 0.9, 0.4, 2.0))
    save_calibration(checkpoint, Calibration(points, 100, "made up"))
    return checkpoint


def test_many_questions_on_one_passage(checkpoint, tmp_path):
    (tmp_path / "asked.txt").write_text("Who met Bo?\n\n  Where? \n", encoding="utf-8")
    words = ("answer", "--questions", tmp_path / "asked.txt", "--checkpoint", checkpoint)
    passage = "Ada met Bo in Oslo."
    lines = run(*words, text=passage).stdout.splitlines()
    assert [lines[0], lines[2]] == ["Who met Bo?", "Where?"]
    told = json.loads(run(*words, "--json", text=passage).stdout)
    alone = json.loads(run("answer", "Where?", "--json", *words[3:], text=passage).stdout)
    assert [t["question"] for t in told] == ["Who met Bo?", "Where?"]
    assert told[1]["answers"][0]["text"] == alone[0]["text"]
    assert lines[3].strip().startswith(alone[0]["text"])


def test_skimming_tells_what_was_promised_and_read(skimmed, tmp_path):
    text = "Ada met Bo in Oslo, and a long winter came. " * 80
    words = ("answer", "Where?", "--checkpoint", skimmed, "--skim")
    said = run(*words, "--keep", 0.95, "--drop", 0.2, text=text).stderr
    assert "skims at layer 1 where blocks score below 0.2000" in said
    assert "held-out questions like the 100 it was calibrated on" in said
    assert "of 4 windows dropped early" in said
    assert "everything is read" in run(*words, "--lost", 0, text=text).stderr
    told = json.loads(run(*words, "--json", text=text).stdout)
    assert (told["windows"], told["dropped"]) == (4, 0)
    assert 0 < told["read"] <= 1


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("--keep", 0.9), "add --skim"),
        (("--drop", 0.1), "add --skim"),
        (("--skim", "--keep", 0.9, "--work", 0.5), "keep and work"),
        (("--skim", "--keep", 99.5), "between 0 and 1"),
        (("--skim", "--lost", -1), "0 to 100"),
        (("--skim", "--work", 0.1), "cannot be had"),
        (("--skim", "--keep", 0.95, "--drop", 0.5), "drop below that"),
        (("--skim", "--drop", 2), "drop is a probability"),
    ],
)
def test_wishes_that_cannot_be_are_one_sentence(words, match, skimmed):
    done = run("answer", "Where?", "--checkpoint", skimmed, *words, text="Ada met Bo in Oslo.")
    assert isinstance(done.exception, QalibError), done.exception
    assert match in str(done.exception)
    assert "\n" not in str(done.exception)


def test_a_file_of_questions_is_answered_and_scored(checkpoint, tmp_path):
    write_squad(examples(6), tmp_path / "data.json")
    output = tmp_path / "predictions.json"
    words = ("answer", "--dataset", tmp_path / "data.json", "--output", output)
    done = run(*words, "--n-best", 2, "--checkpoint", checkpoint)
    assert done.exit_code == 0, done.output
    assert set(json.loads(output.read_text())) == {e.id for e in examples(6)}
    ranked = json.loads((tmp_path / "predictions.nbest.json").read_text())
    assert all(len(best) == 2 for best in ranked.values())
    scores = json.loads(run("score", tmp_path / "data.json", output).output)
    assert set(scores) == {"exact_match", "f1"}


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("answer",), "give either a question"),
        (("answer", "Who?", "--dataset", "x.json"), "give either a question"),
        (("answer", "Who?", "--questions", "{text}"), "give either a question"),
        (("answer", "--questions", "nowhere.txt"), "nowhere.txt"),
        (("answer", "--questions", "{blank}", "--passage", "{text}"), "no text in it"),
        (("answer", "Who?", "--passage", "{blank}"), "no text in it"),
        (("answer", "Who?", "--passage", "nowhere.txt"), "nowhere.txt"),
        (("answer", "Who?", "--n-best", "0", "--passage", "{text}"), "n_best"),
        (("answer", "Who?", "--passage", "{text}", "--checkpoint", "nowhere"), "nowhere"),
        (("answer", "Who?", "--passage", "{latin}"), "UTF-8"),
        (("answer", "--dataset", "{text}"), "--output"),
        (("answer", "--dataset", "{text}", "--output", "no/such/folder.json"), "folder"),
        (("score", "nowhere.json", "nowhere.json"), "nowhere.json"),
        (("fetch", "sqaud"), "sqaud"),
        (("figures", "--profile", "labtop"), "laptop"),
        (("figures", "--profile", "ci", "--only", "77"), "77"),
        (("figures", "--profile", "ci", "-p", "sead=3"), "sead"),
        (("train", "decoder"), "encoder"),
        (("train", "encoder", "--profile", "huge"), "huge"),
        (("runs", "--why", "zzzz"), "zzzz"),
        (("runs", "--drop", "zzzz"), "zzzz"),
    ],
)
def test_mistakes_are_one_sentence(words, match, tmp_path, monkeypatch):
    monkeypatch.setenv("QALIB_STORE", str(tmp_path / "runs"))
    (tmp_path / "text.txt").write_text("Ada met Bo.")
    (tmp_path / "latin.txt").write_bytes("Kovač".encode("iso8859_2"))
    (tmp_path / "blank.txt").write_text(" \n\n")
    named = {name: tmp_path / f"{name}.txt" for name in ("text", "latin", "blank")}
    done = run(*(word.format(**named) for word in words))
    assert isinstance(done.exception, QalibError), done.exception
    sentence = str(done.exception)
    assert match in sentence
    assert "\n" not in sentence


def test_main_prints_the_sentence_and_exits_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["qalib", "score", "nowhere.json", "nowhere.json"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("qalib: nowhere.json")
    assert said.count("\n") == 1


def test_a_real_process_gives_no_traceback():
    done = subprocess.run(
        [sys.executable, "-m", "qalib", "runs", "--why", "zzzz"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("qalib: ")


def test_sources_are_listed():
    listing = run("fetch").output
    assert "squad-dev-v1.1" in listing
    assert "narrativeqa" in listing
