"""Runs the notebooks: papermill made strict, with a stamp and an executed copy for each.

What a notebook needs from here is one cell tagged ``parameters`` that sets ``profile``; how large
everything is, the profile says. A notebook whose stamp shows no change is not run again.
"""

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from qalib.errors import QalibError
from qalib.study.environment import command_line, environment
from qalib.study.figures import figure_problems
from qalib.study.files import exclusive, pretty, write_whole
from qalib.study.outputs import bring_back
from qalib.study.profiles import load_profile
from qalib.study.stamps import Notebook, Places, list_notebooks, outputs_hash, stale, stamp


@dataclass(frozen=True)
class Result:
    """How one notebook went. ``status``: done, up to date or failed (then ``message`` says why)."""

    notebook: str
    status: str
    seconds: float = 0.0
    budget: int = 0
    found: int = 0
    computed: int = 0
    figures: int = 0
    message: str = ""


def run_notebooks(
    profile: str,
    only: str | None = None,
    force: bool = False,
    params: Mapping[str, object] | None = None,
    *,
    sync: bool | None = None,
    places: Places | None = None,
    say: Callable[[str], None] = print,
) -> list[Result]:
    """Execute the notebooks in a profile and write their figures, stamps and executed copies.

    ``only``   beginnings of names ("03", "00,03"); ``force`` runs also what is up to date
    ``params`` further parameters, which every notebook must have
    ``sync``   bring the outputs back into the notebooks; by default in profile study only

    A notebook that fails is reported and the next one is run. Raises QalibError for an unknown
    profile, notebook or parameter and if the notebooks are being run already.
    """
    places, params = places or Places(), dict(params or {})
    settings = load_profile(profile, places.profiles)
    sync = profile == "study" if sync is None else sync
    if sync and profile not in ("study", "laptop"):
        raise QalibError(f"Outputs of profile {profile} are not kept; use study or laptop.")
    chosen = list_notebooks(only, places)
    for notebook in chosen:
        check_parameters(notebook, params)
    results = []
    with exclusive(places.build / "figures.lock", "the notebooks"):
        for notebook in chosen:
            budget = settings.budget(notebook.name[:2])
            problems = stale(notebook, profile, params, places)
            problems += figure_problems(profile, notebook.name, places.figures)
            if problems or force:
                result = _run(notebook, profile, params, budget, sync, places)
            else:
                result = Result(notebook.name, "up to date", budget=budget)
            say(result.message or f"{result.notebook}: {result.status}")
            results.append(result)
    return results


def summary(results: list[Result]) -> str:
    """One table over all notebooks."""
    from tabulate import tabulate

    columns = ["notebook", "status", "seconds", "budget", "runs found", "computed", "figures"]
    rows = [
        [r.notebook, r.status, round(r.seconds, 1), r.budget, r.found, r.computed, r.figures]
        for r in results
    ]
    return tabulate(rows, headers=columns, tablefmt="github")


def check_parameters(notebook: Notebook, params: Mapping[str, object]) -> None:
    """Raise QalibError if the notebook does not have these parameters; papermill only warns."""
    known = notebook.parameters()
    if "profile" not in known:
        raise QalibError(f"{notebook.path.name}: its parameters cell must set 'profile'.")
    if "profile" in params:
        raise QalibError("The profile is no further parameter; give it as --profile.")
    for name in params:
        if name not in known:
            raise QalibError(
                f"{notebook.path.name}: has no parameter {name!r}; it has {', '.join(known)}."
            )


def _run(
    notebook: Notebook, profile: str, params: dict, budget: int, sync: bool, places: Places
) -> Result:
    executed = places.build / "executed" / profile / notebook.path.name
    executed.parent.mkdir(parents=True, exist_ok=True)
    notes = executed.with_suffix(".notes")
    notes.unlink(missing_ok=True)
    begun = time.monotonic()
    trouble = _execute(notebook, executed, {"profile": profile, **params}, budget, notes, places)
    seconds = round(time.monotonic() - begun, 2)
    used = read_notes(notes)
    if not trouble:
        try:
            if sync:
                bring_back(notebook.path, executed)
                notebook = Notebook(notebook.path)
            _write_stamp(notebook, profile, params, used, seconds, places)
        except QalibError as error:
            trouble = f"{notebook.name}: {error}"
    computed = sum(how == "computed" for how in used["run"].values())
    return Result(
        notebook.name,
        "failed" if trouble else "done",
        seconds,
        budget,
        len(used["run"]) - computed,
        computed,
        len(used["figure"]),
        trouble,
    )


