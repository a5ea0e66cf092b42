"""Content-addressed runs: what was computed once with the same inputs is never computed again.

A run is a folder ``<stage>-<key>`` whose key is the SHA-256 of stage, version, configuration and
inputs. While it is being computed the folder ends in ``.partial`` and survives any kind of
death, so that a training run finds its own checkpoints there and goes on; it gets its name only
when everything in it is on the disk and listed, with hashes, in DONE.json. Runs lie in the store
(``runs/``); the small files of those worth sharing are published to ``data/results/``, where a
fresh clone finds them.
"""

import contextlib
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from os import sep
from pathlib import Path

from qalib.errors import QalibError
from qalib.paths import ROOT, store_dir
from qalib.study.entries import (
    SHORT,
    Run,
    differences,
    read_json,
    read_run,
    run_key,
    short_name,
    split_name,
)
from qalib.study.files import exclusive, note, plain, pretty, swap_in, sync_tree, trouble_named
from qalib.study.work import compute_in

RECORDS = ROOT / "data" / "results"


@dataclass(frozen=True)
class Entry:
    """One line of the list of runs. ``state``: finished, recorded, partial or damaged."""

    state: str
    stage: str
    key: str  # its first twelve digits, as in the folder's name
    when: str
    seconds: float | None
    metrics: dict
    folder: Path


