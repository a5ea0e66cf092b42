"""The run cache: a result that was computed once is not computed again from the same inputs.

A *stage* is a function ``f(config, work, **inputs)`` that writes files into the folder ``work``
and returns metrics. A *run* is one call of it, addressed by the SHA-256 of stage name, version,
configuration and inputs (not code, order of questions, or offsets of answers). Runs are kept in two
places:

    runs/<stage>-<key>/           the store of this machine: config.json, metrics.json, env.json,
                                  the files of the stage, and DONE.json with their hashes
    data/results/<stage>.jsonl    the committed records: one run per line
    data/results/<stage>.zip      the published files of recorded runs, as <key>/<name>

While a run is computed, its folder's name ends in ``.partial``. The folder survives if the process
is killed, so training resumes from its checkpoints; it is renamed once every file is on disk.
"""

import fnmatch
import functools
import hashlib
import io
import json
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from qalib.data.schema import Dataset, file_sha256
from qalib.errors import QalibError
from qalib.files import (
    canonical,
    exclusive,
    log_usage,
    pretty,
    replace_dir,
    sync_tree,
    to_json_data,
    translate_os_errors,
    write_atomically,
)
from qalib.paths import ROOT, store_dir
from qalib.settings import build
from qalib.study.provenance import environment, peak_memory_gb

RECORDS = ROOT / "data" / "results"
HASHED_ON_READ = 50_000_000  # bytes; of larger files only the size is checked
SHORT = 12  # hexadecimal digits of the key in a folder's name
OWN_FILES = ("config.json", "metrics.json", "env.json")
ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # equal contents give equal archives


class Stage(NamedTuple):
    """What ``@stage`` attaches to a function: name and version in keys, and files to publish."""

    name: str
    version: int
    publish: tuple[str, ...]


def stage(
    name: str, version: int = 1, publish: Sequence[str] = ("log.jsonl",)
) -> Callable[[Callable], Callable]:
    """Declare ``f(config, work, **inputs) -> metrics`` to be a stage that ``Study.run`` caches.

    version: increase it when a change of the code changes the results
    publish: name patterns of the files that are copied to the records

    Files in ``work/scratch`` (checkpoints) are removed when the run is finished.
    """

    def declare(function: Callable) -> Callable:
        function.stage = Stage(name, version, tuple(publish))
        return function

    return declare


@dataclass(frozen=True)
class Run:
    """A finished run. ``archive``: the zip file of a recorded run; None for one in the store."""

    stage: str
    key: str
    config: dict
    inputs: dict
    metrics: dict
    env: dict
    folder: Path
    files: dict[str, dict] = field(default_factory=dict, repr=False)
    archive: Path | None = None
    version: int = 1  # of the stage

    @property
    def short(self) -> str:
        """The name of the run's folder: the stage and the first twelve digits of the key."""
        return short_name(self.stage, self.key)

    def settings(self, kind: type):
        """The configuration of the run, as an instance of its settings class ``kind``."""
        return build(self.config, kind, f"{self.short}: config")

    def file(self, name: str) -> Path:
        """The path of a file of the run; a published one is unpacked and checked if necessary.

        Raises QalibError if the file is not on this machine or is damaged in the archive.
        """
        path = self.folder / name
        known = self.files.get(name, {}).get("sha256")  # a recomputed run has other files
        if self.archive and known and not (path.is_file() and file_sha256(path) == known):
            self._unpack(name, path)
        if not path.is_file():
            raise QalibError(
                f"{self.short}: {name} is not on this machine, only its hash was recorded; "
                "compute the run again (a notebook: --force)."
            )
        return path

    def _unpack(self, name: str, path: Path) -> None:
        try:
            with zipfile.ZipFile(self.archive) as archive:
                content = archive.read(f"{self.key[:SHORT]}/{name}")
        except (FileNotFoundError, KeyError):  # the file was not published
            return
        except Exception:  # a damaged archive can raise anything
            content = b""
        if hashlib.sha256(content).hexdigest() != self.files[name]["sha256"]:
            raise QalibError(
                f"{self.archive}: {self.key[:SHORT]}/{name} is damaged (its SHA-256 differs); "
                "restore the archive from git."
            )
        write_atomically(path, content)

    def log(self):
        """The training log as a DataFrame: one row per logged step and per epoch."""
        import pandas as pd

        lines = self.file("log.jsonl").read_text(encoding="utf-8").splitlines()
        return pd.DataFrame([json.loads(line) for line in lines])


