"""Run the notebooks with papermill, and detect stale figures and outputs by stamps.

A notebook needs one cell tagged ``parameters`` that sets ``profile``. After it has run,
``figures/<profile>/<notebook>.stamp.json`` is written with hashes of its code cells, of the stage
modules that they import, of the profile's sections and the claims that were used, and with its
runs and figures. Changes in other modules of the library do not count; the tests cover those. A
notebook whose stamp shows no change is not run again.
"""

import base64
import contextlib
import hashlib
import io
import json
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from unittest.mock import patch

from qalib.data.schema import file_sha256
from qalib.errors import QalibError
from qalib.files import exclusive, pretty, translate_os_errors, write_atomically
from qalib.paths import ROOT
from qalib.study.claims import load_claims
from qalib.study.figures import FIGURES, NOTEBOOKS
from qalib.study.profiles import PROFILES, load_profile
from qalib.study.provenance import command_line, environment
from qalib.study.run_cache import RECORDS, read_records

DIGITS = 16  # hexadecimal digits of a hash in a stamp
LARGEST = 350_000  # bytes of a committed notebook, outputs included
EVERY = 20.0  # seconds between lines of progress
KERNEL = """
import os
log = os.open(os.environ.pop("QALIB_KERNEL_LOG"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
os.dup2(log, 2)  # what libraries write to the terminal, not to a cell
from ipykernel.kernelapp import launch_new_instance
launch_new_instance()
"""


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
    """A notebook file; reading its ``code`` raises QalibError if it is not a notebook."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.stem

    @cached_property
    def code(self) -> list[dict]:
        """The code cells, each with its source as one string."""
        try:
            cells = json.loads(self.path.read_text(encoding="utf-8"))["cells"]
        except (OSError, ValueError, KeyError, TypeError):
            raise QalibError(f"{self.path}: is not a notebook; restore or remove it.") from None
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        return [{**cell, "source": "".join(cell["source"])} for cell in code]

    @property
    def code_hash(self) -> str:
        """Hash of the code cells, without their outputs."""
        return _hash([[cell.get("id"), cell["source"]] for cell in self.code])

    def stages(self, folder: Path) -> list[Path]:
        """The stage modules (files in ``folder``) that the code cells import."""
        text = "\n".join(cell["source"] for cell in self.code)
        found = r"qalib\.study\.stages(\.| import .*\b){}\b"
        return [p for p in sorted(folder.glob("*.py")) if re.search(found.format(p.stem), text)]


def list_notebooks(
    only: Sequence[str] | str | None = None, paths: ProjectPaths = PROJECT
) -> list[Notebook]:
    """The numbered notebooks, or those whose names have a prefix in ``only``.

    ``only``: "03", "03,05" or a list of these. Raises QalibError if no notebook has a prefix.
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


def run_notebooks(
    profile: str,
    only: Sequence[str] | str | None = None,
    force: bool = False,
    paths: ProjectPaths = PROJECT,
    say: Callable[[str], None] = lambda line: print(line, flush=True),
) -> dict[str, str]:
    """Execute the notebooks in a profile and write their figures, stamps and executed copies.

    only:   prefixes of names: "03", "00,03" or a list of these
    force:  also run notebooks that are up to date, and compute every run again
    say:    called with every line of progress

    In profile study, outputs are copied into the notebooks. Returns the error message of each
    notebook, "" for success; a failure does not stop the others. Raises QalibError for an unknown
    profile or notebook, and if another process is running the notebooks.
    """
    settings = load_profile(profile, paths.profiles)
    chosen = list_notebooks(only, paths)
    results = {}
    with translate_os_errors(paths.build), exclusive(paths.build / "figures.lock", "the notebooks"):
        begun = datetime.now(UTC).isoformat(timespec="seconds") if force else ""
        for number, notebook in enumerate(chosen, 1):
            place, problem = f"{notebook.name} ({number} of {len(chosen)})", ""
            if force or why_stale(notebook, profile, paths):
                say(f"{place}: started in profile {profile}")
                begin, seconds = time.monotonic(), settings.sections["budget"]["default"]
                problem = _run(notebook, profile, seconds, begun, paths, say)
                say(f"{place}: {problem or f'done in {time.monotonic() - begin:.0f} s'}")
            else:
                say(f"{place}: up to date")
            results[notebook.name] = problem
    return results


