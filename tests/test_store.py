"""The run store: keys, resuming after death, damage, locks, a full disk, records."""

import dataclasses
import errno
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qalib.errors import QalibError
from qalib.paths import ROOT
from qalib.study.entries import run_key
from qalib.study.environment import command_line, environment
from qalib.study.files import canonical, exclusive, write_whole
from qalib.study.store import Store, command_runs

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@dataclasses.dataclass(frozen=True)
class Settings:
    steps: int = 10
    rates: tuple[float, ...] = (0.1, 1e-5)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs", tmp_path / "records")


def weigh(work: Path) -> dict:
    """A toy stage that writes a weight and measures something."""
    (work / "weights.bin").write_bytes(b"w" * 1000)
    (work / "curve.csv").write_text("step,loss\n1,0.5\n")
    return {"f1": 76.25, "note": None, "parts": {"HasAns": 1}}


def never(work: Path) -> dict:
    raise AssertionError("this run should have been found")


# --- keys -------------------------------------------------------------------------------------


@settings(deadline=None)
@given(TREES)
def test_canonical_json_holds_the_value_and_nothing_but_the_value(tree):
    text = canonical(tree)
    again = json.loads(text)
    assert again == tree
    assert canonical(again) == text
    assert text.isascii()


@settings(deadline=None)
@given(st.dictionaries(st.text(), TREES, min_size=2, max_size=5))
def test_the_order_of_keys_does_not_matter(tree):
    assert canonical(dict(reversed(tree.items()))) == canonical(tree)


@settings(deadline=None)
@given(TREES, TREES)
def test_different_values_have_different_texts(one, other):
    same = canonical(one) == canonical(other)
    assert same == (repr(_sorted(one)) == repr(_sorted(other)))


def _sorted(tree):
    if isinstance(tree, dict):
        return {key: _sorted(tree[key]) for key in sorted(tree)}
    return [_sorted(item) for item in tree] if isinstance(tree, list) else tree


def test_tuples_are_lists_and_dataclasses_dictionaries():
    assert canonical(Settings()) == canonical({"steps": 10, "rates": [0.1, 1e-05]})
    assert canonical({"b": 1.0, "a": (1, "é")}) == '{"a":[1,"\\u00e9"],"b":1.0}'


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), {1: 2}, {"x"}, b"bytes", Path("x"), object(), Settings],
)
def test_what_has_no_written_form_is_refused_with_its_place(value):
    with pytest.raises(QalibError, match=r"value\.deep\[1\]"):
        canonical({"deep": [0, value]})


def test_every_part_of_a_request_is_in_the_key():
    base = ("train", {"seed": 0}, {"data": "aa"}, 1)
    keys = {
        run_key(*base),
        run_key("score", *base[1:]),
        run_key("train", {"seed": 1}, {"data": "aa"}, 1),
        run_key("train", {"seed": 0}, {"data": "bb"}, 1),
        run_key("train", {"seed": 0}, {"data": "aa"}, 2),
    }
    assert len(keys) == 5
    assert run_key(*base) == run_key("train", {"seed": 0}, {"data": "aa"})


def test_a_stage_is_named_plainly(store):
    with pytest.raises(QalibError, match="stage"):
        store.get_or_run("../up", {}, weigh)


# --- computing and finding ---------------------------------------------------------------------


def test_a_run_is_computed_once(store):
    settings = Settings()
    first = store.get_or_run("train", settings, weigh, inputs={"data": "aa"})
    again = store.get_or_run(
        "train", {"rates": [0.1, 1e-5], "steps": 10}, never, inputs={"data": "aa"}
    )
    assert first == again
    assert first.metrics == {"f1": 76.25, "note": None, "parts": {"HasAns": 1}}
    assert first.config == {"steps": 10, "rates": [0.1, 1e-5]}
    assert first.inputs == {"data": "aa"}
    assert first.short == f"train-{first.key[:12]}" == first.folder.name
    assert first.file("weights.bin").read_bytes() == b"w" * 1000
    with pytest.raises(QalibError, match=r"nothing\.bin is not kept.*--force"):
        first.file("nothing.bin")
    assert sorted(path.name for path in first.folder.iterdir()) == [
        "DONE.json",
        "config.json",
        "curve.csv",
        "env.json",
        "metrics.json",
        "weights.bin",
    ]


