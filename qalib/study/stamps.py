"""Stamps: what a notebook's figures and outputs were made from, so that staleness can be seen.

A stamp is the file ``figures/<profile>/<notebook>.stamp.json``, written when the notebook has run
through. It holds hashes of the code cells, of every module of qalib that they can reach, of the
profile's sections that were read, and of the data; and it lists runs and figures. Comparing it
with what is there now takes a second and executes nothing. Comments and docstrings do not count.
"""

import ast
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from qalib.errors import QalibError
from qalib.paths import ROOT
from qalib.study.environment import environment
from qalib.study.figures import FIGURES, check_figures
from qalib.study.files import pretty, write_whole
from qalib.study.paper import load_claims
from qalib.study.profiles import PROFILES, load_profile
from qalib.study.store import RECORDS

NOTEBOOKS = ROOT / "notebooks"
DIGITS = 16  # of a hash in a stamp


@dataclass(frozen=True)
class Places:
    """Where things lie; tests put toys in their stead."""

    notebooks: Path = NOTEBOOKS
    figures: Path = FIGURES
    records: Path = RECORDS
    build: Path = ROOT / "build"
    profiles: Path = PROFILES
    root: Path = ROOT  # the folder that the package lies in

    def stamp(self, name: str, profile: str) -> Path:
        """The stamp file of a notebook ("00_start_here")."""
        return self.figures / profile / f"{name}.stamp.json"


@dataclass(frozen=True)
class Notebook:
    """A notebook file, as JSON; raises QalibError when it is read if it is none."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.stem

    @cached_property
    def cells(self) -> list[dict]:
        try:
            return json.loads(self.path.read_text(encoding="utf-8"))["cells"]
        except (OSError, ValueError, KeyError, TypeError):
            raise QalibError(f"{self.path}: is not a notebook; restore or remove it.") from None

    @property
    def code(self) -> list[dict]:
        """The code cells, each with its source as one text."""
        cells = [cell for cell in self.cells if cell["cell_type"] == "code"]
        return [{**cell, "source": "".join(cell["source"])} for cell in cells]

    def parameters(self) -> list[str]:
        """The names that the one cell tagged ``parameters`` sets.

        Raises QalibError if there is no such cell, or more than one.
        """
        tagged = [c for c in self.code if "parameters" in c.get("metadata", {}).get("tags", [])]
        if len(tagged) != 1:
            raise QalibError(
                f"{self.path.name}: {len(tagged)} cells are tagged 'parameters'; tag exactly one."
            )
        tree = _tree(tagged[0]["source"]) or ast.Module(body=[], type_ignores=[])
        names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
        return sorted({name.id for name in names if isinstance(name.ctx, ast.Store)})


def list_notebooks(
    only: Sequence[str] | str | None = None, places: Places | None = None
) -> list[Notebook]:
    """The numbered notebooks, or those whose names begin so: "03", "03,05" or a list of such.

    Raises QalibError if nothing begins so.
    """
    folder = (places or Places()).notebooks
    found = [Notebook(path) for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))]
    texts = [only] if isinstance(only, str) else only or []
    wanted = [word.strip() for text in texts for word in text.split(",") if word.strip()]
    if not wanted:
        return found
    for word in wanted:
        if not any(notebook.name.startswith(word) for notebook in found):
            names = ", ".join(notebook.name for notebook in found) or "none"
            raise QalibError(f"No notebook begins with {word!r}; there are {names}.")
    return [notebook for notebook in found if notebook.name.startswith(tuple(wanted))]


def stamp(
    notebook: Notebook,
    profile: str,
    params: Mapping[str, object],
    sections: Iterable[str] = (),
    claims: Iterable[str] = (),
    places: Places | None = None,
) -> dict[str, dict]:
    """What the notebook's results depend on, as it is now; equal means up to date.

    ``sections`` of the profile and ``claims`` of papers are those that it was seen to use.
    """
    places = places or Places()
    settings = load_profile(profile, places.profiles).sections
    papers = load_claims() if claims else {}
    return {
        "cells": {
            "": _hash([[cell.get("id"), _meaning(cell["source"])] for cell in notebook.code])
        },
        "params": dict(params),
        "modules": _modules(notebook, places.root),
        "sections": {name: _hash(settings.get(name)) for name in sorted(sections)},
        "claims": {name: _hash(repr(papers.get(name))) for name in sorted(claims)},
    }


def write_stamp(
    notebook: Notebook, profile: str, params: dict, used: dict, seconds: float, places: Places
) -> None:
    """Write down what a notebook was run with: ``used`` by kind and name, as it noted it."""
    record = {
        **stamp(notebook, profile, params, used["section"], used["claim"], places),
        "notebook": notebook.name,
        "profile": profile,
        "figures": used["figure"],
        "runs": sorted(used["run"]),
        "data": used["data"],
        "outputs": outputs_hash(notebook),
        "seconds": seconds,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment(),
    }
    write_whole(places.stamp(notebook.name, profile), pretty(record))


def outputs_hash(notebook: Notebook) -> str:
    """Hash of all outputs that the notebook file shows."""
    return _hash([[cell.get("id"), cell.get("outputs", [])] for cell in notebook.code])


WORDS = {  # how a kind of change is told
    "cells": "its code cells",
    "params": "the parameter {}",
    "modules": "{}",
    "sections": "the profile's section {}",
    "claims": "the paper's claim {}",
}


def stale(
    notebook: Notebook,
    profile: str,
    params: Mapping[str, object] | None = None,
    places: Places | None = None,
) -> list[str]:
    """Why the notebook has to run again in this profile; an empty list if it need not."""
    places = places or Places()
    path = places.stamp(notebook.name, profile)
    if not path.exists():
        return ["has not been run"]
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        now = stamp(notebook, profile, params or {}, old["sections"], old["claims"], places)
        changed = [
            WORDS[kind].format(name)
            for kind in WORDS
            for name in sorted(old[kind] | now[kind])
            if old[kind].get(name) != now[kind].get(name)
        ]
        lost = []
        if profile == "study":  # what is committed has to be there
            changed += ["the outputs in it"] if old["outputs"] != outputs_hash(notebook) else []
            lost = [run for run in old["runs"] if not (places.records / run).is_dir()]
    except (ValueError, KeyError, TypeError, AttributeError):
        return ["has a damaged stamp"]
    reasons = [f"since it was run, {', '.join(changed)} changed"] if changed else []
    return reasons + [f"its run {run} is not in the records" for run in lost]


def check(profile: str = "study", places: Places | None = None) -> list[str]:
    """Everything that is not up to date in a profile, each with the command that mends it.

    Reads files only, no notebook runs: a fresh clone can do it at once.
    """
    places = places or Places()
    load_profile(profile, places.profiles)
    notebooks = list_notebooks(places=places)
    problems = []
    for notebook in notebooks:
        command = f"python -m qalib figures --profile {profile} --only {notebook.name[:2]}"
        for reason in stale(notebook, profile, places=places):
            problems.append(f"{notebook.name}: {reason}; run `{command}`.")
    names = {notebook.name for notebook in notebooks}
    for path in sorted((places.figures / profile).glob("*.stamp.json")):
        if path.name.removesuffix(".stamp.json") not in names:
            problems.append(f"figures/{profile}/{path.name}: its notebook is gone; delete it.")
    return problems + check_figures(profile, places.figures)


def _modules(notebook: Notebook, root: Path) -> dict[str, str]:
    """Hash of every module of qalib that the notebook's code can reach by imports."""
    found: dict[str, str] = {}
    waiting = [m for cell in notebook.code for m in _imports(_tree(cell["source"]), "qalib")]
    while waiting:
        path = _module_file(waiting.pop(), root)
        name = path.relative_to(root).as_posix() if path else ""
        if path is None or name in found:
            continue
        tree = _tree(path.read_text(encoding="utf-8"))
        found[name] = _hash(_dump(_without_docstrings(tree)))
        waiting += _imports(tree, "qalib")
    return dict(sorted(found.items()))