def _run(
    notebook: Notebook,
    profile: str,
    budget: int,
    force: str,
    paths: ProjectPaths,
    say: Callable[[str], None],
) -> str:
    executed = paths.build / "executed" / profile / notebook.path.name
    executed.parent.mkdir(parents=True, exist_ok=True)
    usage, before = executed.with_suffix(".usage"), Notebook(notebook.path).code_hash
    usage.unlink(missing_ok=True)
    with (
        kernel_environment(profile, executed, force, paths),
        _Progress(notebook, executed.with_suffix(".progress"), say) as progress,
    ):
        problem = _execute(notebook, executed, profile, budget, progress)
    if problem:
        return problem
    try:
        if Notebook(notebook.path).code_hash != before:
            return f"{notebook.name[:2]} was changed while it ran; run it again"
        if profile == "study":
            copy_outputs(notebook.path, executed)
            notebook = Notebook(notebook.path)
        write_stamp(notebook, profile, read_usage(usage), paths)
    except QalibError as error:
        return f"{notebook.name}: {error}"
    return ""


def _execute(
    notebook: Notebook, executed: Path, profile: str, budget: int, progress: "_Progress"
) -> str:
    """Run a notebook; returns a one-line error message, "" for success."""
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    number = notebook.name[:2]
    try:
        papermill.execute_notebook(
            _literal(notebook.path),
            _literal(executed),
            parameters={"profile": profile},
            kernel_name="python3",
            language="python",
            cwd=notebook.path.parent,
            start_timeout=120,
            execution_timeout=budget,
            request_save_on_cell_execute=profile != "ci",
            progress_bar=False,
            on_cell_start=progress.cell_started,
        )
    except papermill.PapermillExecutionError as error:
        message = (str(error.evalue).strip().splitlines() or [""])[0]
        return f"{number} {progress.cell} {error.ename}: {message}"
    except DeadKernelError:
        return f"{number} the kernel died, probably for lack of memory; try --profile laptop"
    except RuntimeError as error:
        return f"{number} the kernel did not start: {error}"
    except CellTimeoutError:
        return f"{number} a cell took more than the {budget} s that the profile allows"
    return ""


class _Progress:
    """Reports every ``EVERY`` seconds which cell is running, with step and time left if known."""

    def __init__(self, notebook: Notebook, path: Path, say: Callable[[str], None]):
        self.notebook, self.path, self.say = notebook, path, say
        self.begin, self.cell, self.stopped = time.monotonic(), "", threading.Event()
        self.cells = [cell.get("id") for cell in notebook.code]

    def cell_started(self, cell, cell_index: int) -> None:
        if cell.cell_type == "code" and cell.get("id") in self.cells:
            number = self.cells.index(cell.id) + 1
            self.cell = f"cell {number} of {len(self.cells)} [{cell.id}]"

    def __enter__(self) -> "_Progress":
        self.path.unlink(missing_ok=True)
        self.thread = threading.Thread(target=self._report, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.stopped.set()
        self.thread.join()
        self.path.unlink(missing_ok=True)

    def _report(self) -> None:
        while not self.stopped.wait(EVERY):
            task = ""
            with contextlib.suppress(OSError):
                if time.time() - self.path.stat().st_mtime < 2 * EVERY:
                    task = f", {self.path.read_text(encoding='utf-8')}"
            seconds = time.monotonic() - self.begin
            self.say(f"  {self.notebook.name[:2]} {self.cell}, {seconds:.0f} s{task}")


@contextlib.contextmanager
def kernel_environment(
    profile: str, executed: Path, force: str, paths: ProjectPaths
) -> Iterator[None]:
    """Set the environment that kernels inherit: this interpreter and package, Hugging Face offline.

    A kernel specification for this interpreter comes first on Jupyter's path, because a
    ``python3`` kernel that the user has installed could run in another environment. The kernel
    process writes its standard error to ``<notebook>.kernel.log``.
    """
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder) / "kernels" / "python3" / "kernel.json"
        argv = [sys.executable, "-Xfrozen_modules=off", "-c", KERNEL, "-f", "{connection_file}"]
        spec.parent.mkdir(parents=True)
        spec.write_text(json.dumps({"argv": argv, "display_name": "qalib", "language": "python"}))
        offline = {} if profile == "paper" else {"HF_HUB_OFFLINE": "1"}  # others never download
        folders = ("QALIB_STORE", "QALIB_CACHE", "QALIB_DATA")  # relative to the command's folder
        places = {name: os.environ[name] for name in folders if os.environ.get(name)}
        wanted = {
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            **offline,
            **os.environ,
            **{name: str(Path(p).expanduser().resolve()) for name, p in places.items()},
            "QALIB_PROFILE": profile,
            "QALIB_NOTES": str(executed.with_suffix(".usage").resolve()),
            "QALIB_PROGRESS": str(executed.with_suffix(".progress").resolve()),
            "QALIB_KERNEL_LOG": str(executed.with_suffix(".kernel.log").resolve()),
            "QALIB_COMMAND": command_line(),
            "QALIB_FORCE": force,  # runs started before this time are computed again
            "IPYTHONDIR": folder,  # ignore the user's start-up files
            "JUPYTER_PATH": _first(folder, "JUPYTER_PATH"),
            "PYTHONPATH": _first(str(paths.root), "PYTHONPATH"),
        }
        with patch.dict(os.environ, wanted):
            yield