def test_the_environment_is_recorded_and_names_nobody(store):
    env = store.get_or_run("train", {"seed": 3}, weigh).env
    assert env["seed"] == 3
    assert env["sessions"] == 1
    assert 0.01 < env["peak_memory_gb"] < 100  # this process has numpy loaded
    assert env["packages"]["numpy"]
    assert set(env["git"]) == {"commit", "dirty"}
    text = json.dumps(env)
    for private in (str(ROOT), str(Path.home()) + "/", str(store.root), platform.node()):
        assert private not in text or len(private) < 4  # a host may be called "a"


def test_the_command_is_told_without_absolute_paths(monkeypatch):
    words = [str(ROOT / "qalib" / "__main__.py"), "figures", "--only", "00", "/data/dev.json"]
    monkeypatch.delenv("QALIB_COMMAND", raising=False)
    monkeypatch.setattr(sys, "argv", [*words, "--output=/home/me/out.json"])
    assert command_line() == ("python -m qalib figures --only 00 dev.json --output=out.json")
    monkeypatch.setenv("QALIB_COMMAND", "python -m qalib figures")
    assert environment()["command"] == "python -m qalib figures"


def test_metrics_must_be_finite(store):
    with pytest.raises(QalibError, match=r"train metrics\.loss.*finite"):
        store.get_or_run("train", {}, lambda work: {"loss": float("nan")})
    assert [entry.state for entry in store.runs()] == ["partial"]


def test_a_stage_must_write_what_is_needed_of_it(store):
    with pytest.raises(QalibError, match=r"did not write model\.bin"):
        store.get_or_run("train", {}, weigh, needs=["weights.bin", "model.bin"])
    store.get_or_run("train", {}, weigh, needs=["weights.bin"])
    with pytest.raises(QalibError, match=r"finished without model\.bin.*--force"):
        store.get_or_run("train", {}, weigh, needs=["model.bin"])


def test_force_computes_from_nothing_and_keeps_the_old_run_until_then(store):
    old = store.get_or_run("train", {}, lambda work: {"f1": 1})
    (store.root / f"{old.short}.partial").mkdir()
    (store.root / f"{old.short}.partial" / "stale").touch()

    def fail(work: Path) -> dict:
        assert not (work / "stale").exists()
        raise RuntimeError("no luck")

    with pytest.raises(RuntimeError, match="no luck"):
        store.get_or_run("train", {}, fail, force=True)
    assert store.get_or_run("train", {}, never).metrics == {"f1": 1}
    assert store.get_or_run("train", {}, lambda work: {"f1": 2}, force=True).metrics == {"f1": 2}
    assert store.get_or_run("train", {}, never).metrics == {"f1": 2}
    assert len(store.runs()) == 1


def test_force_from_a_moment_on_computes_once(store):
    run = store.get_or_run("train", {}, weigh)
    assert store.get_or_run("train", {}, never, force=run.env["started"]) == run
    later = "2999-01-01T00:00:00+00:00"
    assert store.get_or_run("train", {}, lambda work: {"f1": 2}, force=later).metrics == {"f1": 2}
    cut(run.folder / "metrics.json")
    assert store.get_or_run("train", {}, weigh, force=run.env["started"]).metrics == run.metrics


# --- going on after a stop ---------------------------------------------------------------------


def test_a_failed_run_leaves_its_folder_for_the_next_attempt(store):
    def fail(work: Path) -> dict:
        (work / "scratch").mkdir()
        (work / "scratch" / "step").write_text("7")
        time.sleep(0.05)
        raise RuntimeError("no luck")

    def finish(work: Path) -> dict:
        return {"from": int((work / "scratch" / "step").read_text())}

    with pytest.raises(RuntimeError, match="no luck"):
        store.get_or_run("train", {}, fail)
    assert [path.suffix for path in store.root.iterdir() if path.name != ".locks"] == [".partial"]
    run = store.get_or_run("train", {}, finish)
    assert run.metrics == {"from": 7}
    assert run.env["sessions"] == 2
    assert run.env["seconds"] >= 0.05
    assert not (run.folder / "scratch").exists()
    assert not (run.folder / "clock.json").exists()