class Store:
    """Finds runs by what they are made of, and makes the missing ones."""

    def __init__(self, root: Path | None = None, records: Path | None = RECORDS):
        self.root = Path(root) if root else store_dir()
        self.records = Path(records) if records else None

    def get_or_run(
        self,
        stage: str,
        config: object,
        compute: Callable[[Path], dict],
        *,
        inputs: Mapping[str, str] | None = None,
        version: int = 1,
        needs: Sequence[str] = (),
        force: bool | str = False,
    ) -> Run:
        """The run of ``stage`` with this configuration: found, or computed and kept.

        ``config``  plain data or a frozen dataclass; all that the result depends on
        ``inputs``  content hashes of data, keys of the runs it builds on
        ``version`` raise it when the stage's code changes what comes out
        ``needs``   files that must really be there; a record without them does not count
        ``force``   compute from nothing; the old run stays until the new one is finished. A moment
                    (ISO time, UTC) instead of True lets a run begun since then count

        ``compute(work)`` writes its files into the folder ``work`` and returns its metrics
        (numbers, None, texts and lists or dictionaries of them). Whatever an interrupted attempt
        left in ``work`` is still there on the next call; what lies under ``work/scratch``, such
        as checkpoints, goes away when the run is finished.

        Raises QalibError for a damaged entry, a run that another process is computing, a full
        disk and metrics that are not finite.
        """
        if not re.fullmatch(r"\w[\w-]*", stage, re.ASCII):
            raise QalibError(f"The stage {stage!r} must be named by letters, digits, - and _.")
        inputs = dict(inputs or {})
        key = run_key(stage, config, inputs, version)
        about = {"stage": stage, "key": key, "version": version, "config": config}
        about = plain({**about, "inputs": inputs}, stage)
        if run := self._known(about, needs, force):
            note("run", run.short, "found")
            return run
        final = self.root / short_name(stage, key)
        work = self.root / f"{final.name}.partial"
        with trouble_named(self.root), self._alone(final.name):
            if (work / "DONE.json").exists():  # finished, but stopped short of getting its name
                self._finish(work, final)
            if run := self._known(about, needs, force):
                return run  # another process has just finished it
            if force:
                shutil.rmtree(work, ignore_errors=True)
            compute_in(work, about, compute, needs)
            self._finish(work, final)
        note("run", final.name, "computed")
        return read_run(final, key)

    def _finish(self, work: Path, final: Path) -> None:
        swap_in(work, final)
        shutil.rmtree(final / "scratch", ignore_errors=True)
        (final / "clock.json").unlink(missing_ok=True)

    def _known(self, about: dict, needs: Sequence[str], force: bool | str) -> Run | None:
        if force is True:
            return None
        try:
            run = self._find(about, needs)
        except QalibError:
            if force:  # what is damaged is about to be replaced
                return None
            raise
        return run if run and (not force or run.env["started"] >= force) else None

    def _find(self, about: dict, needs: Sequence[str]) -> Run | None:
        for place in self._places():
            folder = place / short_name(about["stage"], about["key"])
            if not folder.is_dir():
                continue
            run = read_run(folder, about["key"])
            missing = [name for name in needs if not (folder / name).is_file()]
            if not missing:
                return run
            if place == self.root:
                raise QalibError(
                    f"{run.short}: {folder} was finished without {', '.join(missing)}; "
                    "run the same command with --force to make it again."
                )
        return None

    def get(self, key: str) -> Run:
        """The finished run whose name or key begins so. Raises QalibError if there is none."""
        folders = [folder for folder in self._named(key) if folder.suffix != ".partial"]
        if not folders:
            raise QalibError(f"The run {key} is not finished; repeat its command to go on.")
        return read_run(folders[0])

    def publish(self, run: Run, max_bytes: int = 2_000_000) -> Path:
        """Copy a run, without files over ``max_bytes``, to the records. Returns the new folder.

        What is left out stays listed in DONE.json with its hash. Raises QalibError if a file
        would carry a folder of this machine into the records.
        """
        if self.records is None:
            raise QalibError("This store has no folder for records; name one to publish to.")
        target = self.records / run.short
        if run.folder.resolve() == target.resolve():
            return target
        files = read_json(run.folder, "DONE.json")["files"]
        kept = [name for name, entry in files.items() if entry["size"] <= max_bytes]
        listing = {name: {**entry, "kept": name in kept} for name, entry in files.items()}
        draft = self.records / f"{run.short}.partial"
        with trouble_named(self.root), self._alone(run.short):
            shutil.rmtree(draft, ignore_errors=True)
            for name in kept:
                content = run.file(name).read_bytes()
                self._refuse_private_paths(f"{run.short}: {name}", content)
                (draft / name).parent.mkdir(parents=True, exist_ok=True)
                (draft / name).write_bytes(content)
            (draft / "DONE.json").write_text(pretty({"files": listing}), encoding="utf-8")
            sync_tree(draft)
            swap_in(draft, target)
        return target

    def _refuse_private_paths(self, place: str, content: bytes) -> None:
        for private in (ROOT, self.root.resolve(), Path.home()):
            if f"{private}{sep}".encode() in content:
                raise QalibError(
                    f"{place} names the folder {private}, which means nothing on another "
                    "machine; let the stage write relative paths."
                )

    def runs(self) -> list[Entry]:
        """Every run in the store and in the records, the newest first."""
        entries = [self._entry(folder) for folder in self._all_folders()]
        return sorted(entries, key=lambda entry: entry.when, reverse=True)

    def _entry(self, folder: Path) -> Entry:
        state, seconds, metrics = "partial", None, {}
        when = datetime.fromtimestamp(folder.stat().st_mtime, UTC).isoformat(timespec="seconds")
        if folder.suffix != ".partial":
            try:
                run = read_run(folder)
                state = "finished" if folder.parent == self.root else "recorded"
                when, seconds, metrics = run.env["started"], run.env["seconds"], run.metrics
            except QalibError:
                state = "damaged"
        return Entry(state, *split_name(folder), when, seconds, metrics, folder)

    def why(self, key: str, nearest: int = 3) -> list[tuple[str, str, object, object]]:
        """Why a run was not found: how it differs from the most similar runs of its stage.

        ``key`` is the beginning of a key, with or without the stage's name. Returns rows (other
        run, dotted field, value here, value there). Raises QalibError if no run, or more than
        one, begins so.
        """
        folder = self._named(key)[0]
        stage, own = split_name(folder)
        here, others = read_json(folder, "config.json"), {}
        for other in self._all_folders():
            if split_name(other)[0] == stage and split_name(other)[1] != own:
                with contextlib.suppress(QalibError):  # a damaged neighbour explains nothing
                    name = other.name.removesuffix(".partial")
                    others[name] = differences(here, read_json(other, "config.json"))
        ranked = sorted(others.items(), key=lambda item: len(item[1]))[:nearest]
        return [(name, *row) for name, rows in ranked for row in rows]

    def drop(self, key: str) -> list[Path]:
        """Delete the one run whose key begins so, finished or not; returns what was deleted.

        The store is looked through first, and the records only if it has no such run.
        """
        folders = self._named(key)
        with self._alone("-".join(split_name(folders[0]))):
            for folder in folders:
                shutil.rmtree(folder)
        return folders

    def _named(self, key: str) -> list[Path]:
        """The folders, finished and partial, of the one run whose name or key begins so."""
        stage, _, digits = key.removesuffix(".partial").rpartition("-")
        for place in self._places():
            found = {}
            for folder in self._all_folders([place]):
                name = split_name(folder)
                if name[1].startswith(digits[:SHORT]) and stage in ("", name[0]):
                    found.setdefault("-".join(name), []).append(folder)
            if len(found) > 1:
                raise QalibError(f"{key!r} begins several runs: {', '.join(found)}; add digits.")
            if found:
                return next(iter(found.values()))
        raise QalibError(f"No run begins with {key!r}; `python -m qalib runs` lists them.")

    def _places(self) -> list[Path]:
        return [self.root, *([self.records] if self.records else [])]

    def _all_folders(self, places: Sequence[Path] = ()) -> list[Path]:
        return [
            folder
            for place in places or self._places()
            for folder in (sorted(place.iterdir()) if place.is_dir() else [])
            if folder.is_dir() and split_name(folder)
        ]

    def _alone(self, short: str) -> contextlib.AbstractContextManager[None]:
        return exclusive(self.root / ".locks" / f"{short}.lock", f"the run {short}")


def command_runs(why: str = "", drop: str = "", as_json: bool = False) -> str:
    """What ``python -m qalib runs`` prints: the list of runs, or why one was missed."""
    from tabulate import tabulate

    store = Store()
    if drop:
        return "\n".join(f"Deleted {folder}" for folder in store.drop(drop))
    if why:
        rows = [
            {"compared with": name, "field": field, "here": here, "there": there}
            for name, field, here, there in store.why(why)
        ]
    else:
        rows = [{**asdict(entry), "folder": str(entry.folder)} for entry in store.runs()]
    if as_json:
        return pretty(rows)
    if not why:
        for row in rows:
            numbers = {k: v for k, v in row["metrics"].items() if isinstance(v, int | float)}
            row["metrics"] = ", ".join(f"{k} {v:.6g}" for k, v in list(numbers.items())[:4])
            del row["folder"]
    nothing = "No other run of its stage to compare it with." if why else "No runs yet."
    return tabulate(rows, headers="keys", tablefmt="github") if rows else nothing
