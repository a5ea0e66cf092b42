"""Small things that are done with files: one JSON form, whole writes, locks, a full disk."""

import dataclasses
import errno
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from qalib.errors import QalibError


def to_json_data(value: object, place: str = "value") -> object:
    """``value`` as plain JSON data: tuples become lists, dataclasses and mappings dictionaries.

    Raises QalibError, naming the place, for anything that has no single written form: NaN and
    infinities, keys that are not strings, and every other type.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        for key in value:
            if type(key) is not str:
                raise QalibError(f"{place}: the key {key!r} is not a string; JSON keys must be.")
        return {key: to_json_data(item, f"{place}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_data(item, f"{place}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise QalibError(f"{place}: {value} is not a finite number; use None for no value.")
    if value is None or isinstance(value, bool | int | float) or type(value) is str:
        return value
    kind = type(value).__name__
    raise QalibError(f"{place}: a {kind} cannot be recorded; make it a number, text, list or dict.")


def canonical(value: object, place: str = "value") -> str:
    """The one JSON text of ``value``, equal for equal values. Raises as ``to_json_data`` does."""
    return json.dumps(
        to_json_data(value, place), sort_keys=True, separators=(",", ":"), allow_nan=False
    )


def pretty(value: object, place: str = "value") -> str:
    """The same data for people: indented, keys sorted, characters as they are, newline at end."""
    return (
        json.dumps(to_json_data(value, place), sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    )


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content.encode("utf-8") if isinstance(content, str) else content
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def sync_tree(folder: Path) -> None:
    """Ask the disk to keep every file and folder below ``folder`` through a power cut."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_file() or os.name == "posix":  # folders can be opened on POSIX only
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


@contextmanager
def exclusive(lock: Path, what: str, timeout: float = 0.0) -> Iterator[None]:
    """Hold ``lock`` for the length of the block; the system lets go of it if the process dies.

    Raises QalibError with the holder's process id and ``what`` it works on if another process keeps
    it for ``timeout`` seconds.
    """
    from filelock import FileLock, Timeout

    lock.parent.mkdir(parents=True, exist_ok=True)
    holder = lock.with_suffix(".pid")
    handle = FileLock(lock)
    try:
        handle.acquire(timeout=timeout)
    except Timeout:
        pid = holder.read_text().strip() if holder.exists() else "unknown"
        raise QalibError(
            f"Process {pid} is working on {what}: wait until it has finished, or stop it, "
            "and run the same command again."
        ) from None
    try:
        holder.write_text(str(os.getpid()))
        yield
    finally:
        holder.unlink(missing_ok=True)
        handle.release()


def replace_dir(draft: Path, final: Path) -> None:
    """Give a complete folder its name; an older one of that name goes last."""
    old = final.with_name(f"{final.name}.old")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(final, old)
    os.replace(draft, final)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def translate_os_errors(root: Path) -> Iterator[None]:
    """Turn what the file system refuses below ``root`` into one sentence that says what to do."""
    try:
        yield
    except Exception as error:
        if _disk_is_full(error):
            raise QalibError(
                f"No space left in {root}: nothing recorded was lost; free some space "
                "and run the same command again, it goes on where it stopped."
            ) from error
        places = (PermissionError, NotADirectoryError, FileExistsError)
        if isinstance(error, places) and error.filename:
            raise QalibError(
                f"{error.filename}: cannot be written ({error.strerror}); choose another place."
            ) from error
        raise


def _disk_is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says so; some libraries only in their text."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def log_usage(kind: str, name: str, value: object = None) -> None:
    """Add to the file that the notebook runner names in QALIB_NOTES what a notebook used or made.

    ``kind``: "run", "figure", "data" or "section". Without the variable this does nothing.
    """
    if path := os.environ.get("QALIB_NOTES"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps([kind, name, value]) + "\n")
