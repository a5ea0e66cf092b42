"""Where things lie on disk. Resolved from the package, never from the working directory."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def data_dirs() -> list[Path]:
    """Directories searched for data files, in order: QALIB_DATA, then data/, then the cache."""
    named = os.environ.get("QALIB_DATA")
    return [*([Path(named).expanduser()] if named else []), ROOT / "data", cache_dir()]


def cache_dir() -> Path:
    """Downloads land here: QALIB_CACHE, else ``qalib`` under the user's cache directory."""
    named = os.environ.get("QALIB_CACHE")
    if named:
        return Path(named).expanduser()
    home = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(home).expanduser() / "qalib"


def store_dir() -> Path:
    """Where runs are kept: QALIB_STORE, else ``runs/`` at the top of the checkout."""
    return Path(os.environ.get("QALIB_STORE", ROOT / "runs")).expanduser()
