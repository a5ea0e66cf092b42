"""The notebook runner: toy notebooks run for real once, and what the stamps then see."""

import base64
import contextlib
import errno
import io
import json
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from qalib.errors import QalibError
from qalib.paths import ROOT
from qalib.study.files import exclusive
from qalib.study.notebooks import (
    Result,
    check_parameters,
    command_figures,
    parse_params,
    run_notebooks,
    summary,
)
from qalib.study.outputs import LARGEST, bring_back
from qalib.study.stamps import Notebook, Places, check, list_notebooks, stale, stamp

PROFILES = """
[ci.budget]
default = 60
"03" = 1
[ci.toy]
size = 3
[ci.other]
size = 3
[study]
extends = "ci"
[laptop]
extends = "ci"
"""
PARAMETERS = """profile = os.environ.get("QALIB_PROFILE", "laptop")  # or ci, study, paper
seed = 0  # first seed; the profile sets how many"""
GOOD = {
    "use-toy": """from dataclasses import dataclass
from pathlib import Path
from qalib.study.profiles import load_profile
from qalib.study.store import Store

@dataclass(frozen=True)
class Toy:
    size: int

toy = load_profile(profile, Path("../profiles.toml")).section("toy", Toy)
run = Store(Path("../runs"), Path("../records")).get_or_run(
    "toy", {"size": toy.size}, lambda work: {"f1": 50.0})""",
    "tell": """import sys
print(f"{profile} {seed} {toy.size} {Path.cwd().name}")
print("a", "warning", file=sys.stderr)
names = ["HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM", "QALIB_PROFILE"]
{"python": sys.executable, **{name: os.environ[name] for name in names}}""",
    "plot": """from matplotlib.figure import Figure
from qalib.study.figures import save_figure
fig = Figure(figsize=(1, 1))
fig.subplots().plot([1, 2])
save_figure("00_toy", fig, {"y": [1, 2]}, profile=profile, notebook="00_good",
            runs=[run.short], datasets={"dev": "ab"}, folder=Path("../figures"));""",
}


def write(folder: Path, name: str, cells: dict[str, str], tags=("parameters",)) -> Notebook:
    listed = [new_markdown_cell("# Toy?", id="title"), new_code_cell("import os", id="imports")]
    for i, tag in enumerate(tags):
        cell = new_code_cell(PARAMETERS, id=f"parameters{i or ''}")
        cell.metadata.tags = [tag]
        listed.append(cell)
    listed += [new_code_cell(source, id=name) for name, source in cells.items()]
    notebook = new_notebook(cells=listed)
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    notebook.metadata.papermill = {"exception": True}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.ipynb"
    path.write_text(nbformat.writes(notebook) + "\n")
    return Notebook(path)