def _execute(
    notebook: Notebook, executed: Path, params: dict, budget: int, notes: Path, places: Places
) -> str:
    """Run a notebook; returns what went wrong in one line, "" if nothing did."""
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    name = notebook.name
    try:
        with kernel_environment(params["profile"], notes, places):
            papermill.execute_notebook(
                _literal(notebook.path),
                _literal(executed),
                parameters=params,
                kernel_name="python3",
                language="python",
                cwd=notebook.path.parent,
                start_timeout=120,
                execution_timeout=budget,
                request_save_on_cell_execute=params["profile"] != "ci",
                progress_bar={"desc": name} if sys.stderr.isatty() else False,
            )
    except papermill.PapermillExecutionError as error:
        said = (str(error.evalue).strip().splitlines() or [""])[0]
        return f"{name[:2]} {_place(notebook, error.source)} {error.ename}: {said}"
    except DeadKernelError:
        return f"{name[:2]} the kernel died, most likely for want of memory; try --profile laptop"
    except CellTimeoutError:
        return f"{name[:2]} a cell took more than the {budget} s that the profile allows"
    return ""


def _place(notebook: Notebook, source: str) -> str:
    for number, cell in enumerate(notebook.code, 1):
        if cell["source"] == source:
            return f"cell {number} [{cell.get('id')}]"
    return "injected parameters"


@contextlib.contextmanager
def kernel_environment(profile: str, notes: Path, places: Places) -> Iterator[None]:
    """The environment that a kernel inherits: this interpreter, this package, no network.

    A kernel specification of this very interpreter goes first on Jupyter's path, because a
    ``python3`` that the user has installed elsewhere would run another environment.
    """
    from ipykernel.kernelspec import write_kernel_spec

    with tempfile.TemporaryDirectory() as folder:
        write_kernel_spec(Path(folder) / "kernels" / "python3")
        defaults = {
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TQDM_MININTERVAL": "5",  # a bar in a saved notebook is only noise
        }
        if profile != "paper":  # the only one that may look for models and data elsewhere
            defaults["HF_HUB_OFFLINE"] = "1"
        wanted = {name: value for name, value in defaults.items() if name not in os.environ}
        wanted |= {
            "QALIB_PROFILE": profile,
            "QALIB_NOTES": str(notes.resolve()),
            "QALIB_COMMAND": command_line(),
            "IPYTHONDIR": folder,  # no start-up files of the user
            "JUPYTER_PATH": _first(folder, "JUPYTER_PATH"),
            "PYTHONPATH": _first(str(places.root), "PYTHONPATH"),
        }
        before = {name: os.environ.get(name) for name in wanted}
        os.environ.update(wanted)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def _first(path: str, variable: str) -> str:
    return os.pathsep.join([path, *filter(None, [os.environ.get(variable)])])


def _literal(path: Path) -> str:
    """A path that papermill takes as it is: it would fill in what stands in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def read_notes(path: Path) -> dict[str, dict[str, object]]:
    """What a notebook used and made, by kind and name; the first note of a name counts."""
    used: dict[str, dict[str, object]] = {
        kind: {} for kind in ("run", "figure", "data", "section", "claim")
    }
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        kind, name, value = json.loads(line)
        if kind == "figure":
            used[kind][name] = value  # a figure that is drawn again is the later one
        used.setdefault(kind, {}).setdefault(name, value)
    return used


def _write_stamp(
    notebook: Notebook, profile: str, params: dict, used: dict, seconds: float, places: Places
) -> None:
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
