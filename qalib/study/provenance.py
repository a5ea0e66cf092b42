"""What a result was made with: versions, processor, device, commit and command.

Nothing here identifies a person, a host or a folder, so it can be committed with the result.
"""

import contextlib
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from qalib.paths import ROOT

PACKAGES = "torch transformers tokenizers accelerate safetensors peft datasets numpy pandas"


def environment() -> dict:
    """Versions, platform, processor, device, commit and command line, as plain JSON data.

    The versions are of the installed packages that can change a result, read without importing
    them. Device and threads come from torch if it is imported; tables and plots need not load it.
    """
    packages = {}
    for name in PACKAGES.split():
        with contextlib.suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    device, torch = "cpu", sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        device = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    elif torch and torch.backends.mps.is_available():
        device = "mps"
    return {
        "python": platform.python_version(),
        "packages": packages,
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": {"model": cpu_model(), "cores": os.cpu_count()},
        "device": device,
        "torch_threads": torch.get_num_threads() if torch else None,
        "git": git_state(),
        "command": command_line(),
    }


def cpu_model() -> str:
    """The processor's model name, or "unknown"."""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        if found := re.search(r"model name\s*:(.*)", text):
            return found[1].strip()
    return platform.processor() or "unknown"


def peak_memory_gb() -> float | None:
    """The peak resident memory of this process so far, in GB; None where it is not reported."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e9, 2)


def git_state() -> dict:
    """The commit, and whether the package differs from it (changed figures do not count)."""
    words = ["git", "-C", str(ROOT), "status", "--porcelain=v2", "--branch", "--", "qalib"]
    lines: list[str] = []
    if (ROOT / ".git").exists():
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True)
            lines = done.stdout.splitlines()
    for line in lines:
        if line.startswith("# branch.oid "):
            dirty = any(not each.startswith("#") for each in lines)
            return {"commit": line.split()[-1], "dirty": dirty}
    return {"commit": None, "dirty": None}


def command_line() -> str:
    """The command that made a result, with every absolute path reduced to its last component.

    A notebook's kernel does not see the command that started the runner, which passes it on in
    QALIB_COMMAND.
    """
    words = [re.sub(r"(^|=)/.*/", r"\1", word) for word in sys.argv]
    command = " ".join(["python", *words]).replace("python __main__.py", "python -m qalib")
    return os.environ.get("QALIB_COMMAND") or command
