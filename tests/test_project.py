"""The project as a whole: lists of packages agree, files are clean, commands are there."""

import ast
import contextlib
import importlib.metadata as metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import qalib
from qalib.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CORE = [Requirement(line) for line in PROJECT["dependencies"]]
GROUPS = PROJECT["optional-dependencies"]
STUDY, BENCH, DEV = (
    [Requirement(line) for line in GROUPS[group]] for group in ("study", "bench", "dev")
)
ALL = CORE + STUDY + BENCH + DEV


def name(requirement: Requirement) -> str:
    """The package's name as every tool spells it."""
    return canonicalize_name(requirement.name)


def locked() -> list[Requirement]:
    """The lines of requirements.lock."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def python(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run this interpreter, captured."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120
    )


def files_of_the_project() -> list[Path]:
    """What git tracks or would track; without git, everything but the hidden and the generated."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    git = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True)
    if git.returncode == 0:
        return [path for line in git.stdout.split("\0") if line and (path := ROOT / line).is_file()]
    made = ("build", "runs", "__pycache__")
    return [
        path
        for path in ROOT.rglob("*")
        if path.is_file()
        and not any(part in made or part.startswith(".") for part in path.relative_to(ROOT).parts)
    ]


# Packages


@pytest.mark.parametrize("requirement", ALL, ids=name)
def test_every_dependency_has_a_lower_and_an_upper_bound(requirement: Requirement) -> None:
    assert {bound.operator for bound in requirement.specifier} == {">=", "<"}


def test_conda_gets_the_same_packages_within_the_same_bounds() -> None:
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *plain, from_pip = conda["dependencies"]
    assert plain == [f"python{PROJECT['requires-python']}", "pip"]
    *packages, itself = from_pip["pip"]
    assert itself == "--editable ."
    assert packages == [
        *PROJECT["dependencies"],
        *(line for name, lines in GROUPS.items() if name != "base" for line in lines),  # 438 MB
    ]


def test_lock_is_exact_and_within_bounds() -> None:
    pins = {name(pin): pin for pin in locked()}
    for pin in pins.values():
        assert [bound.operator for bound in pin.specifier] == ["=="], pin
        assert "+" not in str(pin.specifier), f"{pin}: a local build is on no index"
    for requirement in ALL:
        (version,) = (bound.version for bound in pins[name(requirement)].specifier)
        assert requirement.specifier.contains(version), f"{requirement} but locked {version}"
    assert str(pins["torch"].specifier) == "==2.13.0"


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
@pytest.mark.parametrize("system", ["Linux", "Darwin"])
def test_lock_holds_whatever_a_locked_package_asks_for(system: str, version: str) -> None:
    """On each platform the lock is closed: pip has nothing left to choose."""
    there = default_environment() | {
        "python_version": version,
        "python_full_version": f"{version}.9",
        "platform_system": system,
        "sys_platform": system.lower(),
        "platform_machine": "arm64" if system == "Darwin" else "x86_64",
    }
    there["extra"] = ""
    pins = {name(pin) for pin in locked() if not pin.marker or pin.marker.evaluate(there)}
    installed = {canonicalize_name(each.name): each for each in metadata.distributions()}
    assert len(pins & installed.keys()) > 100, "this environment was not made from the lock"
    for package in pins & installed.keys():
        for needed in map(Requirement, installed[package].requires or []):
            if name(needed).startswith(("nvidia-", "cuda-", "triton")):
                continue  # torch with CUDA pins these itself
            if not needed.marker or needed.marker.evaluate(there):
                assert name(needed) in pins, f"{package} asks for {needed}"


@pytest.mark.parametrize(("folder", "allowed"), [("qalib", CORE + STUDY + BENCH), ("tests", ALL)])
def test_what_is_imported_is_declared(folder: str, allowed: list[Requirement]) -> None:
    declared = {name(requirement) for requirement in allowed}
    owners = metadata.packages_distributions()
    own = {"qalib", *(path.stem for path in (ROOT / folder).glob("*.py"))}
    for path in (ROOT / folder).rglob("*.py"):
        for module in imported(path) - own - sys.stdlib_module_names:
            by = {canonicalize_name(owner) for owner in owners.get(module, [module])}
            assert by & declared, f"{path.relative_to(ROOT)} imports {module}"


