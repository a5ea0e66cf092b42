"""Stamps: what the figures and outputs of a notebook were made from, to detect stale ones.

``figures/<profile>/<notebook>.stamp.json`` is written when a notebook has run. It holds hashes of
the code cells, of the stage modules that they import, of the profile's sections and the claims
that were used, and lists runs and figures. A change in other modules of the library does not
count: the tests hold those.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from qalib.data.schema import file_sha256
from qalib.errors import QalibError
from qalib.files import pretty, write_atomically
from qalib.paths import ROOT
from qalib.study.claims import load_claims
from qalib.study.figures import FIGURES, NOTEBOOKS
from qalib.study.profiles import PROFILES, load_profile
from qalib.study.provenance import environment
from qalib.study.run_cache import RECORDS, read_records

DIGITS = 16  # of a hash in a stamp


@dataclass(frozen=True)
class ProjectPaths:
    """Folders of the project; tests substitute temporary ones."""

    notebooks: Path = NOTEBOOKS
    figures: Path = FIGURES
    records: Path = RECORDS
    build: Path = ROOT / "build"
    profiles: Path = PROFILES
    root: Path = ROOT  # the folder that holds the package

    def stamp(self, name: str, profile: str) -> Path:
        """The stamp file of a notebook ("00_start_here")."""
        return self.figures / profile / f"{name}.stamp.json"


PROJECT = ProjectPaths()


@dataclass(frozen=True)
class Notebook:
    """A notebook file. Raises QalibError if it cannot be read as one."""

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

    def stages(self, folder: Path) -> list[Path]:
        """The modules in ``folder``, that of the stages, that its cells import."""
        text = "\n".join(cell["source"] for cell in self.code)
        found = r"qalib\.study\.stages(\.| import .*\b){}\b"
        return [p for p in sorted(folder.glob("*.py")) if re.search(found.format(p.stem), text)]


def list_notebooks(
    only: Sequence[str] | str | None = None, paths: ProjectPaths = PROJECT
) -> list[Notebook]:
    """The numbered notebooks, or those whose names begin so: "03", "03,05" or a list of such.

    Raises QalibError if there is no such notebook.
    """
    found = [Notebook(path) for path in sorted(paths.notebooks.glob("[0-9][0-9]_*.ipynb"))]
    texts = [only] if isinstance(only, str) else only or []
    wanted = [word.strip() for text in texts for word in text.split(",") if word.strip()]
    if not wanted:
        return found
    for word in wanted:
        if not any(notebook.name.startswith(word) for notebook in found):
            names = ", ".join(notebook.name for notebook in found) or "none"
            raise QalibError(f"No notebook begins with {word!r}; there are {names}.")
    return [notebook for notebook in found if notebook.name.startswith(tuple(wanted))]


def make_stamp(
    notebook: Notebook,
    profile: str,
    sections: Iterable[str] = (),
    claims: Iterable[str] = (),
    paths: ProjectPaths = PROJECT,
) -> dict[str, dict]:
    """What the results of a notebook depend on, as it is now."""
    settings = load_profile(profile, paths.profiles).sections
    papers = load_claims() if claims else {}
    stages = notebook.stages(paths.root / "qalib/study/stages")
    return {
        "cells": {"": _hash([[cell.get("id"), cell["source"]] for cell in notebook.code])},
        "stages": {path.stem: _hash(path.read_text()) for path in stages},
        "sections": {name: _hash(settings.get(name)) for name in sorted(sections)},
        "claims": {name: _hash(repr(papers.get(name))) for name in sorted(claims)},
    }


def write_stamp(notebook: Notebook, profile: str, used: dict, paths: ProjectPaths) -> None:
    """Write the stamp of a notebook that has run: ``used`` by kind and name, as it was noted."""
    record = {
        **make_stamp(notebook, profile, used["section"], used["claim"], paths),
        "notebook": notebook.name,
        "profile": profile,
        "figures": used["figure"],
        "runs": sorted(used["run"]),
        "data": used["data"],
        "outputs": outputs_hash(notebook),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment(),
    }
    write_atomically(paths.stamp(notebook.name, profile), pretty(record))


def outputs_hash(notebook: Notebook) -> str:
    """Hash of all outputs in the notebook file."""
    return _hash([[cell.get("id"), cell.get("outputs", [])] for cell in notebook.code])


CHANGES = {  # what changed, in words
    "cells": "its code cells",
    "stages": "qalib/study/stages/{}.py",
    "sections": "the profile's section {}",
    "claims": "the paper's claim {}",
}


def why_stale(notebook: Notebook, profile: str, paths: ProjectPaths = PROJECT) -> list[str]:
    """Why the notebook has to run again in this profile; an empty list if it need not."""
    path = paths.stamp(notebook.name, profile)
    if not path.exists():
        return ["has not been run"]
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        now = make_stamp(notebook, profile, old["sections"], old["claims"], paths)
        changed = [
            CHANGES[kind].format(name)
            for kind in CHANGES
            for name in sorted(old[kind] | now[kind])
            if old[kind].get(name) != now[kind].get(name)
        ]
        lost = []
        if profile == "study":  # its outputs and records are committed
            changed += ["the outputs in it"] if old["outputs"] != outputs_hash(notebook) else []
            lost = [run for run in old["runs"] if not _is_recorded(run, paths.records)]
        spoilt = [
            f"{name}.{kind}"
            for name, hashes in old["figures"].items()
            for kind, sha256 in hashes.items()
            if not (file := path.with_name(f"{name}.{kind}")).is_file()
            or file_sha256(file) != sha256
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        return ["has a damaged stamp"]
    reasons = [f"{', '.join(changed)} changed since it was run"] if changed else []
    reasons += [f"its run {run} is not in the records" for run in lost]
    return reasons + [f"its figure {name} is missing or was changed" for name in spoilt]


def _is_recorded(short: str, records: Path) -> bool:
    stage, _, digits = short.rpartition("-")
    return any(key.startswith(digits) for key in read_records(records / f"{stage}.jsonl"))


def check(profile: str = "study", paths: ProjectPaths = PROJECT) -> list[str]:
    """Everything that is stale in a profile, each with what updates it.

    Reads files only, so a fresh clone can do it at once.
    """
    load_profile(profile, paths.profiles)
    problems, known = [], set()
    for notebook in list_notebooks(paths=paths):
        mend = f"python -m qalib study run-notebooks --profile {profile} --only {notebook.name[:2]}"
        reasons = why_stale(notebook, profile, paths)
        problems += [f"{notebook.name}: {reason}; run `{mend}`." for reason in reasons]
        known.add(notebook.name)
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            known |= set(json.loads(paths.stamp(notebook.name, profile).read_text())["figures"])
    for path in sorted((paths.figures / profile).glob("*")):
        if path.name.partition(".")[0] not in known:
            problems.append(f"figures/{profile}/{path.name}: no notebook makes it; delete it.")
    return problems


def _hash(value: object) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
