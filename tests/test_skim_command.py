"""The ``skim`` commands, from a file of questions to the sentences to read."""

import json
import shutil
from dataclasses import replace

import pytest
from squad_files import write_squad
from tiny import examples, tiny_reader
from transformers import AutoModelForQuestionAnswering
from typer.testing import CliRunner

from qalib.__main__ import app
from qalib.data.schema import Example, passage_digests
from qalib.data.windows import WindowConfig
from qalib.errors import QalibError
from qalib.models.pretrained import load_reader, passages_of, save_model, windows_of
from qalib.skim.storage import load_skimmer, read_settings

WINDOWS = WindowConfig(max_length=64, doc_stride=16, max_query_length=24)
TRAIN = ("--block-size", 8, "--batch-size", 4, "--device", "cpu", "--precision", "fp32")


def run(*words, text=None):
    return CliRunner().invoke(app, [str(word) for word in words], input=text)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model that was trained on one passage, questions, and a skimmer trained on half of them."""
    folder = tmp_path_factory.mktemp("skim")
    passages = [e.context for e in examples(1)]
    digests = passage_digests([Example("", "", text) for text in passages])
    save_model(folder / "model", tiny_reader(), WINDOWS, passages=digests)
    write_squad(examples(24)[1:12], folder / "train.json")
    write_squad(examples(24)[12:], folder / "mine.json")
    words = ("--model", folder / "model", "--output", folder / "skims", *TRAIN)
    done = run("skim", "train", folder / "train.json", *words, "--dev", folder / "mine.json")
    assert done.exit_code == 0, done.output
    assert "share of mine that holds 99 % of its answers: " in done.stderr
    return folder


def calibrated(place, tmp_path, *words):
    folder = shutil.copytree(place / "skims", tmp_path / "skims")
    words = ("--skimmer", folder, "--recall", 0.8, "--precision", "fp32", *words)
    return folder, run("skim", "calibrate", place / "mine.json", *words)


def test_a_model_that_knows_no_answer_keeps_that(place, tmp_path):
    save_model(tmp_path / "model", tiny_reader(), replace(WINDOWS, null=True))
    words = ("--model", tmp_path / "model", "--output", tmp_path / "skims", "--max-steps", 1)
    done = run("skim", "train", place / "mine.json", *words, *TRAIN)
    assert done.exit_code == 0, done.output
    assert windows_of(tmp_path / "skims") == replace(WINDOWS, null=True)


@pytest.mark.parametrize("command", ["train", "calibrate"])
def test_windows_that_are_too_long_for_the_model_are_refused(command, place, tmp_path):
    words = ("--model", place / "model", "--output", tmp_path / "x", *TRAIN)
    words = ("--skimmer", place / "skims") if command == "calibrate" else words
    done = run("skim", command, place / "mine.json", *words, "--max-seq-length", 9999)
    assert isinstance(done.exception, QalibError)
    assert "lower max_length (--max-seq-length)" in str(done.exception)


def test_the_folder_is_the_unchanged_model_with_a_skimmer(place):
    assert not list(place.glob("skims.*"))
    model = AutoModelForQuestionAnswering.from_pretrained(place / "skims").state_dict()
    expected = load_reader(place / "model").encoder.state_dict()
    assert all((tensor == model[name]).all() for name, tensor in expected.items())
    skimmer = load_skimmer(place / "skims", load_reader(place / "skims").encoder)
    assert skimmer.config.layers == (1,)
    assert passages_of(place / "skims") == passages_of(place / "model")
    assert "holds a skimmer" in (place / "skims" / "README.md").read_text()
    words = ("--model", place / "model", "--output", place / "skims")
    done = run("skim", "train", place / "train.json", *words)
    assert "exists already" in str(done.exception)


def test_a_threshold_is_chosen_measured_stored_and_used(place, tmp_path):
    folder, done = calibrated(place, tmp_path, "--test", place / "train.json")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert "chosen for a recall of 0.8" in lines[0]
    assert "cross-validated on mine: " in lines[1]
    assert " of 12 answers kept whole" in lines[1]
    assert "measured on" in lines[2]
    assert "may differ" in lines[3]
    card = (folder / "README.md").read_text()
    assert card.endswith("".join(f"- {line}\n" for line in lines))
    stored = read_settings(folder)
    assert stored["config"]["thresholds"] == [stored["calibration"]["threshold"]]
    text = examples(24)[4].context
    done = run("answer", "When?", "--skim", "--model", folder, text=text)
    assert done.exit_code == 0, done.output
    assert "chosen for a recall of 0.8" in done.stderr
    words = ("--data", place / "mine.json", "--questions", 2, "--rounds", 1, "--json")
    for option in ("--model", "--skimmer"):
        done = run("bench", "answer", *words, option, folder)
        names = [row["reader"] for row in json.loads(done.stdout)]
        assert (names[0], names[-1]) == (f"padded to {WINDOWS.max_length}", "skimming")


def test_json_is_what_is_stored(place, tmp_path):
    folder, done = calibrated(place, tmp_path, "--json", "--confidence", 0.5)
    assert json.loads(done.stdout) == read_settings(folder)["calibration"]


def test_passages_of_the_training_are_refused(place, tmp_path):
    write_squad(examples(2), tmp_path / "known.json")
    for data, words in ((place / "train.json", "11 of"), (tmp_path / "known.json", "2 of")):
        done = run("skim", "calibrate", data, "--skimmer", place / "skims")
        assert isinstance(done.exception, QalibError)
        assert f"was trained on, {words} a sample of 12" in str(done.exception)
    done = run("skim", "calibrate", place / "mine.json", "--skimmer", place / "skims")
    assert "at least 99" in str(done.exception)


def test_sentences_are_printed_with_their_share(place, tmp_path):
    folder, _ = calibrated(place, tmp_path)
    passage = " ".join(e.context for e in examples(8))
    words = ("skim", "extract", "When was Town3 founded?", "--skimmer", folder)
    done = run(*words, text=passage)
    assert done.exit_code == 0, done.output
    found = json.loads(run(*words, "--json", text=passage).stdout)
    assert [s["text"] for s in found["sentences"]] == done.stdout.splitlines()
    assert 0 < found["share"] <= 1
    assert f"{len(found['sentences'])} sentences, {found['share']:.0%} of the text" in done.stderr
    done = run("skim", "extract", "When?", "--skimmer", place / "skims", text=passage)
    assert "no threshold yet" in str(done.exception)
