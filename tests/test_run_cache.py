"""The run cache: keys, stages, resuming after a kill, damage, locks, a full disk, records."""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qalib.errors import QalibError
from qalib.files import canonical, exclusive, write_atomically
from qalib.paths import ROOT
from qalib.study.provenance import command_line, environment
from qalib.study.run_cache import (
    RECORDS,
    RunCache,
    input_hashes,
    read_records,
    read_run,
    run_key,
    stage,
)

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


NOW = "2999-01-01T00:00:00+00:00"  # later than the start of every run


@dataclasses.dataclass(frozen=True)
class Settings:
    steps: int = 10
    rates: tuple[float, ...] = (0.1, 1e-5)


@pytest.fixture
def cache(tmp_path: Path) -> RunCache:
    return RunCache(tmp_path / "runs", tmp_path / "records")


def call(cache, config, function, name="train", force="", **inputs):
    """Run ``function(work)`` as a stage of the given name."""

    @stage(name)
    def toy(config, work, **inputs):
        return function(work)

    return cache.run(toy, config, inputs, force=force)


def weigh(work: Path) -> dict:
    """A toy stage that writes a weight and measures something."""
    (work / "weights.bin").write_bytes(b"w" * 1000)
    (work / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
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


def test_inputs_are_hashed_by_content(cache):
    run = call(cache, {}, weigh)
    inputs = {"weights": [run, run], "label": "a", "start": None}
    assert input_hashes(inputs) == {"weights.0": run.key, "weights.1": run.key, "label": "a"}
    with pytest.raises(QalibError, match="'data' is a int"):
        input_hashes({"data": 3})


# --- computing and finding ---------------------------------------------------------------------


def test_a_run_is_computed_once(cache):
    settings = Settings()
    first = call(cache, settings, weigh, data="aa")
    again = call(cache, {"rates": [0.1, 1e-5], "steps": 10}, never, data="aa")
    assert first == again
    assert first.metrics == {"f1": 76.25, "note": None, "parts": {"HasAns": 1}}
    assert first.config == {"steps": 10, "rates": [0.1, 1e-5]}
    assert first.inputs == {"data": "aa"}
    assert first.short == f"train-{first.key[:12]}" == first.folder.name
    assert first.file("weights.bin").read_bytes() == b"w" * 1000
    with pytest.raises(QalibError, match=r"nothing\.bin is not on this machine.*--force"):
        first.file("nothing.bin")
    assert sorted(path.name for path in first.folder.iterdir()) == [
        "DONE.json",
        "config.json",
        "env.json",
        "log.jsonl",
        "metrics.json",
        "weights.bin",
    ]


def test_the_environment_is_recorded_and_names_nobody(cache):
    env = call(cache, {"seed": 3}, weigh).env
    assert env["seed"] == 3
    assert 0.01 < env["peak_memory_gb"] < 100  # this process has numpy loaded
    assert env["packages"]["numpy"]
    assert set(env["git"]) == {"commit", "dirty"}
    text = json.dumps(env)
    for private in (str(ROOT), str(Path.home()) + "/", str(cache.root), platform.node()):
        assert private not in text or len(private) < 4  # a host may be called "a"


def test_the_command_is_told_without_absolute_paths(monkeypatch):
    words = [str(ROOT / "qalib" / "__main__.py"), "figures", "--only", "00", "/data/dev.json"]
    monkeypatch.delenv("QALIB_COMMAND", raising=False)
    monkeypatch.setattr(sys, "argv", [*words, "--output=/home/me/out.json"])
    assert command_line() == ("python -m qalib figures --only 00 dev.json --output=out.json")
    monkeypatch.setenv("QALIB_COMMAND", "python -m qalib figures")
    assert environment()["command"] == "python -m qalib figures"


def finished(cache: RunCache) -> list:
    folders = cache.root.glob("*-*")
    return [read_run(folder) for folder in folders if folder.suffix != ".partial"]


def test_metrics_must_be_finite(cache):
    with pytest.raises(QalibError, match=r"train metrics\.loss.*finite"):
        call(cache, {}, lambda work: {"loss": float("nan")})
    assert finished(cache) == []


def test_computing_can_be_forbidden(cache, monkeypatch):
    run = call(cache, {}, weigh)
    monkeypatch.setenv("QALIB_COMPUTE", "never")
    assert call(cache, {}, never) == run
    with pytest.raises(QalibError, match=r"train-.* is neither in the store nor in the records"):
        call(cache, {"seed": 1}, weigh)


def test_force_computes_from_nothing_and_keeps_the_old_run_until_then(cache):
    old = call(cache, {}, lambda work: {"f1": 1})
    (cache.root / f"{old.short}.partial").mkdir()
    (cache.root / f"{old.short}.partial" / "stale").touch()

    def fail(work: Path) -> dict:
        assert not (work / "stale").exists()
        raise RuntimeError("no luck")

    with pytest.raises(RuntimeError, match="no luck"):
        call(cache, {}, fail, force=NOW)
    assert call(cache, {}, never).metrics == {"f1": 1}
    assert call(cache, {}, lambda work: {"f1": 2}, force=NOW).metrics == {"f1": 2}
    assert call(cache, {}, never).metrics == {"f1": 2}
    assert len(finished(cache)) == 1


def test_force_from_a_moment_on_computes_once(cache):
    run = call(cache, {}, weigh)
    assert call(cache, {}, never, force=run.env["started"]) == run
    assert call(cache, {}, lambda work: {"f1": 2}, force=NOW).metrics == {"f1": 2}
    cut(run.folder / "metrics.json")
    assert call(cache, {}, weigh, force=run.env["started"]).metrics == run.metrics


# --- going on after a stop ---------------------------------------------------------------------


def test_a_failed_run_leaves_its_folder_for_the_next_attempt(cache):
    def fail(work: Path) -> dict:
        (work / "scratch").mkdir()
        (work / "scratch" / "step").write_text("7")
        raise RuntimeError("no luck")

    def finish(work: Path) -> dict:
        return {"from": int((work / "scratch" / "step").read_text())}

    with pytest.raises(RuntimeError, match="no luck"):
        call(cache, {}, fail)
    assert [path.suffix for path in cache.root.iterdir() if path.name != ".locks"] == [".partial"]
    run = call(cache, {}, finish)
    assert run.metrics == {"from": 7}
    assert not (run.folder / "scratch").exists()


WALK = """
import sys, time
from pathlib import Path
from qalib.study.run_cache import RunCache, stage

@stage("walk")
def walk(config, work):
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
        if step == int(sys.argv[3]):
            time.sleep(float(sys.argv[4]))
    (work / "weights.bin").write_text(x.hex())
    return {"x": x}

run = RunCache(Path(sys.argv[1]), None).run(walk, {"seed": int(sys.argv[2])})
print("done", run.folder, run.env["seconds"], flush=True)
"""


def start_walk(root: Path, stop: int = -1, pause: float = 600) -> subprocess.Popen:
    """A process that computes the run of seed 0 and stops for ``pause`` seconds at a step."""
    return subprocess.Popen(
        [sys.executable, "-c", WALK, str(root), "0", str(stop), str(pause)],
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
    process = start_walk(tmp_path / "rough", stop=9)
    wait_for(process, "step 9")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [path.suffix for path in (tmp_path / "rough").glob("walk-*")] == [".partial"]
    resumed, errors = start_walk(tmp_path / "rough").communicate()
    assert errors == ""
    assert int(resumed.split()[1]) == 10  # it went on, it did not begin again
    calm, rough = (Path(said.splitlines()[-1].split()[1]) for said in (undisturbed, resumed))
    assert (rough / "weights.bin").read_bytes() == (calm / "weights.bin").read_bytes()
    assert rough.name == calm.name


def test_two_processes_cannot_compute_the_same_run_but_different_ones(tmp_path):
    process = start_walk(tmp_path, stop=0)
    try:
        wait_for(process, "step 0")
        cache = RunCache(tmp_path, None)
        with pytest.raises(QalibError, match=rf"Process {process.pid} is working on the run walk-"):
            call(cache, {"seed": 0}, never, name="walk")
        assert call(cache, {"seed": 1}, weigh, name="walk").metrics["f1"] == 76.25
    finally:
        process.kill()
        process.communicate()
    assert call(cache, {"seed": 0}, weigh, name="walk").metrics["f1"] == 76.25


def test_a_process_may_wait_for_a_run_that_another_one_computes(tmp_path, monkeypatch):
    monkeypatch.setenv("QALIB_WAIT", "60")
    process = start_walk(tmp_path, stop=0, pause=1)
    wait_for(process, "step 0")
    run = call(RunCache(tmp_path, None), {"seed": 0}, never, name="walk")
    assert process.wait(60) == 0
    assert run.file("weights.bin").exists()


def test_a_run_stopped_before_it_got_its_name_is_not_computed_again(cache):
    run = call(cache, {}, weigh)
    partial = run.folder.with_name(f"{run.folder.name}.partial")
    run.folder.rename(partial)
    assert call(cache, {}, never) == run


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
def test_a_damaged_run_is_named_and_never_used(cache, name, harm):
    run = call(cache, {}, weigh)
    harm(run.folder / name)
    left = sorted(run.folder.iterdir())
    with pytest.raises(QalibError, match=rf"{run.short} is damaged.*remove its folder.*--force"):
        call(cache, {}, never)
    assert sorted(run.folder.iterdir()) == left
    shutil.rmtree(run.folder)
    assert call(cache, {}, weigh).metrics == run.metrics


def test_an_entry_under_the_wrong_name_is_not_believed(cache):
    run = call(cache, {"seed": 0}, weigh)
    other = run_key("train", {"seed": 1}, {})
    run.folder.rename(cache.root / f"train-{other[:12]}")
    with pytest.raises(QalibError, match=r"config\.json"):
        call(cache, {"seed": 1}, never)


def test_force_mends_a_damaged_run(cache):
    run = call(cache, {}, weigh)
    cut(run.folder / "metrics.json")
    assert call(cache, {}, weigh, force=NOW).metrics == run.metrics
    assert call(cache, {}, never).metrics == run.metrics


# --- a full disk -------------------------------------------------------------------------------


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def full_elsewhere(*args, **kwargs):
    raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("failure", [full, full_elsewhere])
def test_a_disk_that_fills_up_in_a_stage(cache, failure):
    kept = call(cache, {"seed": 0}, weigh)
    with pytest.raises(QalibError, match=f"No space left in {cache.root}: nothing recorded was"):
        call(cache, {"seed": 1}, failure)
    assert call(cache, {"seed": 0}, never) == kept
    assert call(cache, {"seed": 1}, weigh).metrics == kept.metrics


@pytest.mark.parametrize("place", ["write_text", "mkdir"])
def test_a_disk_that_fills_up_in_the_store(cache, monkeypatch, place):
    call(cache, {"seed": 0}, weigh)
    with monkeypatch.context() as patched:
        patched.setattr(Path, place, full)
        with pytest.raises(QalibError, match="No space left"):
            call(cache, {"seed": 1}, lambda work: {})
    assert len(finished(cache)) == 1
    assert call(cache, {"seed": 1}, weigh).metrics["f1"] == 76.25


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "table.csv"
    write_atomically(path, "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


# --- records -----------------------------------------------------------------------------------


def test_a_published_run_is_found_by_a_fresh_clone(cache, tmp_path):
    run = call(cache, {"seed": 0}, weigh)
    cache.publish(run, ["*.jsonl"])
    assert sorted(path.name for path in cache.records.iterdir()) == ["train.jsonl", "train.zip"]
    fresh = RunCache(tmp_path / "elsewhere", cache.records)
    found = call(fresh, {"seed": 0}, never)
    assert (found.metrics, found.env, found.key) == (run.metrics, run.env, run.key)
    assert not fresh.root.exists()  # finding a record writes nothing
    assert found.file("log.jsonl").read_text() == run.file("log.jsonl").read_text()
    assert found.log()["loss"].tolist() == [0.5]
    with pytest.raises(QalibError, match=r"weights\.bin is not on this machine"):
        found.file("weights.bin")
    assert len(found.files["weights.bin"]["sha256"]) == 64
    assert fresh.get(run.key) == found
    again = call(fresh, {"seed": 0}, weigh, force=NOW)
    assert again.folder.parent == fresh.root


def test_publishing_again_changes_nothing_and_other_runs_stay(cache):
    first, second = (call(cache, {"seed": seed}, weigh) for seed in (0, 1))
    cache.publish(first, ["*.jsonl"])
    cache.publish(second, ["*.jsonl"])
    before = {path.name: path.read_bytes() for path in cache.records.iterdir()}
    cache.publish(first, ["*.jsonl"])
    assert {path.name: path.read_bytes() for path in cache.records.iterdir()} == before
    assert len((cache.records / "train.jsonl").read_text().splitlines()) == 2


def test_a_recomputed_run_has_its_new_files_where_the_old_ones_were_unpacked(cache, tmp_path):
    texts = iter(["old", "new"])

    def write(work: Path) -> dict:
        (work / "log.jsonl").write_text(text := next(texts))
        (work / f"{text}.jsonl").write_text(text)
        return {}

    cache.publish(call(cache, {}, write), ["*.jsonl"])
    fresh = RunCache(tmp_path / "elsewhere", cache.records)
    assert call(fresh, {}, never).file("log.jsonl").read_text() == "old"
    cache.publish(call(cache, {}, write, force=NOW), ["*.jsonl"])
    assert call(fresh, {}, never).file("log.jsonl").read_text() == "new"
    with pytest.raises(QalibError, match=r"old\.jsonl is not on this machine"):
        call(fresh, {}, never).file("old.jsonl")


def test_a_damaged_record_is_named(cache, tmp_path):
    run = call(cache, {}, weigh)
    cache.publish(run, ["*.jsonl"])
    path = cache.records / "train.jsonl"
    text = path.read_text()
    fresh = RunCache(tmp_path / "elsewhere", cache.records)
    for number, wrong in enumerate(('"version":2', '"version":1,"f1":100')):
        path.write_text(text.replace('"version":1', wrong))
        os.utime(path, ns=(number, number))
        with pytest.raises(QalibError, match=r"train\.jsonl, line 1: is damaged"):
            call(fresh, {}, never)
    path.write_text(text)
    archive = path.with_suffix(".zip")
    archive.write_bytes(archive.read_bytes().replace(b"PK", b"KP"))
    with pytest.raises(QalibError, match=r"train\.zip: .*log\.jsonl is damaged"):
        call(fresh, {}, never).file("log.jsonl")


def test_no_folder_of_this_machine_gets_into_the_records(cache):
    def leak(work: Path) -> dict:
        (work / "log.jsonl").write_text(str(work / "weights.bin"))
        return {}

    run = call(cache, {}, leak)
    with pytest.raises(QalibError, match=r"log\.jsonl contains the path"):
        cache.publish(run, ["*"])
    assert not cache.records.exists()


def test_the_notebook_runner_is_told_which_runs_were_used(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("QALIB_NOTES", str(tmp_path / "notes.jsonl"))
    run = call(cache, {}, weigh)
    call(cache, {}, never)
    lines = (tmp_path / "notes.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        ["run", run.short, None],
        ["run", run.short, None],
    ]


# --- finding --------------------------------------------------------------


def test_a_run_is_found_by_its_key(cache, tmp_path):
    done = call(cache, {"seed": 0}, weigh)
    with pytest.raises(ZeroDivisionError):
        call(cache, {}, lambda work: {"x": 1 / 0}, name="score")
    with pytest.raises(QalibError, match="no finished run with the key score"):
        cache.get("score")
    assert finished(cache) == [done] == [cache.get(done.key)]
    cache.publish(done, [])
    assert cache.get(done.key).archive is None  # the store has files that records have not
    recorded = RunCache(tmp_path / "elsewhere", cache.records).get(done.key)
    assert recorded.archive
    assert recorded.metrics == done.metrics


# --- the committed records ----------------------------------------------------------------------


def test_the_committed_records_are_few_small_and_whole():
    files = [path for path in RECORDS.iterdir() if path.is_file()]
    assert [path for path in RECORDS.iterdir() if path.is_dir()] == []
    assert len(files) <= 60
    assert sum(path.stat().st_size for path in files) <= 15_000_000
    for path in sorted(RECORDS.glob("*.jsonl")):
        runs = read_records(path)  # checks every key
        with (
            zipfile.ZipFile(path.with_suffix(".zip"))
            if path.with_suffix(".zip").is_file()
            else contextlib.nullcontext() as archive
        ):
            for name in archive.namelist() if archive else ():
                key, _, file = name.partition("/")
                [run] = [run for run in runs.values() if run.key.startswith(key)]
                content = hashlib.sha256(archive.read(name)).hexdigest()
                assert content == run.files[file]["sha256"], f"{path.stem}: {name}"


def test_every_input_of_a_recorded_run_is_recorded():
    runs = [run for path in sorted(RECORDS.glob("*.jsonl")) for run in read_records(path).values()]
    keys = {run.key for run in runs}
    for run in runs:
        for name, value in run.inputs.items():
            published = (
                name == "start" and run.config.get("start") == "shipped"
            )  # a checkpoint's hash
            if name.partition(".")[0] in ("weights", "start", "teachers") and not published:
                assert value in keys, f"{run.short}: {name}"


def test_an_older_run_does_not_replace_a_newer_record(cache, tmp_path):
    values = iter([1.0, 2.0])

    def measure(work: Path) -> dict:
        return {"value": next(values)}

    old = call(cache, {}, measure)
    other = RunCache(tmp_path / "other", cache.records)
    new = dataclasses.replace(call(other, {}, measure), env={**old.env, "started": NOW})
    other.publish(new, [])
    cache.publish(old, [])
    assert call(RunCache(tmp_path / "fresh", cache.records), {}, never).metrics == {"value": 2.0}


def test_two_stores_publish_to_the_same_records_one_at_a_time(cache, tmp_path):
    run = call(cache, {}, weigh)
    other = RunCache(tmp_path / "other", cache.records)
    lock = cache.records.with_name(".records.lock")
    ready = threading.Event()

    def hold() -> None:
        with exclusive(lock, "the records"):
            ready.set()
            time.sleep(0.3)
            assert not cache.records.exists()

    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(hold)
        ready.wait()
        other.publish(run, ["*.jsonl"])
        held.result()
    assert sorted(path.name for path in cache.records.iterdir()) == ["train.jsonl", "train.zip"]


@pytest.mark.parametrize("name", ["train.jsonl", "train.zip"])
def test_nothing_is_added_to_damaged_records(cache, name):
    first, second = (call(cache, {"seed": seed}, weigh) for seed in (0, 1))
    cache.publish(first, ["*.jsonl"])
    path = cache.records / name
    path.write_bytes(b"<<<<<<< HEAD" + path.read_bytes()[20:])
    with pytest.raises(QalibError, match=rf"{re.escape(name)}.* is damaged"):
        cache.publish(second, ["*.jsonl"])


def test_a_stage_cannot_replace_the_request_of_its_run(cache):
    def careless(work: Path) -> dict:
        (work / "config.json").write_text("{}")
        return {}

    with pytest.raises(QalibError, match=r"train: a stage must not write config\.json"):
        call(cache, {}, careless)


def test_a_run_may_have_no_settings_and_keeps_no_draft_of_a_killed_attempt(cache):
    def write(work: Path) -> dict:
        (work / ".metrics.json.12.tmp").touch()
        (work / "weights.safetensors.partial").touch()
        return {}

    run = call(cache, None, write)
    assert run.env["seed"] is None
    assert set(run.files) == {"config.json", "metrics.json", "env.json"}


def test_another_version_of_a_stage_is_another_run(cache, tmp_path):
    def declared(version, function):
        return stage("train", version)(lambda config, work: function(work))

    old = cache.run(declared(1, weigh), {})
    new = cache.run(declared(2, lambda work: {"f1": 80.0}), {})
    assert (new.metrics, new.version) == ({"f1": 80.0}, 2)
    for run in (old, new):
        cache.publish(run, [])
    for found in (cache, RunCache(tmp_path / "fresh", cache.records)):
        assert found.run(declared(1, never), {}).metrics == old.metrics
        assert found.run(declared(2, never), {}).metrics == new.metrics
