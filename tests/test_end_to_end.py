"""One notebook of the kit through papermill, as `make figures` runs them."""

import subprocess
import sys

from qalib.paths import ROOT


def test_a_notebook_runs_and_is_up_to_date_then() -> None:
    words = ["-m", "qalib", "study", "run-notebooks", "--profile", "ci", "--only", "00"]
    options = {"cwd": ROOT, "capture_output": True, "text": True}
    first, second = (subprocess.run([sys.executable, *words], **options) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stdout + first.stderr
    assert "00_start_here (1 of 1): up to date" in second.stdout
