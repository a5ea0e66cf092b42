"""The ``answer`` and ``score`` commands: answers, files, and one line for each mistake."""

import json
import os
import threading
from dataclasses import asdict
from pathlib import Path

import pytest
from squad_files import write_squad
from tiny import examples, tiny_reader
from typer.testing import CliRunner

from qalib.__main__ import app
from qalib.commands import answer
from qalib.commands.output import write_output
from qalib.data.windows import WindowConfig
from qalib.errors import QalibError
from qalib.models.pretrained import load_reader, save_model
from qalib.skim.predictors import PredictorConfig
from qalib.skim.skimmer import SkimConfig, Skimmer
from qalib.skim.storage import Calibration, Measurement, save_skimmer

PASSAGE = "Ada met Bo in Oslo."


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder with a reader and its calibrated skimmer."""
    folder = tmp_path_factory.mktemp("place") / "reader"
    save_model(folder, tiny_reader(), WindowConfig())
    config = SkimConfig(PredictorConfig("question", block_size=8), (1,), (1,), (0.4,))
    encoder = load_reader(folder).encoder
    measured = (Measurement("made up", 100, 98, 0.4),)
    calibration = asdict(Calibration(1, 0.4, 0.95, None, measured))
    save_skimmer(folder, Skimmer.beside(encoder, config), encoder, calibration)
    return str(folder)


def run(*words, text=None):
    return CliRunner().invoke(app, [str(word) for word in words], input=text)


def test_a_passage_comes_from_a_file_or_stdin(checkpoint, tmp_path):
    passage = tmp_path / "passage.txt"
    passage.write_text(PASSAGE, encoding="utf-8-sig")
    from_file = run("answer", "Where?", "--passage", passage, "--checkpoint", checkpoint)
    piped = run("answer", "Where?", "--checkpoint", checkpoint, text=PASSAGE)
    assert from_file.exit_code == 0
    assert from_file.output == piped.output
    assert from_file.output.strip().endswith("%)")


def test_json_has_offsets(checkpoint):
    words = ("answer", "Where?", "--json", "--n-best", 3, "--checkpoint", checkpoint)
    found = json.loads(run(*words, text=PASSAGE).output)
    assert len(found) == 3
    assert all(PASSAGE[c["start"] : c["end"]] == c["text"] for c in found)


def test_a_question_of_two_lines_is_one_question(checkpoint):
    words = ("--json", "--checkpoint", checkpoint)
    one, other = (run("answer", q, *words, text=PASSAGE) for q in ("Who met\nBo?", "Who met Bo?"))
    assert json.loads(one.output)[0]["text"] == json.loads(other.output)[0]["text"]


def test_many_questions_about_one_passage(checkpoint, tmp_path):
    (tmp_path / "questions.txt").write_text("Who met Bo?\n\n  Where? \n", encoding="utf-8")
    words = ("answer", "--questions", tmp_path / "questions.txt", "--checkpoint", checkpoint)
    lines = run(*words, text=PASSAGE).stdout.splitlines()
    assert [lines[0], lines[2]] == ["Who met Bo?", "Where?"]
    rows = json.loads(run(*words, "--json", text=PASSAGE).stdout)
    alone = json.loads(run("answer", "Where?", "--json", *words[3:], text=PASSAGE).stdout)
    assert [row["question"] for row in rows] == ["Who met Bo?", "Where?"]
    assert rows[1]["answers"][0]["text"] == alone[0]["text"]
    assert lines[3].strip().startswith(alone[0]["text"])


def test_skimming_reports_its_operating_point_and_the_processed_fraction(checkpoint):
    text = "Ada met Bo in Oslo, and a long winter came. " * 80
    words = ("answer", "Where?", "--checkpoint", checkpoint, "--skim")
    report = run(*words, text=text).stderr
    assert "scored below 0.4000 at layer 1" in report
    assert "98 of 100 answers kept whole" in report
    assert "may differ" in report
    assert "processed by all layers: " in report
    row = json.loads(run(*words, "--json", text=text).stdout)
    assert row["windows"] == 4
    assert 0 < row["token_fraction"] <= 1
    assert row["answers"][0]["text"] in text


def test_a_data_set_is_answered_and_scored(checkpoint, tmp_path):
    write_squad(examples(6), tmp_path / "data.json")
    output, odds = tmp_path / "predictions.json", tmp_path / "odds.json"
    words = ("answer", "--dataset", tmp_path / "data.json", "--output", output)
    done = run(*words, "--n-best", 2, "--null-odds", odds, "--model", checkpoint)
    assert done.exit_code == 0, done.output
    assert set(json.loads(output.read_text())) == {e.id for e in examples(6)}
    ranked = json.loads((tmp_path / "predictions.nbest.json").read_text())
    assert all(len(best) == 2 for best in ranked.values())
    scores = json.loads(run("score", tmp_path / "data.json", output).output)
    assert set(scores) == {"exact_match", "f1"}
    scores = run("score", tmp_path / "data.json", output, "--na_prob_file", odds).output
    assert "best_f1_thresh" in json.loads(scores)
    third = sorted(json.loads(odds.read_text()).values())[2]
    null = ("--null", "--null-score-diff-threshold", third)
    assert run(*words, *null, "--model", checkpoint).exit_code == 0
    assert list(json.loads(output.read_text()).values()).count("") == 3  # odds above the third


def test_n_best_files_of_different_outputs_have_different_names(tmp_path):
    names = ("seed.1", "seed.2", "a.json")
    found = [answer._n_best_path(tmp_path / name).name for name in names]
    assert found == ["seed.1.nbest.json", "seed.2.nbest.json", "a.nbest.json"]


def test_options_of_run_qa_change_inputs_and_answers(checkpoint):
    words = ("answer", "Where?", "--json", "--model", checkpoint)
    text = "Ada met Bo in Oslo, and a long winter came. " * 20

    def best(*options):
        done = run(*words, *options, text=text)
        assert done.exit_code == 0, done.output
        return json.loads(done.output)[0]

    plain = best()
    assert best("--batch-size", 1, "--precision", "fp32", "--device", "cpu") == plain
    cut = best("--max_seq_length", 40, "--doc_stride", 10, "--max-query-length", 12)
    assert cut["score"] != plain["score"]
    assert len(best("--max-answer-length", 1)["text"].split()) == 1
    assert best("--null", "--null_score_diff_threshold", -1000)["text"] == ""


def test_regular_files_are_replaced_as_a_whole(tmp_path):
    path = tmp_path / "out.json"
    path.write_text("old")
    before = path.stat().st_ino
    write_output(path, "é")
    assert path.read_text(encoding="utf-8") == "é"
    assert path.stat().st_ino != before
    assert list(tmp_path.iterdir()) == [path]


def test_devices_pipes_and_links_are_written_to_and_never_replaced(tmp_path):
    target, link, pipe = (tmp_path / name for name in ("target", "link", "pipe"))
    target.write_text("old and longer")
    link.symlink_to(target)  # as /dev/stdout is
    write_output(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    os.mkfifo(pipe)
    received = []
    thread = threading.Thread(target=lambda: received.append(pipe.read_text()))
    thread.start()
    write_output(pipe, "through the pipe")
    thread.join(10)
    assert received == ["through the pipe"]
    assert pipe.is_fifo()
    write_output(Path("/dev/null"), "gone")
    assert Path("/dev/null").is_char_device()


def test_standard_output_keeps_what_it_holds(capfd):
    os.write(1, b"before ")
    write_output(Path("/dev/stdout"), "after")
    assert capfd.readouterr().out == "before after\n"


def test_inputs_and_other_outputs_are_never_written_over(checkpoint, tmp_path):
    data, twin, link = (tmp_path / name for name in ("p.nbest.json", "twin.json", "link.json"))
    write_squad(examples(2), data)
    twin.hardlink_to(data)
    link.symlink_to(data)
    words = ("answer", data, "--model", checkpoint, "--n-best", 2, "--output")
    new = tmp_path / "new.json"
    for taken in (data, twin, link, tmp_path / "p.json", Path(checkpoint) / "qalib.json"):
        assert "is an input" in str(run(*words, taken).exception), taken
    assert "is an input" in str(run(*words, new, "--null-odds", new).exception)
    relative = os.path.relpath(new)
    assert "is an input" in str(run(*words, relative, "--null-odds", new).exception)
    assert sorted(path.name for path in tmp_path.iterdir()) == [link.name, data.name, twin.name]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("answer",), "give either a question"),
        (("answer", "Who?", "--dataset", "x.json"), "give either a question"),
        (("answer", "Who?", "--questions", "{text}"), "give either a question"),
        (("answer", "--questions", "nowhere.txt"), "nowhere.txt"),
        (("answer", "--questions", "{blank}", "--passage", "{text}"), "no text in it"),
        (("answer", "Who?", "--passage", "{blank}"), "no text in it"),
        (("answer", "Who?", "--passage", "{text}", "--null-odds", "x.json"), "--null-odds"),
        (("answer", " ", "--passage", "{text}", "--json"), "question is empty"),
        (("answer", "Who?", "--passage", "nowhere.txt"), "nowhere.txt"),
        (("answer", "Who?", "--n-best", "0", "--passage", "{text}"), "n_best_size"),
        (("answer", "Who?", "--passage", "{text}", "--checkpoint", "nowhere"), "nowhere"),
        (("answer", "Who?", "--passage", "{latin}"), "UTF-8"),
        (("answer", "Who?", "--passage", "{text}", "--device", "gpu"), "device 'gpu'"),
        (("answer", "Who?", "--passage", "{text}", "--precision", "fp8"), "precision"),
        (("answer", "--dataset", "{text}"), "--output"),
        (("answer", "--dataset", "{text}", "--output", "no/such/folder.json"), "folder"),
        (("answer", "--dataset", "{text}", "--output", "."), "is a folder"),
        (("score", "nowhere.json", "nowhere.json"), "nowhere.json"),
    ],
)
def test_mistakes_are_one_sentence(words, message, tmp_path):
    (tmp_path / "text.txt").write_text("Ada met Bo.")
    (tmp_path / "latin.txt").write_bytes("Kovač".encode("iso8859_2"))
    (tmp_path / "blank.txt").write_text(" \n\n")
    named = {name: tmp_path / f"{name}.txt" for name in ("text", "latin", "blank")}
    done = run(*(word.format(**named) for word in words))
    assert isinstance(done.exception, QalibError), done.exception
    assert message in str(done.exception)
    assert "\n" not in str(done.exception)