def run_key(stage: str, config: object, inputs: Mapping[str, str], version: int = 1) -> str:
    """SHA-256 of the canonical JSON of stage, version, configuration and inputs."""
    request = {"stage": stage, "version": version, "config": config, "inputs": dict(inputs)}
    return hashlib.sha256(canonical(request, stage).encode()).hexdigest()


def short_name(stage: str, key: str) -> str:
    """The folder name of a run."""
    return f"{stage}-{key[:SHORT]}"


def input_hashes(inputs: Mapping[str, object]) -> dict[str, str]:
    """The text that represents each input in a key; None is omitted, list items are numbered."""
    hashes: dict[str, str] = {}
    for name, value in inputs.items():
        if isinstance(value, list | tuple):
            hashes |= input_hashes({f"{name}.{i}": item for i, item in enumerate(value)})
        elif isinstance(value, Run):
            hashes[name] = value.key
        elif isinstance(value, Dataset):
            hashes[name] = value.content_sha256
        elif isinstance(value, str):
            hashes[name] = value
        elif value is not None:
            raise QalibError(
                f"the input {name!r} is a {type(value).__name__}; give a Dataset, a Run or a text."
            )
    return hashes


class RunCache:
    """Finds runs by stage, configuration and inputs, and computes missing ones."""

    def __init__(self, root: Path | None = None, records: Path | None = RECORDS):
        self.root = Path(root) if root else store_dir()
        self.records = Path(records) if records else None

    def run(
        self,
        function: Callable,
        config: object,
        inputs: Mapping[str, object] | None = None,
        *,
        force: str = "",
    ) -> Run:
        """The run of a stage with this configuration and these inputs, found or computed.

        function: declared with ``@stage``

        force: a UTC time in ISO format; runs that started before it are computed again, and an old
        run stays until its replacement is finished.

        Raises QalibError for a damaged run, one that another process is computing, a full disk,
        metrics that are not finite, and a missing run if QALIB_COMPUTE is "never".
        """
        inputs, stage = dict(inputs or {}), function.stage
        hashes = input_hashes(inputs)
        key = run_key(stage.name, config, hashes, stage.version)
        request = {"stage": stage.name, "key": key, "version": stage.version}
        request = to_json_data({**request, "config": config, "inputs": hashes}, stage.name)
        name = short_name(stage.name, key)
        run = self._find(stage.name, key, force)
        if run is None and os.environ.get("QALIB_COMPUTE") == "never":
            raise QalibError(
                f"{name} is neither in the store nor in the records, and QALIB_COMPUTE is "
                "'never'; unset it to compute the run."
            )
        if run is None:
            final, work = self.root / name, self.root / f"{name}.partial"
            lock = self.root / ".locks" / f"{name}.lock"
            wait = float(os.environ.get("QALIB_WAIT") or 0)  # seconds, for another process
            with translate_os_errors(self.root), exclusive(lock, f"the run {name}", wait):
                if (work / "DONE.json").exists():  # complete, but not renamed yet
                    _finish(work, final)
                run = self._find(stage.name, key, force)  # another process may have finished it
                if run is None:
                    if force:
                        shutil.rmtree(work, ignore_errors=True)
                    _compute(work, request, lambda: function(config, work, **inputs))
                    _finish(work, final)
                    run = read_run(final, key)
        log_usage("run", name)
        return run

    def _find(self, stage: str, key: str, force: str) -> Run | None:
        folder = self.root / short_name(stage, key)
        try:
            run = read_run(folder, key) if folder.is_dir() else self._recorded(stage).get(key)
        except QalibError:
            if force:  # the damaged run is about to be replaced
                return None
            raise
        return run if run and run.env["started"] >= force else None

    def _recorded(self, stage: str) -> dict[str, Run]:
        return read_records(self.records / f"{stage}.jsonl", self.root) if self.records else {}

    def get(self, key: str) -> Run:
        """The finished run with this key. Raises QalibError if there is none."""
        for folder in self.root.glob(f"*-{key[:SHORT]}"):  # the store has all files
            return read_run(folder, key)
        for path in self.records.glob("*.jsonl") if self.records else ():
            if key in (recorded := self._recorded(path.stem)):
                return recorded[key]
        raise QalibError(f"there is no finished run with the key {key}.")

    def publish(self, run: Run, patterns: Sequence[str]) -> None:
        """Add a run of the store to the records, with its files that match one of ``patterns``.

        Other files are only listed with their hashes. Raises QalibError if a published file
        contains the path of the project, the store or the home folder.
        """
        if self.records is None or run.archive:
            return
        kept = {
            name: run.file(name).read_bytes()
            for name in run.files
            if name not in OWN_FILES and any(fnmatch.fnmatch(name, p) for p in patterns)
        }
        for name, content in kept.items():
            for private in (ROOT, self.root.resolve(), Path.home()):
                if private.name and f"{private}{os.sep}".encode() in content:
                    raise QalibError(
                        f"{run.short}: {name} contains the path {private}, which exists on this "
                        "machine only; let the stage write relative paths."
                    )
        lock = self.records.with_name(f".{self.records.name}.lock")  # several stores may publish
        with translate_os_errors(self.records), exclusive(lock, str(self.records), 60):
            write_record(self.records, run, kept)


