"""The Makefile's set-up with a stand-in for Python, and the notebook hooks with real nbval."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from qalib.paths import ROOT

# A Python that notes what it is told in $LOG. `-m venv DIR` puts a copy of it into DIR.
STAND_IN = """#!/bin/sh
case "$*" in
    "-c "*) exit "${PYTHON_IS:-0}" ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    *"pip install --no-compile -r"*) [ -z "$PIP" ] || eval "$PIP" ;;
esac
echo "$*" >> "$LOG"
"""


class Clone:
    """A folder with what the set-up needs, and the calls that Python got there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stamp = folder / ".venv" / ".installed"
        folder.mkdir()
        for file in ("Makefile", "pyproject.toml", "requirements.lock"):
            shutil.copy(ROOT / file, folder)
        stand_in = folder / "python"
        stand_in.write_text(STAND_IN)
        stand_in.chmod(0o755)

    def make(self, target: str = ".venv/.installed", **settings: str) -> list[str]:
        """Make a target; the calls of Python that it took. Raises where make fails."""
        log = self.folder / "log"
        log.write_text("")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
        command = ["make", f"PYTHON={self.folder / 'python'}", target]
        environment = inherited | {"LOG": str(log)} | settings
        self.run = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True
        )
        self.run.check_returncode()
        return log.read_text().splitlines()


VENV = "-m venv .venv"
LOCK = "-m pip install --no-compile -r requirements.lock"
ITSELF = "-m pip install --no-deps --no-build-isolation --editable ."


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    """A fresh clone, in a folder with a space in its name."""
    return Clone(tmp_path / "a clone")


def test_first_call_installs_and_second_does_nothing(clone: Clone) -> None:
    assert clone.make() == [VENV, LOCK, ITSELF]
    assert clone.make() == []


def test_moved_folder_starts_anew(clone: Clone) -> None:
    clone.make()
    (clone.folder / ".venv" / "old").touch()
    clone.folder = clone.folder.rename(clone.folder.with_name("moved"))
    assert clone.make() == [VENV, LOCK, ITSELF]
    assert not (clone.folder / ".venv" / "old").exists()


def test_failed_install_leaves_no_stamp_and_goes_on(clone: Clone) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        clone.make(PIP="exit 1")
    assert "It needs the package index" in clone.run.stdout
    assert not clone.stamp.exists()
    assert clone.make() == [LOCK, ITSELF]


def test_killed_install_starts_anew(clone: Clone) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        clone.make(PIP="kill -9 $PPID; sleep 1")
    assert clone.stamp.read_text() == "unfinished\n"
    assert clone.make() == [VENV, LOCK, ITSELF]


def test_old_python_is_told_what_to_do(clone: Clone) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        clone.make(PYTHON_IS="1")
    assert "qalib needs Python 3.11 or newer" in clone.run.stdout
    assert not (clone.folder / ".venv").exists()


def test_notebook_hooks(tmp_path: Path) -> None:
    """Cells behind a failed one do not run; cells behind a skipped one do; warnings may differ."""

    def streams(**texts: str) -> list[dict]:
        return [new_output("stream", name=name, text=text) for name, text in texts.items()]

    sources = ["import sys; print('now', file=sys.stderr); print(1)", "x", "y = 2", "1 / 0", "y"]
    cells = [new_code_cell(source, execution_count=n) for n, source in enumerate(sources, 1)]
    cells[0].metadata.tags = ["nbval-check-output"]
    cells[0].outputs = streams(stderr="then\n", stdout="1\n")
    cells[1].metadata.tags = ["nbval-skip"]
    nbformat.write(new_notebook(cells=cells), tmp_path / "first.ipynb")
    nbformat.write(new_notebook(cells=[new_code_cell("2")]), tmp_path / "second.ipynb")
    shutil.copy(ROOT / "conftest.py", tmp_path)
    nbval = ["--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider", "-v", "--color=no"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *nbval], cwd=tmp_path, capture_output=True, text=True
    )
    verdicts = [
        line.split()[2] for line in ran.stdout.splitlines() if "::Cell " in line and "%]" in line
    ]
    assert verdicts == ["PASSED", "SKIPPED", "PASSED", "FAILED", "SKIPPED", "PASSED"], ran.stdout
    assert "Cell 3 of this notebook failed" in ran.stdout