def imported(path: Path) -> set[str]:
    """Top-level names of all modules that a file imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_no_public_name_is_defined_twice() -> None:
    places: dict[str, list[str]] = {}
    for path in sorted((ROOT / "qalib").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(path.name)
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


# Files


def test_files_are_small_enough_to_clone() -> None:
    sizes = {path: path.stat().st_size for path in files_of_the_project()}
    assert len(sizes) > 20
    assert [path for path, size in sizes.items() if size > 24_000_000] == []
    assert sum(sizes.values()) < 80_000_000


def test_no_file_names_somebodys_machine() -> None:
    """No absolute path of a home, a scratch directory or this checkout. "me" and "x" are nobody."""
    private = re.compile(
        r"(?<![\w./-])(?:/(?:home|Users|root|tmp|private|mnt|scratch)/|[A-Z]:\\Users\\)(?!(?:me|x)\b)\w"
        rf"|{re.escape(str(ROOT))}\b"
    )
    assert private.search("'/home/" + "ada/qalib'")  # it can find one
    found = []
    for path in files_of_the_project():
        raw = path.read_bytes()
        if b"\0" not in raw[:8192] and (hit := private.search(raw.decode("utf-8", "replace"))):
            found.append(f"{path.relative_to(ROOT)}: {hit.group()}")
    assert found == []


def test_machines_and_readme_run_the_same_commands() -> None:
    for path in (".ci/run", ".github/workflows/ci.yml"):
        assert re.search(r"\bmake test\b", (ROOT / path).read_text(encoding="utf-8")), path
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in ("make figures", "make test"):
        assert command in readme


def test_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == qalib.__version__
    assert citation["license"] == PROJECT["license"] == "MIT"
    assert all(each["title"] and each["authors"] for each in citation["references"])


# Commands


def test_answering_needs_the_core_packages_only() -> None:
    """Everything behind `answer` and `score` imports without the packages of other groups."""
    needed, waiting = set(), list(CORE)
    while waiting:  # the core packages and all that they require
        package = name(waiting.pop())
        if package not in needed:
            needed.add(package)
            with contextlib.suppress(metadata.PackageNotFoundError):
                more = map(Requirement, metadata.requires(package) or [])
                waiting += [r for r in more if not r.marker or r.marker.evaluate({"extra": ""})]
    others = {name(requirement) for requirement in STUDY + BENCH + DEV} - needed
    owners = metadata.packages_distributions()
    blocked = [m for m, by in owners.items() if {canonicalize_name(b) for b in by} <= others]
    code = f"""
import sys
sys.modules.update(dict.fromkeys({blocked!r}))  # importing one of them fails now
from qalib.inference import QuestionAnswerer
import qalib.skim.reader, qalib.training, qalib.metrics
answers = QuestionAnswerer.load().answer("Who built it?", "The bridge was built by Mira Kovac.")
print(answers[0].text)
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert "Mira" in done.stdout


@pytest.mark.parametrize("light", ["qalib.__main__", "qalib.data"])
def test_light_modules_import_nothing_heavy(light: str) -> None:
    """`python -m qalib --help` and every look at the data start at once."""
    rooms = [path.stem for path in (ROOT / "qalib" / "data").glob("[!_]*.py")]
    names = [f"qalib.data.{room}" for room in rooms] if light == "qalib.data" else [light]
    heavy = ["torch", "transformers", "datasets", "accelerate", "pandas", "matplotlib", "sklearn"]
    code = f"import sys, {', '.join(names)}; print(*sorted(set({heavy}) & set(sys.modules)))"
    loaded = python("-c", code)
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.split() == []