def _compute(work: Path, request: dict, compute: Callable[[], dict]) -> None:
    """Compute a run in its working folder, and write all of its files to disk."""
    work.mkdir(parents=True, exist_ok=True)
    write_atomically(work / "config.json", pretty(request))
    started, begin = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    config, metrics = request["config"], to_json_data(compute(), f"{request['stage']} metrics")
    if (work / "config.json").read_text(encoding="utf-8") != pretty(request):
        raise QalibError(f"{request['stage']}: a stage must not write config.json; use a folder.")
    env = {
        **environment(),
        "started": started,  # start of the process that finished the run
        "seconds": round(time.monotonic() - begin, 2),
        "seed": config.get("seed") if isinstance(config, dict) else None,
        "peak_memory_gb": peak_memory_gb(),
    }
    (work / "metrics.json").write_text(pretty(metrics), encoding="utf-8")
    (work / "env.json").write_text(pretty(env), encoding="utf-8")
    files = list_files(work)
    sync_tree(work)  # everything is on disk before DONE.json says so
    write_atomically(work / "DONE.json", pretty({"files": files}))


def _finish(work: Path, final: Path) -> None:
    replace_dir(work, final)
    shutil.rmtree(final / "scratch", ignore_errors=True)


def read_run(folder: Path, key: str = "") -> Run:
    """Read a finished run from its folder and check every file.

    Raises QalibError naming run, file and remedy if anything is missing or has changed, or if the
    run does not have the key ``key``.
    """

    def read(name: str) -> dict:
        return json.loads((folder / name).read_text(encoding="utf-8"))

    name = "DONE.json"
    try:
        files = read(name)["files"]
        for name in dict.fromkeys((*OWN_FILES, *files)):
            size, expected = (folder / name).stat().st_size, files[name]
            small = size <= HASHED_ON_READ
            if size != expected["size"] or (
                small and file_sha256(folder / name) != expected["sha256"]
            ):
                raise ValueError
        name = "config.json"
        request, metrics, env = map(read, OWN_FILES)
        stage, config, inputs = (request[field] for field in ("stage", "config", "inputs"))
        found = run_key(stage, config, inputs, request["version"])
        if found != request["key"] or key not in ("", found):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise QalibError(
            f"The run {folder.name} is damaged: {folder / name} is missing or has changed since it "
            "was written; remove its folder, or compute it again with --force."
        ) from None
    return Run(stage, found, config, inputs, metrics, env, folder, files, None, request["version"])


