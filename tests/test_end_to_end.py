"""One notebook of the kit through papermill, as `make figures` runs them."""

import subprocess
import sys

from qalib.paths import ROOT
from qalib.study.notebooks import ProjectPaths


def test_a_notebook_runs_and_is_up_to_date_then() -> None:
    ProjectPaths().stamp("00_start_here", "ci").unlink(missing_ok=True)  # of an earlier run
    words = ["-m", "qalib", "study", "run-notebooks", "--profile", "ci", "--only", "00"]
    options = {"cwd": ROOT, "capture_output": True, "text": True}
    first, second = (subprocess.run([sys.executable, *words], **options) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stdout + first.stderr
    assert "00_start_here (1 of 1): done in" in first.stdout
    assert "00_start_here (1 of 1): up to date" in second.stdout