WALK = """
import sys, time
from pathlib import Path
from qalib.study.store import Store

def walk(work):
    # 30 steps of a chaotic map; after each the state is on the disk
    state = work / "scratch" / "state"
    state.parent.mkdir(exist_ok=True)
    step, x = eval(state.read_text()) if state.exists() else (0, 0.3)
    print("from", step, flush=True)
    for step in range(step, 30):
        x = 3.9 * x * (1 - x)
        draft = state.with_name("draft")
        draft.write_text(repr((step + 1, x)))
        draft.replace(state)
        print("step", step, flush=True)
        time.sleep(float(sys.argv[3]))
    (work / "weights.bin").write_text(x.hex())
    return {"x": x}

run = Store(Path(sys.argv[1]), None).get_or_run("walk", {"seed": int(sys.argv[2])}, walk)
print("done", run.folder, run.env["sessions"], run.env["seconds"], flush=True)
"""


def start_walk(root: Path, seed: int = 0, pause: float = 0.0) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", WALK, str(root), str(seed), str(pause)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen, line: str) -> None:
    for seen in process.stdout:
        if seen.strip() == line:
            return
    raise AssertionError(f"{line!r} never came: {process.stderr.read()}")


def test_a_run_killed_in_the_middle_ends_like_an_undisturbed_one(tmp_path):
    undisturbed, _ = start_walk(tmp_path / "calm").communicate()
    begun = time.monotonic()
    process = start_walk(tmp_path / "rough", pause=0.03)
    wait_for(process, "step 9")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    time.sleep(0.8)  # not worked, so not counted
    assert [path.suffix for path in (tmp_path / "rough").glob("walk-*")] == [".partial"]
    resumed, errors = start_walk(tmp_path / "rough").communicate()
    assert errors == ""
    assert int(resumed.split()[1]) >= 10  # it went on, it did not begin again
    name, sessions, seconds = resumed.splitlines()[-1].split()[1:]
    assert sessions == "2"
    assert 0.27 <= float(seconds) <= time.monotonic() - begun - 0.8
    calm = Path(undisturbed.splitlines()[-1].split()[1])
    assert (Path(name) / "weights.bin").read_bytes() == (calm / "weights.bin").read_bytes()
    assert Path(name).name == calm.name


def test_two_processes_cannot_compute_the_same_run_but_different_ones(tmp_path):
    process = start_walk(tmp_path, pause=0.05)
    try:
        wait_for(process, "step 0")
        store = Store(tmp_path, None)
        with pytest.raises(QalibError, match=rf"Process {process.pid} is working on the run walk-"):
            store.get_or_run("walk", {"seed": 0}, never)
        with pytest.raises(QalibError, match=f"Process {process.pid}"):
            store.drop("walk-")
        assert store.get_or_run("walk", {"seed": 1}, weigh).metrics["f1"] == 76.25
    finally:
        process.kill()
        process.communicate()
    assert store.get_or_run("walk", {"seed": 0}, weigh).metrics["f1"] == 76.25


def test_a_lock_is_for_one_at_a_time(tmp_path):
    lock = tmp_path / "deep" / "work.lock"
    with exclusive(lock, "this"):
        blocked = pytest.raises(QalibError, match=f"Process {os.getpid()} is working on this")
        with blocked, exclusive(lock, "this"):
            raise AssertionError("two holders")
    with exclusive(lock, "this"):
        assert lock.exists()


def test_a_run_stopped_before_it_got_its_name_is_not_computed_again(store):
    run = store.get_or_run("train", {}, weigh)
    partial = run.folder.with_name(f"{run.folder.name}.partial")
    run.folder.rename(partial)
    assert store.get_or_run("train", {}, never) == run


# --- damage ------------------------------------------------------------------------------------

FILES = ["config.json", "metrics.json", "env.json", "DONE.json", "weights.bin"]


