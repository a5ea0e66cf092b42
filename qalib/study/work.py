"""Computes one run in a working folder that outlives whatever ends the process."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from qalib.errors import QalibError
from qalib.study.entries import list_files
from qalib.study.environment import environment, peak_memory_gb
from qalib.study.files import plain, pretty, sync_tree, write_whole

UNLISTED = ("scratch", "clock.json", "DONE.json", "DONE.tmp")  # no part of what a run is


def compute_in(
    work: Path, about: dict, compute: Callable[[Path], dict], needs: Sequence[str]
) -> None:
    """Run a stage in its working folder and bring the folder to the state of being done."""
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "config.json").exists():
        write_whole(work / "config.json", pretty(about))
    with _clock(work) as clock:
        metrics = plain(compute(work), f"{about['stage']} metrics")
    if missing := [name for name in needs if not (work / name).is_file()]:
        raise QalibError(f"{about['stage']}: the run did not write {', '.join(missing)}.")
    config = about["config"]
    seed = config.get("seed") if isinstance(config, dict) else None
    env = {**environment(), **clock, "seed": seed, "peak_memory_gb": peak_memory_gb()}
    (work / "metrics.json").write_text(pretty(metrics), encoding="utf-8")
    (work / "env.json").write_text(pretty(env), encoding="utf-8")
    done = {"files": list_files(work, without=UNLISTED)}
    sync_tree(work)  # everything is safe on the disk before anything says so
    (work / "DONE.tmp").write_text(pretty(done), encoding="utf-8")
    os.replace(work / "DONE.tmp", work / "DONE.json")
    sync_tree(work)


@contextlib.contextmanager
def _clock(work: Path) -> Iterator[dict]:
    """Start and seconds of work of a run over all its sessions, also those that were killed.

    Such a session is counted up to the last file that it wrote, which is as far as its work got.
    """
    path, now = work / "clock.json", datetime.now(UTC).isoformat(timespec="seconds")
    clock = {"started": now, "seconds": 0.0, "sessions": 0}
    since = None
    with contextlib.suppress(OSError, ValueError):
        clock, since = json.loads(path.read_text(encoding="utf-8"))
    if since is not None:
        last = max(file.stat().st_mtime for file in work.rglob("*") if file != path)
        clock["seconds"] += max(0.0, last - since)
    clock["sessions"] += 1
    path.write_text(json.dumps([clock, time.time()]), encoding="utf-8")
    begun = time.monotonic()
    try:
        yield clock
    finally:
        clock["seconds"] = round(clock["seconds"] + time.monotonic() - begun, 2)
        with contextlib.suppress(OSError):  # a full disk must not hide the error that filled it
            path.write_text(json.dumps([clock, None]), encoding="utf-8")