def _module_file(module: str, root: Path) -> Path | None:
    path = root / module.replace(".", "/")
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _imports(tree: ast.AST | None, package: str) -> Iterator[str]:
    """Names of modules of the package that a module names: in imports, or in plain strings.

    A string such as ``"qalib.study"`` counts because that is how a lazy import is written. Names
    that are no modules do no harm.
    """
    named: list[str] = []
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.Import):
            named += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            named += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            named += [node.value] if re.fullmatch(rf"{package}(\.\w+)+", node.value) else []
    for name in named:
        parts = name.split(".")
        if parts[0] == package:  # importing a.b.c runs a and a.b first
            yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _tree(source: str) -> ast.AST | None:
    try:
        return ast.parse(source)
    except SyntaxError:
        return None


def _meaning(source: str) -> object:
    """A cell's code without its comments and layout; what is not Python stands for itself."""
    tree = _tree(source)
    return source if tree is None else _dump(tree)


def _without_docstrings(tree: ast.AST | None) -> ast.AST | None:
    for node in ast.walk(tree) if tree else ():
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                body.pop(0)
    return tree


def _dump(node: object) -> object:
    """A syntax tree as plain data that is the same in every Python from 3.11 on.

    ``ast.dump`` is not: newer versions have more fields. Empty fields are left out here.
    """
    if isinstance(node, ast.AST):
        fields = {name: _dump(value) for name, value in ast.iter_fields(node) if name != "kind"}
        return [type(node).__name__, {k: v for k, v in fields.items() if v not in ("None", [])}]
    return [_dump(item) for item in node] if isinstance(node, list) else repr(node)


def _hash(value: object) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