def _first(path: str, variable: str) -> str:
    return os.pathsep.join([path, *filter(None, [os.environ.get(variable)])])


def _literal(path: Path) -> str:
    """A path with its braces escaped, because papermill would format it as a template."""
    return str(path).replace("{", "{{").replace("}", "}}")


def read_usage(path: Path) -> dict[str, dict[str, object]]:
    """What a notebook used and made, by kind and name; the last entry for a name counts."""
    kinds = ("run", "figure", "data", "section", "claim")
    used: dict[str, dict[str, object]] = {kind: {} for kind in kinds}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            kind, name, value = json.loads(line)
        except ValueError:  # the kernel was killed while writing
            continue
        used[kind][name] = value
    return used


def copy_outputs(path: Path, executed: Path) -> None:
    """Copy the outputs of an executed notebook into its source, cell by cell.

    Code cells are renumbered from 1; stderr, widget state and papermill's metadata are left out.
    Pictures are reduced if the file would exceed ``LARGEST``. Raises QalibError if it still does.
    """
    import nbformat

    notebook, ran = nbformat.read(path, as_version=4), nbformat.read(executed, as_version=4)
    done = {cell.id: cell for cell in ran.cells if cell.cell_type == "code"}
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, cell in enumerate(code, 1):
        cell.execution_count = number
        cell.outputs = [o for o in done[cell.id].outputs if o.get("name") != "stderr"]
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = number
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    for mark in ("papermill", "widgets"):
        notebook.metadata.pop(mark, None)
    text = nbformat.writes(notebook) + "\n"
    if len(text.encode()) > LARGEST:
        _shrink_pictures(code)
        text = nbformat.writes(notebook) + "\n"
    if len(text.encode()) > LARGEST:
        worst = max(code, key=lambda cell: len(json.dumps(cell.outputs)))
        raise QalibError(
            f"{path.name}: with its outputs it has {len(text.encode()) // 1000} KB, more than "
            f"{LARGEST // 1000}; let cells such as [{worst.id}] show less."
        )
    if text != path.read_text(encoding="utf-8"):
        write_atomically(path, text)


def _shrink_pictures(cells: list) -> None:
    """Reduce the png pictures of cells to 64 colours, the extreme ones among them."""
    from PIL import Image

    for output in (output for cell in cells for output in cell.outputs):
        if png := output.get("data", {}).get("image/png"):
            picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
            picture = picture.quantize(64, Image.Quantize.MAXCOVERAGE)
            picture.save(buffer := io.BytesIO(), "PNG", optimize=True)
            output.data["image/png"] = base64.b64encode(buffer.getvalue()).decode()


# --- stamps ---------------------------------------------------------------------------------------


def make_stamp(
    notebook: Notebook,
    profile: str,
    sections: Iterable[str] = (),
    claims: Iterable[str] = (),
    paths: ProjectPaths = PROJECT,
) -> dict[str, dict]:
    """Hashes of what the results of a notebook depend on, in its current state."""
    settings = load_profile(profile, paths.profiles).sections
    papers = load_claims() if claims else {}
    stages = notebook.stages(paths.root / "qalib/study/stages")
    return {
        "cells": {"": notebook.code_hash},
        "stages": {path.stem: _hash(path.read_text()) for path in stages},
        "sections": {name: _hash(settings.get(name)) for name in sorted(sections)},
        "claims": {name: _hash(repr(papers.get(name))) for name in sorted(claims)},
    }


def write_stamp(notebook: Notebook, profile: str, used: dict, paths: ProjectPaths) -> None:
    """Write the stamp of a notebook that has run; ``used`` is as :func:`read_usage` returns it."""
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
            for run in old["runs"]:
                stage, _, digits = run.rpartition("-")
                known = read_records(paths.records / f"{stage}.jsonl")
                lost += [] if any(key.startswith(digits) for key in known) else [run]
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


def check(profile: str = "study", paths: ProjectPaths = PROJECT) -> list[str]:
    """Everything that is out of date in a profile, each with the command that updates it.

    Only reads files, so it works at once in a fresh clone.
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
