"""The notebook runner: toy notebooks run for real once, and what the stamps then see."""

import base64
import errno
import io
import json
import os
import re
import shutil
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from qalib.errors import QalibError
from qalib.paths import ROOT
from qalib.study.notebooks import (
    LARGEST,
    Notebook,
    ProjectPaths,
    check,
    copy_outputs,
    list_notebooks,
    make_stamp,
    run_notebooks,
    why_stale,
)

PROFILES = """
[ci.budget]
default = 60
[ci.toy]
size = 3
[ci.other]
size = 3
[study]
extends = "ci"
[laptop]
extends = "ci"
[laptop.budget]
default = 1
"""
PARAMETERS = """profile = os.environ.get("QALIB_PROFILE", "laptop")  # or ci, study, paper
seed = 0  # first seed; the profile sets how many"""
GOOD = {
    "use-toy": """from pathlib import Path
from qalib.settings import settings
from qalib.study.profiles import load_profile
from qalib.study.run_cache import RunCache, stage

@settings
class Toy:
    size: int

@stage("toy")
def train_toy(config, work):
    return {"f1": 50.0}

toy = load_profile(profile, Path("../profiles.toml")).section("toy", Toy)
cache = RunCache(Path("../runs"), Path("../records"))
run = cache.run(train_toy, toy)
cache.publish(run, [])""",
    "tell": """import sys
print(f"{profile} {seed} {toy.size} {Path.cwd().name}")
print("a", "warning", file=sys.stderr)
names = ["HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM", "QALIB_PROFILE"]
{"python": sys.executable, **{name: os.environ[name] for name in names}}""",
    "plot": """from types import SimpleNamespace
from matplotlib.figure import Figure
from qalib.files import log_usage
from qalib.study.figures import save_figure
log_usage("data", "dev", "ab")
study = SimpleNamespace(name="00_good", profile=SimpleNamespace(name=profile), seed=seed,
                        runs={run.short: run}, datasets={})
fig = Figure(figsize=(1, 1))
fig.subplots().plot([1, 2])
save_figure(study, "00_toy", fig, {"y": [1, 2]}, folder=Path("../figures"));""",
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


def toy_paths(home: Path) -> ProjectPaths:
    return ProjectPaths(
        notebooks=home / "notebooks",
        figures=home / "figures",
        records=home / "records",
        build=home / "build",
        profiles=home / "profiles.toml",
        root=home,
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Three notebooks run in profile study, two of which fail, and one that takes too long."""
    home = tmp_path_factory.mktemp("kit {braces}")
    shutil.copytree(ROOT / "qalib", home / "qalib", ignore=shutil.ignore_patterns("__pycache__"))
    (home / "profiles.toml").write_text(PROFILES)
    write(home / "notebooks", "00_good", GOOD)
    write(home / "notebooks", "01_bad", {"fine": "1 + 1", "fail": "1 / 0\n# why", "after": "x"})
    write(home / "notebooks", "02_dead", {"die": "os.kill(os.getpid(), 9)"})
    said: list[str] = []

    def say(line: str) -> None:
        if not line.startswith("  "):  # without the progress that a busy machine prints
            said.append(line)

    results = run_notebooks("study", paths=toy_paths(home), say=say)
    write(home / "notebooks", "03_slow", {"wait": "import time\ntime.sleep(60)"})
    results |= run_notebooks("laptop", "03", paths=toy_paths(home), say=say)
    return home, results, said


@pytest.fixture
def kit(ran, tmp_path) -> ProjectPaths:
    """A copy of what was run, with only the good notebook, for a test to spoil."""
    shutil.copytree(ran[0], tmp_path / "kit", ignore=shutil.ignore_patterns("0[1-9]_*.ipynb"))
    return toy_paths(tmp_path / "kit")


def change(paths: ProjectPaths, old: str, new: str, profile: str = "") -> None:
    path = paths.profiles if profile else paths.notebooks / "00_good.ipynb"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def good(paths: ProjectPaths) -> Notebook:
    return list_notebooks("00", paths)[0]


# --- a real run --------------------------------------------------------------------------------


def test_one_that_fails_does_not_stop_the_others(ran):
    _, results, said = ran
    assert list(results) == ["00_good", "01_bad", "02_dead", "03_slow"]
    assert [bool(problem) for problem in results.values()] == [False, True, True, True]
    assert said[0] == "00_good (1 of 3): started in profile study"
    assert re.fullmatch(r"00_good \(1 of 3\): done in \d+ s", said[1])
    assert said[3] == "01_bad (2 of 3): 01 cell 4 of 5 [fail] ZeroDivisionError: division by zero"
    assert "02 the kernel died" in said[5]
    assert "03 a cell took more than the 1 s" in said[7]


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
    assert (ran[0] / "build" / "executed" / "study" / "00_good.kernel.log").exists()
    assert [path.suffix for path in (ran[0] / "notebooks").iterdir()] == [".ipynb"] * 4


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
    assert not (ran[0] / "figures" / "study" / "01_bad.stamp.json").exists()
    assert str(ROOT) not in json.dumps(old)


def test_what_is_up_to_date_is_not_run_again(kit, monkeypatch):
    assert check("study", kit) == []
    monkeypatch.setattr("papermill.execute_notebook", None)
    said: list[str] = []
    assert run_notebooks("study", paths=kit, say=said.append) == {"00_good": ""}
    assert said == ["00_good (1 of 1): up to date"]


def test_force_or_a_spoilt_figure_runs_it_again(kit, monkeypatch):
    forced = []

    def execute(*args) -> str:
        forced.append(os.environ["QALIB_FORCE"])
        return "00 was run"

    monkeypatch.setattr("qalib.study.notebooks._execute", execute)
    said = []
    run_notebooks("study", force=True, paths=kit, say=said.append)
    (kit.figures / "study" / "00_toy.csv").write_text("y\n3\n")
    run_notebooks("study", paths=kit, say=said.append)
    assert said[1::2] == ["00_good (1 of 1): 00 was run"] * 2
    assert forced[0].startswith("20")  # the moment from which on runs count
    assert forced[1] == ""
    assert kit.stamp("00_good", "study").exists()  # a failure takes nothing away


def test_a_notebook_that_is_edited_while_it_runs_is_not_stamped(kit, monkeypatch):
    stamp = kit.stamp("00_good", "study")
    before = stamp.read_bytes()

    def execute(*args) -> str:
        change(kit, '"f1\\": 50.0', '"f1\\": 51.0', "")
        return ""

    monkeypatch.setattr("qalib.study.notebooks._execute", execute)
    said = []
    found = run_notebooks("study", force=True, paths=kit, say=said.append)
    assert found == {"00_good": "00 was changed while it ran; run it again"}
    assert stamp.read_bytes() == before


# --- what makes a stamp stale ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "profile", "reason"),
    [
        ('"f1\\": 50.0', '"f1\\": 51.0', "", "its code cells"),
        ("study 0 3", "study 0 4", "", "the outputs in it"),
        ("[ci.toy]\nsize = 3", "[ci.toy]\nsize = 4", "study", "the profile's section toy"),
    ],
)
def test_a_change_is_told_with_the_command_that_mends_it(kit, old, new, profile, reason):
    change(kit, old, new, profile)
    [problem] = check("study", kit)
    assert problem == (
        f"00_good: {reason} changed since it was run; "
        "run `python -m qalib study run-notebooks --profile study --only 00`."
    )


def test_a_record_that_is_gone_is_missed(kit):
    shutil.rmtree(kit.records)
    [problem] = check("study", kit)
    assert re.match(r"00_good: its run toy-\w+ is not in the records; run `", problem)


def test_a_figure_that_is_gone_changed_or_left_over_is_found(kit):
    (kit.figures / "study" / "00_toy.svg").unlink()
    (kit.figures / "study" / "00_toy.csv").write_text("y\n3\n")
    (kit.figures / "study" / "00_old.png").touch()
    problems = check("study", kit)
    found = " ".join(problems)
    assert "00_good: its figure 00_toy.svg is missing or was changed; run `python" in found
    assert "00_good: its figure 00_toy.csv is missing or was changed; run `python" in found
    assert "figures/study/00_old.png: no notebook makes it; delete it." in problems


def test_a_stamp_that_is_damaged_missing_or_left_over(kit):
    path = kit.stamp("00_good", "study")
    shutil.copy(path, kit.stamp("07_gone", "study"))
    problems = check("study", kit)
    assert any("07_gone.stamp.json: no notebook makes it" in problem for problem in problems)
    kit.stamp("07_gone", "study").unlink()
    for text in ("{", "[]", "{}"):
        path.write_text(text)
        assert why_stale(good(kit), "study", kit) == ["has a damaged stamp"]
    path.unlink()
    assert why_stale(good(kit), "study", kit) == ["has not been run"]
    assert any(problem.startswith("00_good: has not been run") for problem in check("study", kit))
    assert why_stale(good(kit), "laptop", kit) == ["has not been run"]


@pytest.mark.parametrize(("name", "is_stale"), [("used", True), ("other", False)])
def test_the_stages_that_a_notebook_imports_count(kit, name, is_stale):
    folder = kit.root / "qalib" / "study" / "stages"
    for stage_name in ("used", "other"):
        (folder / f"{stage_name}.py").write_text("x = 1\n")
    cells = {"use": "from qalib.study.stages.used import x", "go": "%matplotlib inline"}
    notebook = write(kit.notebooks, "05_toy", cells)
    before = make_stamp(notebook, "ci", paths=kit)
    assert list(before["stages"]) == ["used"]
    (folder / f"{name}.py").write_text("x = 2\n")
    assert (make_stamp(notebook, "ci", paths=kit) != before) == is_stale


def test_progress_names_cell_and_step(kit, monkeypatch):
    monkeypatch.setattr("qalib.study.notebooks.EVERY", 0.2)
    source = """import time
from qalib.progress import progress_bar
with progress_bar(8, "train", "step") as bar:
    for _ in range(8):
        time.sleep(0.4)
        bar.update()"""
    write(kit.notebooks, "06_long", {"fit": source})
    said: list[str] = []
    assert run_notebooks("ci", "06", paths=kit, say=said.append) == {"06_long": ""}
    assert any(
        re.match(r"  06 cell 3 of 3 \[fit\], \d+ s, train: step \d of 8, [\d:?]+ left", line)
        for line in said
    ), said


# --- refusals ----------------------------------------------------------------------------------


def test_a_file_that_is_no_notebook_is_named(kit):
    (kit.notebooks / "00_good.ipynb").write_text("{")
    with pytest.raises(QalibError, match=r"00_good\.ipynb: is not a notebook"):
        run_notebooks("study", paths=kit)


def test_choosing_notebooks(ran):
    paths = toy_paths(ran[0])
    names = [notebook.name for notebook in list_notebooks("03, 00", paths)]
    assert names == ["00_good", "03_slow"]
    assert list_notebooks(["03", "00"], paths) == list_notebooks("03, 00", paths)
    assert len(list_notebooks(None, paths)) == len(list_notebooks([], paths)) == 4
    with pytest.raises(QalibError, match="No notebook begins with '09'; there are 00_good, 01"):
        list_notebooks("00,09", paths)


def test_a_full_disk_is_one_sentence(kit, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("qalib.study.notebooks.write_stamp", full)
    monkeypatch.setattr("qalib.study.notebooks._execute", lambda *args: "")
    with pytest.raises(QalibError, match="No space left"):
        run_notebooks("ci", paths=kit, say=print)


def test_unknown_profiles_are_refused(kit):
    with pytest.raises(QalibError, match="no profile 'lab'"):
        run_notebooks("lab", paths=kit)
    with pytest.raises(QalibError, match="no profile 'lab'"):
        check("lab", kit)


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
    copy_outputs(source, executed)
    assert source.stat().st_size < LARGEST
    text = source.read_text()
    assert "image/png" in text
    assert "widget" not in text


def test_a_notebook_that_is_too_large_is_refused_and_its_largest_cell_named(tmp_path):
    source, executed = with_outputs(tmp_path, {"text/plain": "x" * LARGEST})
    before = source.read_text()
    with pytest.raises(QalibError, match=r"00_big\.ipynb: .*cells such as \[show\]"):
        copy_outputs(source, executed)
    assert source.read_text() == before
