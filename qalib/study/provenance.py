"""What a result was made with: versions, processor, device, commit and command.

Nothing here names a person, a host or a folder, so that it can be committed with the result.
"""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from qalib.paths import ROOT

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "safetensors",
    "peft",
    "datasets",
    "numpy",
    "pandas",
    "matplotlib",
)


def environment() -> dict:
    """Versions, platform, processor, device, commit and command line, as plain JSON data."""
    return {
        "python": platform.python_version(),
        "packages": versions(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": {"model": cpu_model(), "cores": os.cpu_count()},
        **torch_device(),
        "git": git_state(),
        "command": command_line(),
    }


def versions() -> dict[str, str]:
    """Installed versions of the packages that can move a number, read without importing them."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_model() -> str:
    """The processor's name, as its maker gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def torch_device() -> dict:
    """Device and thread count, if torch is in use; a table or a plot need not load it."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {"device": "cpu", "torch_threads": None}
    device = "cpu"
    if torch.cuda.is_available():
        device = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    elif torch.backends.mps.is_available():
        device = "mps"
    return {"device": device, "torch_threads": torch.get_num_threads()}


def peak_memory_gb() -> float | None:
    """The most memory that this process has held so far, in GB; None where it cannot be told."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e9 if sys.platform == "darwin" else 1e6), 2)


def git_state() -> dict:
    """The commit, and whether the package differs from it (figures being redrawn do not count)."""
    commit = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--", "qalib") if commit else None
    return {"commit": commit, "dirty": None if changed is None else bool(changed)}


def _git(*words: str) -> str | None:
    if not (ROOT / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def command_line() -> str:
    """The command that made a result, with every absolute path cut down to its last name.

    A notebook's kernel cannot see the command it was started by; the runner hands it on in
    QALIB_COMMAND.
    """
    if handed_on := os.environ.get("QALIB_COMMAND"):
        return handed_on
    program, *words = sys.argv or [""]
    path = Path(program)
    if path.name == "__main__.py":
        words = ["-m", path.parent.name, *words]
    elif path.name == "ipykernel_launcher.py":
        return "jupyter"
    else:
        words = [path.name, *words]
    return " ".join(["python", *(_relative(word) for word in words)])


def _relative(word: str) -> str:
    option, equals, value = word.rpartition("=")
    return option + equals + (Path(value).name if Path(value).is_absolute() else value)
