"""The conventions of the committed notebooks."""

import ast
import json
import re
import statistics
from collections.abc import Callable

import pytest

from qalib.paths import ROOT
from qalib.study.notebooks import LARGEST, ProjectPaths, list_notebooks, outputs_hash

PARAMETERS = """profile = os.environ.get("QALIB_PROFILE", "laptop")  # or ci, study, paper
seed = 0  # first seed; the profile sets how many"""
TAGS = {"parameters", "nbval-check-output"}
ABSOLUTE = re.compile(r"(?<![\w.:/~<])(/(home|root|Users|tmp|usr|var|opt|mnt)/|[A-Z]:\\)")

RULES: dict[str, Callable[[dict], list[str]]] = {}


def rule(check: Callable[[dict], list[str]]):
    RULES[check.__name__] = check
    return check


def code(tree: dict) -> list[dict]:
    return [cell for cell in tree["cells"] if cell["cell_type"] == "code"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def prose(tree: dict) -> list[str]:
    return [source(cell) for cell in tree["cells"] if cell["cell_type"] == "markdown"]


def lines(cell: dict) -> list[str]:
    return [line for line in source(cell).splitlines() if line.strip()]


def parsed(cell: dict) -> ast.Module:
    try:
        return ast.parse(source(cell))
    except SyntaxError:
        return ast.Module(body=[], type_ignores=[])


def outputs(tree: dict) -> list[tuple[str, dict]]:
    return [(cell["id"], output) for cell in code(tree) for output in cell["outputs"]]


@rule
def cells_are_short(tree):
    sizes = {cell["id"]: len(lines(cell)) for cell in code(tree) if cell["id"] != "imports"}
    found = [name for name, size in sizes.items() if size > 32]
    return found + (["median over 15 lines"] if statistics.median(sizes.values()) > 15 else [])


@rule
def lines_fit_the_page(tree):
    own = [cell for cell in code(tree) if source(cell) != PARAMETERS]
    return [cell["id"] for cell in own if any(len(line) > 79 for line in lines(cell))]


@rule
def the_method_is_written_out_and_compared(tree):
    """A notebook defines something and asserts that it equals the library's version."""
    nodes = [node for cell in code(tree) for node in ast.walk(parsed(cell))]
    found = []
    if not any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in nodes):
        found.append("no definition")
    text = " ".join(source(cell) for cell in code(tree))
    if not any(isinstance(node, ast.Assert) for node in nodes) and "assert_" not in text:
        found.append("no assertion")
    return found


@rule
def cells_are_explained(tree):
    count = len(code(tree))
    return ["more code than prose"] if len(prose(tree)) < count / 2 else []


@rule
def code_is_plain_python(tree):
    found = []
    for cell in code(tree):
        try:
            ast.parse(source(cell))
        except SyntaxError:
            found.append(cell["id"])  # magics, shell commands
    return found


@rule
def there_is_one_parameters_cell_the_same_everywhere(tree):
    tagged = [cell for cell in code(tree) if "parameters" in cell["metadata"].get("tags", [])]
    return [] if [source(cell) for cell in tagged] == [PARAMETERS] else [f"{len(tagged)} tagged"]


@rule
def nothing_is_skipped_or_expected_to_fail(tree):
    return [
        f"{cell['id']}: {tag}"
        for cell in tree["cells"]
        for tag in cell["metadata"].get("tags", [])
        if tag not in TAGS
    ]


@rule
def cells_have_names(tree):
    ids = [cell.get("id", "") for cell in tree["cells"]]
    bad = [name for name in ids if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name)]
    bad += [name for name in ids if re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4,12})*", name)]
    return bad + [name for name in set(ids) if ids.count(name) > 1]


@rule
def the_kernel_is_python3(tree):
    name = tree["metadata"].get("kernelspec", {}).get("name")
    return [] if name == "python3" else [str(name)]


@rule
def nothing_is_left_over_from_a_run(tree):
    left = [key for key in ("papermill", "widgets") if key in tree["metadata"]]
    allowed = {"tags"}
    return left + [c["id"] for c in tree["cells"] if set(c["metadata"]) - allowed]


@rule
def no_folder_of_a_machine_is_named(tree):
    texts = [(cell["id"], source(cell)) for cell in tree["cells"]]
    texts += [(name, _text(output)) for name, output in outputs(tree)]
    machine = f"{ROOT}/"
    return [name for name, text in texts if ABSOLUTE.search(text) or machine in text]


def _text(output: dict) -> str:
    data = {key: "".join(value) for key, value in output.get("data", {}).items() if "text" in key}
    return "".join(output.get("text", [])) + " ".join(data.values())


@rule
def outputs_are_those_of_one_clean_run(tree):
    counts = [cell["execution_count"] for cell in code(tree)]
    found = [] if counts == list(range(1, len(counts) + 1)) else [f"counts {counts}"]
    for name, output in outputs(tree):
        if output["output_type"] == "error" or output.get("name") == "stderr":
            found.append(name)
        if re.search(r" at 0x[0-9a-f]{6,}", _text(output)):
            found.append(f"{name}: a memory address")
    return found


@rule
def the_title_is_followed_by_a_summary(tree):
    first = prose(tree)[0].strip().splitlines() if prose(tree) else [""]
    has_summary = any(
        line.startswith("> ") for text in prose(tree)[:2] for line in text.splitlines()
    )
    return ([] if first[0].startswith("# ") else ["title"]) + ([] if has_summary else ["summary"])


@rule
def paper_and_here_stand_side_by_side(tree):
    has_heading = any(re.search(r"^#+ Paper and here", text, re.M) for text in prose(tree))
    has_table = any(".compare(" in source(cell) for cell in code(tree))
    return [] if has_heading and has_table else ["no section 'Paper and here' with a table"]


@pytest.mark.parametrize("name", RULES)
def test_notebooks_keep_the_conventions(name):
    broken = {
        notebook.name: found
        for notebook in list_notebooks()
        if (found := RULES[name](json.loads(notebook.path.read_text(encoding="utf-8"))))
    }
    assert broken == {}


def test_notebooks_are_numbered_without_a_gap_and_small():
    notebooks = list_notebooks()
    assert [n.name[:2] for n in notebooks] == [f"{n:02d}" for n in range(len(notebooks))]
    assert notebooks
    every = sorted(path.name for path in ProjectPaths().notebooks.glob("*.ipynb"))
    assert every == [notebook.path.name for notebook in notebooks]
    sizes = {notebook.name: notebook.path.stat().st_size for notebook in notebooks}
    assert {name: size for name, size in sizes.items() if size > LARGEST} == {}


def test_outputs_are_those_of_the_recorded_run():
    for notebook in list_notebooks():
        stamp = ProjectPaths().stamp(notebook.name, "study")
        assert stamp.exists(), (
            f"run `python -m qalib study run-notebooks --profile study` for {notebook.name}"
        )
        recorded = json.loads(stamp.read_text(encoding="utf-8"))["outputs"]
        assert outputs_hash(notebook) == recorded, notebook.name
