"""Runs the notebooks: papermill made strict, with a stamp and an executed copy for each.

What a notebook needs from here is one cell tagged ``parameters`` that sets ``profile``; how large
everything is, the profile says. A notebook whose stamp shows no change is not run again.
"""

import ast
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from qalib.errors import QalibError
from qalib.study import readme, stamps
from qalib.study.environment import command_line
from qalib.study.figures import figure_problems
from qalib.study.files import exclusive, trouble_named
from qalib.study.outputs import bring_back
from qalib.study.profiles import load_profile
from qalib.study.stamps import Notebook, Places, list_notebooks, stale, write_stamp


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
    only: Sequence[str] | str | None = None,
    force: bool = False,
    params: Mapping[str, object] | None = None,
    *,
    sync: bool | None = None,
    places: Places | None = None,
    say: Callable[[str], None] = print,
) -> list[Result]:
    """Execute the notebooks in a profile and write their figures, stamps and executed copies.

    ``only``   beginnings of names: "03", "00,03" or a list of such
    ``force``  runs also what is up to date, and computes every run that it uses anew
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
    with trouble_named(places.build), exclusive(places.build / "figures.lock", "the notebooks"):
        begun = datetime.now(UTC).isoformat(timespec="seconds") if force else ""
        for notebook in chosen:
            budget = settings.budget(notebook.name[:2])
            problems = stale(notebook, profile, params, places)
            problems += figure_problems(profile, notebook.name, places.figures)
            if problems or force:
                result = _run(notebook, profile, params, budget, sync, begun, places)
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


def command_figures(
    profile: str,
    only: Sequence[str] | None = None,
    force: bool = False,
    check: bool = False,
    params: Sequence[str] = (),
) -> int:
    """What ``python -m qalib figures`` does; returns the exit status.

    ``check`` runs nothing and looks at what is committed, the figures, notebooks and README of
    profile study, whichever profile is named. ``params`` are texts "name=value".
    """
    if check:
        problems = stamps.check() + readme.check_readme()
        print("\n".join(problems) if problems else "Everything is up to date.")
        return 1 if problems else 0
    results = run_notebooks(profile, only, force, parse_params(params))
    print(f"\n{summary(results)}")
    if profile == "study":
        readme.note_minutes()
        readme.update_readme()
    return 1 if any(result.status == "failed" for result in results) else 0


def parse_params(texts: Sequence[str]) -> dict[str, object]:
    """Parameters from texts "name=value"; a value that is a Python literal is taken as one."""
    params: dict[str, object] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise QalibError(f"The parameter {text!r} must be written NAME=VALUE.")
        try:
            params[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            params[name] = value
    return params


def check_parameters(notebook: Notebook, params: Mapping[str, object]) -> None:
    """Raise QalibError if the notebook does not have these parameters; papermill only warns."""
    known = notebook.parameters()
    if not all("id" in cell for cell in notebook.cells):
        raise QalibError(f"{notebook.path.name}: has cells without ids; save it as nbformat 4.5.")
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
    notebook: Notebook,
    profile: str,
    params: dict,
    budget: int,
    sync: bool,
    force: str,
    places: Places,
) -> Result:
    executed = places.build / "executed" / profile / notebook.path.name
    executed.parent.mkdir(parents=True, exist_ok=True)
    notes = executed.with_suffix(".notes")
    notes.unlink(missing_ok=True)
    begun = time.monotonic()
    with kernel_environment(profile, notes, force, places):
        trouble = _execute(notebook, executed, {"profile": profile, **params}, budget)
    seconds = round(time.monotonic() - begun, 2)
    used = read_notes(notes)
    if not trouble:
        try:
            if sync:
                bring_back(notebook.path, executed)
                notebook = Notebook(notebook.path)
            write_stamp(notebook, profile, params, used, seconds, places)
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


def _execute(notebook: Notebook, executed: Path, params: dict, budget: int) -> str:
    """Run a notebook; returns what went wrong in one line, "" if nothing did."""
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    name = notebook.name
    try:
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
    except RuntimeError as error:
        return f"{name[:2]} the kernel did not start: {error}"
    except CellTimeoutError:
        return f"{name[:2]} a cell took more than the {budget} s that the profile allows"
    return ""


def _place(notebook: Notebook, source: str) -> str:
    for number, cell in enumerate(notebook.code, 1):
        if cell["source"] == source:
            return f"cell {number} [{cell.get('id')}]"
    return "injected parameters"


@contextlib.contextmanager
def kernel_environment(profile: str, notes: Path, force: str, places: Places) -> Iterator[None]:
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
            "QALIB_FORCE": force,  # runs begun before this moment are computed again
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
        try:
            kind, name, value = json.loads(line)
        except ValueError:  # the kernel was killed in the middle of it
            continue
        if kind == "figure":
            used[kind][name] = value  # a figure that is drawn again is the later one
        used.setdefault(kind, {}).setdefault(name, value)
    return used
