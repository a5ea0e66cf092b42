"""The command line as a user meets it: listings, and one line for each mistake."""

import io
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
        (("study", "export-checkpoint", "reader", "--profile", "huge"), "huge"),
        (("study", "export-checkpoint", "decoder"), "is not shipped"),
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


def test_letters_that_the_terminal_lacks_are_escaped(monkeypatch, tmp_path):
    (tmp_path / "text.txt").write_text("Mira Kovač built it.", encoding="utf-8")
    words = ["qalib", "answer", "Who built it?", "--passage", str(tmp_path / "text.txt")]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed := io.BytesIO(), "ascii"))
    with pytest.raises(SystemExit) as stopped:
        main()
    sys.stdout.flush()
    assert stopped.value.code == 0
    assert rb"Mira Kova\u010d" in printed.getvalue()


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


def test_sources_and_commands_are_listed():
    shown = run("--help").output
    for command in ("answer", "score", "train", "distill", "skim", "bench", "fetch", "study"):
        assert command in shown
    assert "squad-dev-v1.1" in run("fetch").output


def test_notebooks_are_checked_or_run(monkeypatch):
    results = {"00_toy": "", "01_toy": ""}
    monkeypatch.setattr("qalib.study.notebooks.run_notebooks", lambda *args: results)
    monkeypatch.setattr("qalib.study.notebooks.check", lambda profile: [])
    words = ("study", "run-notebooks", "--profile", "laptop")
    assert run(*words).exit_code == 0
    assert "Everything is up to date." in run(*words, "--check").output
    results["01_toy"] = "01 cell 3: no"
    monkeypatch.setattr("qalib.study.notebooks.check", lambda profile: ["00_toy: stale"])
    for more, shown in (((), "1 failed:\n01 cell 3: no"), (("--check",), "00_toy: stale")):
        done = run(*words, *more)
        assert done.exit_code == 1
        assert shown in done.output
