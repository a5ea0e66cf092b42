"""Shared fixtures, and the ground rules of every test: no network, no luck."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# The same examples on every machine, so that a red run can be repeated; no deadline, because a
# loaded machine is not a bug.
settings.register_profile("qalib", derandomize=True, deadline=None)
settings.load_profile("qalib")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The directory with real SQuAD files (QALIB_DATA); without it the test does not run."""
    folder = os.environ.get("QALIB_DATA")
    if not folder or not (Path(folder) / "squad-dev-v1.1.json").exists():
        pytest.skip("QALIB_DATA names no directory with squad-dev-v1.1.json")
    return Path(folder)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Notebooks wait for runs that others compute (QALIB_WAIT in the Makefile); tests do not."""
    monkeypatch.delenv("QALIB_WAIT", raising=False)