def lose(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("harm", [lose, cut, flip])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_run_is_named_and_never_used(store, name, harm):
    run = store.get_or_run("train", {}, weigh)
    harm(run.folder / name)
    left = sorted(run.folder.iterdir())
    with pytest.raises(QalibError, match=rf"{run.short} is damaged.*--drop {run.short}.*--force"):
        store.get_or_run("train", {}, never)
    assert sorted(run.folder.iterdir()) == left
    assert [entry.state for entry in store.runs()] == ["damaged"]
    store.drop(run.short)
    assert store.get_or_run("train", {}, weigh).metrics == run.metrics


@pytest.mark.parametrize("text", ["[]", "{}", '{"files": {}}', '{"files": {"config.json": 1}}'])
def test_a_listing_of_the_wrong_kind_is_damage(store, text):
    run = store.get_or_run("train", {}, weigh)
    listing = text.replace("1", '1, "metrics.json": 1, "env.json": 1')
    (run.folder / "DONE.json").write_text(listing)
    with pytest.raises(QalibError, match=r"damaged.*DONE\.json"):
        store.get_or_run("train", {}, never)


def test_an_entry_under_the_wrong_name_is_not_believed(store):
    run = store.get_or_run("train", {"seed": 0}, weigh)
    other = run_key("train", {"seed": 1}, {})
    run.folder.rename(store.root / f"train-{other[:12]}")
    with pytest.raises(QalibError, match=r"config\.json"):
        store.get_or_run("train", {"seed": 1}, never)


def test_force_mends_a_damaged_run(store):
    run = store.get_or_run("train", {}, weigh)
    cut(run.folder / "metrics.json")
    assert store.get_or_run("train", {}, weigh, force=True).metrics == run.metrics
    assert store.get_or_run("train", {}, never).metrics == run.metrics


# --- a full disk -------------------------------------------------------------------------------


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def full_elsewhere(*args, **kwargs):
    raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("failure", [full, full_elsewhere])
def test_a_disk_that_fills_up_in_a_stage(store, failure):
    kept = store.get_or_run("train", {"seed": 0}, weigh)
    with pytest.raises(QalibError, match=f"No space left in {store.root}: nothing recorded was"):
        store.get_or_run("train", {"seed": 1}, failure)
    assert store.get_or_run("train", {"seed": 0}, never) == kept
    assert store.get_or_run("train", {"seed": 1}, weigh).metrics == kept.metrics


@pytest.mark.parametrize("place", ["write_text", "mkdir"])
def test_a_disk_that_fills_up_in_the_store(store, monkeypatch, place):
    store.get_or_run("train", {"seed": 0}, weigh)
    with monkeypatch.context() as patched:
        patched.setattr(Path, place, full)
        with pytest.raises(QalibError, match="No space left"):
            store.get_or_run("train", {"seed": 1}, lambda work: {})
    assert sorted(entry.state for entry in store.runs())[0] == "finished"
    assert store.get_or_run("train", {"seed": 1}, weigh).env["sessions"] >= 1


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "table.csv"
    write_whole(path, "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


# --- records -----------------------------------------------------------------------------------


def test_a_published_run_is_found_by_a_fresh_clone(store, tmp_path):
    run = store.get_or_run("train", {"seed": 0}, weigh)
    target = store.publish(run, max_bytes=900)
    assert target == store.records / run.short
    assert not (target / "weights.bin").exists()
    fresh = Store(tmp_path / "elsewhere", store.records)
    found = fresh.get_or_run("train", {"seed": 0}, never)
    assert (found.metrics, found.env, found.key) == (run.metrics, run.env, run.key)
    assert found.file("curve.csv").exists()
    with pytest.raises(QalibError, match=r"weights\.bin is not kept"):
        found.file("weights.bin")
    listed = json.loads((target / "DONE.json").read_text())["files"]
    assert listed["weights.bin"]["kept"] is False
    assert len(listed["weights.bin"]["sha256"]) == 64
    assert not fresh.root.exists()  # reading a record writes nothing
    assert store.publish(found) == target
    remade = fresh.get_or_run("train", {"seed": 0}, weigh, needs=["weights.bin"])
    assert remade.folder.parent == fresh.root
    assert store.publish(remade) == target
    assert (target / "weights.bin").exists()


def test_a_damaged_record_is_named(store, tmp_path):
    target = store.publish(store.get_or_run("train", {}, weigh))
    flip(target / "curve.csv")
    with pytest.raises(QalibError, match=r"damaged.*curve\.csv"):
        Store(tmp_path / "elsewhere", store.records).get_or_run("train", {}, never)


def test_no_folder_of_this_machine_gets_into_the_records(store):
    def tell(work: Path) -> dict:
        return {"weights": str(work / "weights.bin")}

    run = store.get_or_run("train", {}, tell)
    with pytest.raises(QalibError, match=r"metrics\.json names the folder"):
        store.publish(run)
    assert not (store.records / run.short).exists()


def test_the_notebook_runner_is_told_which_runs_were_used(store, tmp_path, monkeypatch):
    monkeypatch.setenv("QALIB_NOTES", str(tmp_path / "notes.jsonl"))
    run = store.get_or_run("train", {}, weigh)
    store.get_or_run("train", {}, never)
    lines = (tmp_path / "notes.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        ["run", run.short, "computed"],
        ["run", run.short, "found"],
    ]


# --- looking at what is there ------------------------------------------------------------------


def test_the_list_of_runs(store):
    done = store.get_or_run("train", {"seed": 0}, weigh)
    store.publish(done)
    with pytest.raises(ZeroDivisionError):
        store.get_or_run("score", {}, lambda work: {"x": 1 / 0})
    with pytest.raises(QalibError, match="score- is not finished"):
        store.get("score-")
    entries = store.runs()
    assert sorted((entry.state, entry.stage) for entry in entries) == [
        ("finished", "train"),
        ("partial", "score"),
        ("recorded", "train"),
    ]
    finished = next(entry for entry in entries if entry.state == "finished")
    assert finished.key == done.key[:12]
    assert finished.metrics["f1"] == 76.25
    assert finished.seconds == done.env["seconds"]


def test_why_a_run_was_missed(store):
    near = {"seed": 0, "model": {"layers": 6, "lr": 1e-4}}
    far = {"seed": 5, "model": {"layers": 2, "lr": 1e-3}}
    wanted = {"seed": 0, "model": {"layers": 6, "lr": 2e-4}}
    near, far, run = (
        store.get_or_run("train", config, weigh, inputs={"data": "aa"})
        for config in (near, far, wanted)
    )
    store.get_or_run("score", wanted, weigh)
    assert store.get(run.key[:8]) == run
    rows = store.why(run.key[:8])
    assert rows[0] == (near.short, "config.model.lr", 2e-4, 1e-4)
    assert {row[0] for row in rows} == {near.short, far.short}
    assert len([row for row in rows if row[0] == far.short]) == 3
    assert store.why(run.short, nearest=1) == rows[:1]


def test_what_the_command_prints(store, monkeypatch):
    monkeypatch.setattr("qalib.study.store.Store", lambda: store)
    assert command_runs() == "No runs yet."
    run = store.get_or_run("train", {"lr": 0.1}, weigh)
    assert "f1 76.25" in command_runs()
    assert run.key[:12] in command_runs()
    assert json.loads(command_runs(as_json=True))[0]["metrics"] == run.metrics
    assert command_runs(why=run.short).startswith("No other run")
    store.get_or_run("train", {"lr": 0.2}, weigh)
    assert re.search(r"config\.lr +\| +0\.1 \| +0\.2", command_runs(why=run.short))
    assert command_runs(drop=run.short) == f"Deleted {run.folder}"


def test_dropping_a_run(store):
    run = store.get_or_run("train", {"seed": 0}, weigh)
    other = store.get_or_run("train", {"seed": 1}, weigh)
    with pytest.raises(QalibError, match="begins several runs"):
        store.drop("train-")
    with pytest.raises(QalibError, match="No run begins with 'zz'"):
        store.drop("zz")
    assert store.drop(run.key) == [run.folder]
    assert [entry.key for entry in store.runs()] == [other.key[:12]]
