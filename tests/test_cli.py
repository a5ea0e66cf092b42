"""The command line as a user meets it: listings, and one line for each mistake."""

import json
import sys
import warnings

import pytest
from typer.testing import CliRunner

from qalib.__main__ import app, main
from qalib.errors import QalibError


def run(*words):
    return CliRunner().invoke(app, list(words))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("fetch", "sqaud"), "sqaud"),
        (("study", "run-notebooks", "--profile", "labtop"), "laptop"),
        (("study", "run-notebooks", "--profile", "ci", "--only", "77"), "77"),
        (("study", "run-notebooks", "--profile", "ci", "-p", "sead=3"), "sead"),
        (("study", "train", "decoder"), "encoder"),
        (("study", "train", "encoder", "--profile", "huge"), "huge"),
        (("study", "export-checkpoint", "decoder"), "reader or skimmer"),
    ],
)
def test_mistakes_are_one_sentence(words, message, tmp_path, monkeypatch):
    monkeypatch.setenv("QALIB_STORE", str(tmp_path / "runs"))
    done = run(*words)
    assert isinstance(done.exception, QalibError), done.exception
    assert message in str(done.exception)
    assert "\n" not in str(done.exception)


def test_main_prints_the_sentence_and_exits_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["qalib", "score", "nowhere.json", "nowhere.json"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("qalib: nowhere.json")
    assert error.count("\n") == 1


def test_what_is_tolerated_in_data_is_one_line(monkeypatch, capsys, tmp_path):
    row = {"question": "Who?", "context": "Bo slept.", "answers": [{"text": "Bo"}]}
    rows = [{"id": 1, **row}, {"id": 2, **row}]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    (tmp_path / "found.json").write_text('{"1": "Bo", "2": "Bo"}')
    words = ["qalib", "score", str(tmp_path / "data.json"), str(tmp_path / "found.json")]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    with pytest.raises(SystemExit) as stopped:
        main()
    printed = capsys.readouterr()
    assert stopped.value.code == 0
    assert json.loads(printed.out) == {"exact_match": 100.0, "f1": 100.0}
    assert printed.err.startswith("qalib: ")
    assert printed.err.count("\n") == 1


def test_sources_are_listed():
    assert "squad-dev-v1.1" in run("fetch").output