def toy_places(home: Path) -> Places:
    return Places(
        notebooks=home / "notebooks",
        figures=home / "figures",
        records=home / "records",
        build=home / "build",
        profiles=home / "profiles.toml",
        root=home,
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Four notebooks run in profile study: a good one and three that fail in different ways."""
    home = tmp_path_factory.mktemp("kit {braces}")
    shutil.copytree(ROOT / "qalib", home / "qalib", ignore=shutil.ignore_patterns("__pycache__"))
    (home / "profiles.toml").write_text(PROFILES)
    write(home / "notebooks", "00_good", GOOD)
    write(home / "notebooks", "01_bad", {"fine": "1 + 1", "fail": "1 / 0\n# why", "after": "x"})
    write(home / "notebooks", "02_dead", {"die": "os.kill(os.getpid(), 9)"})
    write(home / "notebooks", "03_slow", {"wait": "import time\ntime.sleep(60)"})
    said: list[str] = []
    results = run_notebooks("study", places=toy_places(home), say=said.append)
    store = home / "runs"
    (home / "records").mkdir()
    for run in store.glob("toy-*"):
        shutil.copytree(run, home / "records" / run.name)
    return home, results, said


@pytest.fixture
def kit(ran, tmp_path) -> Places:
    """A copy of what was run, with only the good notebook, for a test to spoil."""
    shutil.copytree(ran[0], tmp_path / "kit", ignore=shutil.ignore_patterns("0[1-9]_*.ipynb"))
    return toy_places(tmp_path / "kit")


def change(places: Places, old: str, new: str, profile: str = "") -> None:
    path = places.profiles if profile else places.notebooks / "00_good.ipynb"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def good(places: Places) -> Notebook:
    return list_notebooks("00", places)[0]


# --- a real run --------------------------------------------------------------------------------


def test_one_that_fails_does_not_stop_the_others(ran):
    _, results, said = ran
    assert [result.status for result in results] == ["done", "failed", "failed", "failed"]
    assert said[0] == "00_good: done"
    assert said[1] == "01 cell 4 [fail] ZeroDivisionError: division by zero"
    assert said[2].startswith("02 the kernel died")
    assert said[3].startswith("03 a cell took more than the 1 s")
    assert (results[0].computed, results[0].found, results[0].figures) == (1, 0, 1)
    assert 0 < results[0].seconds < 600
    table = summary(results)
    assert "| 00_good" in table
    assert table.count("failed") == 3


def test_the_kernel_is_this_python_in_the_notebooks_folder_and_offline(ran):
    cells = {cell["id"]: cell for cell in Notebook(ran[0] / "notebooks/00_good.ipynb").code}
    printed, shown = cells["tell"]["outputs"]
    assert "".join(printed["text"]) == "study 0 3 notebooks\n"
    told = eval("".join(shown["data"]["text/plain"]))
    assert Path(told["python"]).resolve() == Path(sys.executable).resolve()
    assert told["HF_HUB_OFFLINE"] == "1"
    assert told["TOKENIZERS_PARALLELISM"] == "false"
    assert told["QALIB_PROFILE"] == "study"
    assert "QALIB_NOTES" not in os.environ


def test_outputs_come_back_clean(ran):
    text = (ran[0] / "notebooks" / "00_good.ipynb").read_text()
    tree = json.loads(text)
    code = [cell for cell in tree["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert code[3]["outputs"][1]["execution_count"] == 4
    assert [cell["id"] for cell in code] == ["imports", "parameters", *GOOD]
    assert all(cell["metadata"] == {} for cell in code if cell["id"] != "parameters")
    assert "papermill" not in text
    assert "a warning" not in text
    assert "injected" not in text
    executed = (ran[0] / "build" / "executed" / "study" / "00_good.ipynb").read_text()
    assert "injected-parameters" in executed
    assert "a warning" in executed
    assert '"execution_count": 4' not in (ran[0] / "notebooks" / "01_bad.ipynb").read_text()


def test_the_stamp_tells_what_was_used(ran):
    old = json.loads((ran[0] / "figures" / "study" / "00_good.stamp.json").read_text())
    assert list(old["figures"]) == ["00_toy"]
    assert [run[:4] for run in old["runs"]] == ["toy-"]
    assert old["data"] == {"dev": "ab"}
    assert list(old["sections"]) == ["toy"]
    assert {"qalib/study/store.py", "qalib/errors.py", "qalib/__init__.py"} <= set(old["modules"])
    assert not (ran[0] / "figures" / "study" / "01_bad.stamp.json").exists()
    assert str(ROOT) not in json.dumps(old)


def test_what_is_up_to_date_is_not_run_again(kit, monkeypatch):
    assert check("study", kit) == []
    monkeypatch.setattr("papermill.execute_notebook", None)
    said: list[str] = []
    [result] = run_notebooks("study", places=kit, say=said.append)
    assert result.status == "up to date"
    assert said == ["00_good: up to date"]


def test_force_or_a_spoilt_figure_runs_it_again(kit, monkeypatch):
    forced = []

    def execute(*args) -> str:
        forced.append(os.environ["QALIB_FORCE"])
        return "00 was run"

    monkeypatch.setattr("qalib.study.notebooks._execute", execute)
    told = []
    run_notebooks("study", force=True, places=kit, say=told.append)
    (kit.figures / "study" / "00_toy.csv").write_text("y\n3\n")
    run_notebooks("study", places=kit, say=told.append)
    assert told == ["00 was run"] * 2
    assert forced[0].startswith("20")  # the moment from which on runs count
    assert forced[1] == ""
    assert kit.stamp("00_good", "study").exists()  # a failure takes nothing away


# --- what makes a stamp stale ------------------------------------------------------------------


def test_comments_and_unused_sections_change_nothing(kit):
    change(kit, "import sys\\n", "import sys  # the system\\n")
    change(kit, "[ci.other]\nsize = 3", "[ci.other]\nsize = 4", "study")
    assert check("study", kit) == []


@pytest.mark.parametrize(
    ("old", "new", "profile", "reason"),
    [
        ("toy.size}, lambda", "toy.size + 0}, lambda", "", "its code cells"),
        ("study 0 3", "study 0 4", "", "the outputs in it"),
        ("[ci.toy]\nsize = 3", "[ci.toy]\nsize = 4", "study", "the profile's section toy"),
    ],
)
def test_a_change_is_told_with_the_command_that_mends_it(kit, old, new, profile, reason):
    change(kit, old, new, profile)
    [problem] = check("study", kit)
    assert problem == (
        f"00_good: since it was run, {reason} changed; "
        "run `python -m qalib figures --profile study --only 00`."
    )


def test_other_parameters_are_another_run(kit):
    assert stale(good(kit), "study", {"seed": 1}, kit) == [
        "since it was run, the parameter seed changed"
    ]


def test_a_record_that_is_gone_is_missed(kit):
    shutil.rmtree(kit.records)
    [problem] = check("study", kit)
    assert re.match(r"00_good: its run toy-\w+ is not in the records; run `", problem)


def test_a_figure_that_is_gone_is_missed(kit):
    (kit.figures / "study" / "00_toy.svg").unlink()
    [problem] = check("study", kit)
    assert "00_toy.svg: is missing" in problem


def test_a_stamp_that_is_damaged_missing_or_left_over(kit):
    path = kit.stamp("00_good", "study")
    shutil.copy(path, kit.stamp("07_gone", "study"))
    problems = check("study", kit)
    assert any("07_gone.stamp.json: its notebook is gone" in problem for problem in problems)
    kit.stamp("07_gone", "study").unlink()
    for text in ("{", "[]", "{}"):
        path.write_text(text)
        assert stale(good(kit), "study", {}, kit) == ["has a damaged stamp"]
    path.unlink()
    assert stale(good(kit), "study", {}, kit) == ["has not been run"]
    assert any(problem.startswith("00_good: has not been run") for problem in check("study", kit))
    assert stale(good(kit), "laptop", {}, kit) == ["has not been run"]


PACKAGE = {
    "__init__.py": '"""Toy."""\nLAZY = {"start": "qalib.late"}\n',
    "used.py": '"""Used."""\nfrom qalib.rooms import deep\n',
    "late.py": "def late():\n    from qalib.rooms.deep import x\n    return x\n",
    "unused.py": "x = 1\n",
    "rooms/__init__.py": "",
    "rooms/deep.py": "def f(a):\n    'Doc.'\n    return a + 1  # more\n",
}


@pytest.mark.parametrize(
    ("name", "text", "is_stale"),
    [
        ("rooms/deep.py", 'def f(a):\n    """Other words."""\n\n    return (a + 1)\n', False),
        ("rooms/deep.py", "def f(a):\n    'Doc.'\n    return a + 2  # more\n", True),
        ("unused.py", "x = 2\n", False),
        ("late.py", "x = 1\n", True),
        ("used.py", "", True),
        ("__init__.py", '"""Other."""\nLAZY = {"start": "qalib.late"}\n', False),
    ],
)
def test_modules_count_if_code_can_reach_them_and_only_their_code(kit, name, text, is_stale):
    root = kit.build / "toy"
    for file, source in PACKAGE.items():
        (root / "qalib" / file).parent.mkdir(parents=True, exist_ok=True)
        (root / "qalib" / file).write_text(source)
    notebook = write(
        kit.notebooks, "05_toy", {"use": "%matplotlib inline", "go": "import qalib.used"}
    )
    places = replace(kit, root=root)
    before = stamp(notebook, "ci", {}, places=places)
    reached = ["__init__", "late", "rooms/__init__", "rooms/deep", "used"]
    assert list(before["modules"]) == [f"qalib/{module}.py" for module in reached]
    (root / "qalib" / name).write_text(text)
    assert (stamp(notebook, "ci", {}, places=places) != before) == is_stale


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "params", "message"),
    [
        ((), {}, "0 cells are tagged 'parameters'"),
        (("parameters", "parameters"), {}, "2 cells are tagged"),
        (("parameters",), {"sead": 1}, "has no parameter 'sead'; it has profile, seed"),
        (("parameters",), {"profile": "ci"}, "give it as --profile"),
        (("other",), {}, "0 cells are tagged"),
    ],
)
def test_parameters_are_strict(tmp_path, tags, params, message):
    notebook = write(tmp_path, "00_toy", {"go": "1"}, tags)
    with pytest.raises(QalibError, match=message):
        check_parameters(notebook, params)


def test_nothing_is_run_if_one_notebook_lacks_a_parameter(kit, monkeypatch):
    monkeypatch.setattr("papermill.execute_notebook", None)
    with pytest.raises(QalibError, match="no parameter 'speed'"):
        run_notebooks("study", params={"speed": 1}, force=True, places=kit)
    check_parameters(good(kit), {"seed": 3})


def test_a_parameters_cell_without_profile_is_refused(kit):
    change(kit, "profile = os", "prof = os")
    with pytest.raises(QalibError, match="must set 'profile'"):
        check_parameters(good(kit), {})


def test_a_file_that_is_no_notebook_is_named(kit):
    (kit.notebooks / "00_good.ipynb").write_text("{")
    with pytest.raises(QalibError, match=r"00_good\.ipynb: is not a notebook"):
        run_notebooks("study", places=kit)


def test_choosing_notebooks(ran):
    places = toy_places(ran[0])
    names = [notebook.name for notebook in list_notebooks("03, 00", places)]
    assert names == ["00_good", "03_slow"]
    assert list_notebooks(["03", "00"], places) == list_notebooks("03, 00", places)
    assert len(list_notebooks(None, places)) == len(list_notebooks([], places)) == 4
    with pytest.raises(QalibError, match="No notebook begins with '09'; there are 00_good, 01"):
        list_notebooks("00,09", places)


def test_two_runners_at_once_are_refused(kit):
    with contextlib.ExitStack() as stack:
        stack.enter_context(exclusive(kit.build / "figures.lock", "the notebooks"))
        stack.enter_context(pytest.raises(QalibError, match=f"Process {os.getpid()} is working"))
        run_notebooks("study", places=kit, say=print)


def test_a_full_disk_is_one_sentence(kit, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("qalib.study.notebooks.write_stamp", full)
    monkeypatch.setattr("qalib.study.notebooks._execute", lambda *args: "")
    with pytest.raises(QalibError, match="No space left"):
        run_notebooks("ci", places=kit, say=print)


def test_a_notebook_without_cell_ids_is_refused(kit):
    path = kit.notebooks / "00_good.ipynb"
    tree = json.loads(path.read_text())
    del tree["cells"][0]["id"]
    path.write_text(json.dumps(tree))
    with pytest.raises(QalibError, match="cells without ids"):
        run_notebooks("ci", places=kit)


def test_unknown_profiles_and_outputs_that_are_not_kept_are_refused(kit):
    with pytest.raises(QalibError, match="no profile 'lab'"):
        run_notebooks("lab", places=kit)
    with pytest.raises(QalibError, match="no profile 'lab'"):
        check("lab", kit)
    with pytest.raises(QalibError, match="Outputs of profile ci are not kept"):
        run_notebooks("ci", sync=True, places=kit)


def test_parameters_from_the_command_line():
    texts = ["seed=3", "rate=1e-4", "name=base", "layers=[1, 2]", "text=a=b"]
    told = {"seed": 3, "rate": 1e-4, "name": "base", "layers": [1, 2], "text": "a=b"}
    assert parse_params(texts) == told
    for text in ("seed", "=3", "a b=3"):
        with pytest.raises(QalibError, match="NAME=VALUE"):
            parse_params([text])


def test_the_command_checks_or_runs(monkeypatch, capsys):
    results = [Result("00_toy", "done"), Result("01_toy", "up to date")]
    monkeypatch.setattr("qalib.study.notebooks.run_notebooks", lambda *args: results)
    monkeypatch.setattr("qalib.study.stamps.check", lambda: [])
    monkeypatch.setattr("qalib.study.readme.check_readme", lambda: [])
    assert command_figures("ci", params=["seed=1"]) == 0
    assert "| 01_toy" in capsys.readouterr().out
    results.append(Result("02_toy", "failed"))
    assert command_figures("ci") == 1
    assert command_figures("laptop", check=True) == 0
    assert "Everything is up to date." in capsys.readouterr().out
    monkeypatch.setattr("qalib.study.stamps.check", lambda: ["00_toy: stale"])
    assert command_figures("laptop", check=True) == 1
    assert "00_toy: stale" in capsys.readouterr().out


# --- large outputs -----------------------------------------------------------------------------


def picture(pixels: np.ndarray) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels.astype("uint8")).save(buffer, "PNG", compress_level=0)
    return base64.b64encode(buffer.getvalue()).decode()


def with_outputs(folder: Path, data: dict[str, str]) -> tuple[Path, Path]:
    source = write(folder, "00_big", {"show": "1"}).path
    executed = nbformat.read(source, as_version=4)
    executed.cells[-1].outputs = [new_output("display_data", data)]
    nbformat.write(executed, folder / "executed.ipynb")
    return source, folder / "executed.ipynb"


def test_large_pictures_are_made_smaller(tmp_path):
    shade = np.linspace(0, 255, 1200)[None, :, None] * np.ones((400, 1, 3))
    widget = {"application/vnd.jupyter.widget-view+json": "{}"}
    source, executed = with_outputs(tmp_path, {"image/png": picture(shade), **widget})
    assert executed.stat().st_size > LARGEST
    bring_back(source, executed)
    assert source.stat().st_size < LARGEST
    text = source.read_text()
    assert "image/png" in text
    assert "widget" not in text


def test_what_is_still_too_large_is_refused_and_named(tmp_path):
    source, executed = with_outputs(tmp_path, {"text/plain": "x" * LARGEST})
    before = source.read_text()
    with pytest.raises(QalibError, match=r"00_big\.ipynb: .*\[show\] 20\d KB"):
        bring_back(source, executed)
    assert source.read_text() == before
