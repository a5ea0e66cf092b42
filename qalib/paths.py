"""Locations on disk, set by environment variables; no default depends on the working directory."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def data_dirs() -> list[Path]:
    """Directories searched for data files, in order: QALIB_DATA, then data/, then the cache."""
    named = os.environ.get("QALIB_DATA")
    return [*([Path(named).expanduser()] if named else []), ROOT / "data", cache_dir()]


def cache_dir() -> Path:
    """The folder of downloads: QALIB_CACHE, else ``qalib`` in the user's cache directory."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "qalib"
    return Path(os.environ.get("QALIB_CACHE") or home).expanduser()


def store_dir() -> Path:
    """The folder of runs: QALIB_STORE, else ``runs/`` at the top of the checkout."""
    return Path(os.environ.get("QALIB_STORE") or ROOT / "runs").expanduser()