def list_files(folder: Path) -> dict[str, dict]:
    """SHA-256 and size of every file of a run, by relative path."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {
        name: {"sha256": file_sha256(path), "size": path.stat().st_size}
        for name, path in names.items()
        if name.split("/")[0] not in ("scratch", "DONE.json")  # not part of the result
        and not name.endswith((".tmp", ".partial"))  # left by a killed attempt
    }


# --- the records ----------------------------------------------------------------------------------


def read_records(path: Path, root: Path | None = None) -> dict[str, Run]:
    """The recorded runs of one stage, by key. Raises QalibError naming a damaged line."""
    if not path.is_file():
        return {}
    return _read_records(path, path.stat().st_mtime_ns, Path(root) if root else store_dir())


@functools.lru_cache(maxsize=64)
def _read_records(path: Path, _changed: int, root: Path) -> dict[str, Run]:
    runs = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            row = json.loads(line)
            whole = row.pop("sha256") == _sha256(row)
            key = run_key(path.stem, row["config"], row["inputs"], row["version"])
            columns = [row[name] for name in ("config", "inputs", "metrics", "env")]
            files = row["files"]
        except (AttributeError, ValueError, KeyError, TypeError, RecursionError, QalibError):
            whole = False
        if not whole or key != row["key"]:
            raise QalibError(f"{path}, line {number}: is damaged; restore the file from git.")
        folder = root / ".records" / short_name(path.stem, key)
        archive = path.with_suffix(".zip")
        runs[key] = Run(path.stem, key, *columns, folder, files, archive, row["version"])
    return runs


def write_record(records: Path, run: Run, kept: Mapping[str, bytes]) -> None:
    """Write a run's line and its files ``kept``, by name, to the records of its stage.

    A record of the same run that was started later stays. Raises QalibError for damaged records.
    """
    path = records / f"{run.stage}.jsonl"
    known = read_records(path)
    if run.key in known and known[run.key].env["started"] > run.env["started"]:
        return
    lines = path.read_text(encoding="utf-8").splitlines() if known else []
    rows = dict(zip(known, lines, strict=True))
    names = ("key", "version", "config", "inputs", "metrics", "env")
    row = {name: getattr(run, name) for name in names}
    row["files"] = {name: entry for name, entry in run.files.items() if name not in OWN_FILES}
    rows[run.key] = canonical({**row, "sha256": _sha256(row)}, run.short)
    records.mkdir(parents=True, exist_ok=True)
    if kept:
        _write_archive(path.with_suffix(".zip"), run.key[:SHORT], kept)
    write_atomically(path, "".join(f"{rows[key]}\n" for key in sorted(rows)))


def _sha256(row: object) -> str:
    return hashlib.sha256(canonical(row).encode()).hexdigest()


def _write_archive(path: Path, prefix: str, kept: Mapping[str, bytes]) -> None:
    contents = {}
    try:
        if path.is_file():
            with zipfile.ZipFile(path) as archive:
                contents = {name: archive.read(name) for name in archive.namelist()}
    except Exception:  # a damaged archive can raise anything
        raise QalibError(f"{path}: is damaged; restore the file from git.") from None
    new = {f"{prefix}/{name}": content for name, content in kept.items()}
    if new.items() <= contents.items():
        return
    with zipfile.ZipFile(packed := io.BytesIO(), "w") as archive:
        for name, content in sorted((contents | new).items()):
            entry = zipfile.ZipInfo(name, ZIP_DATE)
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED, compresslevel=9)
    write_atomically(path, packed.getvalue())
