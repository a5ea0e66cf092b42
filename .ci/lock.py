"""Write requirements.lock from pyproject.toml: `make lock`.

pip resolves as if nothing were installed and as Python 3.11.0 would, so that the oldest Python we
promise can use every version; nothing is installed. Then it resolves once more for each package
that only another platform asks for, and what comes new is locked behind that platform's marker.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KIT = ["torch==2.13.0", f"{ROOT}[study,bench,dev]"]
ELSEWHERE = {
    "appnope": 'sys_platform == "darwin"',  # ipykernel
    "aiohttp": 'python_version == "3.12"',  # papermill
}
# Only torch with CUDA asks for these, each at one exact version already.
WITH_CUDA = ("nvidia-", "cuda-", "triton")

HEADER = """\
# Every package of the kit at one exact version, for Linux and macOS, Python 3.11 or newer.
# Made by `make lock` from pyproject.toml; not edited by hand.
# On Linux the package index gives torch with CUDA; for the much smaller CPU build set
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu before installing.
"""


def resolve(*wanted: str) -> dict[str, str]:
    """Package names and versions, without local tags such as +cpu, that pip would install."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        as_oldest = ["--python-version", "3.11.0", "--only-binary", ":all:", "--target", folder]
        subprocess.run([*pip, *as_oldest, "--report", str(report), *wanted], check=True)
        found = [package["metadata"] for package in json.loads(report.read_text())["install"]]
    pins = {each["name"].lower().replace("_", "-"): each["version"] for each in found}
    return {
        name: version.partition("+")[0]
        for name, version in pins.items()
        if name != "qalib" and not name.startswith(WITH_CUDA)
    }


def main() -> None:
    """Resolve, and write the lock."""
    pins = resolve(*KIT)
    lines = {name: f"{name}=={version}" for name, version in pins.items()}
    held = [f"{name}=={version}" for name, version in pins.items()]
    for package, marker in ELSEWHERE.items():
        for name, version in resolve(*held, package).items():
            lines.setdefault(name, f"{name}=={version} ; {marker}")
    text = "\n".join(lines[name] for name in sorted(lines))
    (ROOT / "requirements.lock").write_text(HEADER + text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
