"""File utilities: canonical JSON, atomic writes, locks, and clear errors for a full disk."""

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

    Raises QalibError naming ``place`` for anything without a unique JSON form: NaN, infinities,
    keys that are not strings, and values of other types.
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
    """Compact JSON of ``value``, equal for equal data. Raises as :func:`to_json_data` does."""
    return json.dumps(
        to_json_data(value, place), sort_keys=True, separators=(",", ":"), allow_nan=False
    )


def pretty(value: object, place: str = "value") -> str:
    """Readable JSON of ``value``: indented, keys sorted, non-ASCII kept, a newline at the end."""
    text = json.dumps(to_json_data(value, place), sort_keys=True, indent=2, ensure_ascii=False)
    return f"{text}\n"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees either the old or the new content, never a part."""
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
    """Flush ``folder`` and everything below it to disk, so that it survives a power cut."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_file() or os.name == "posix":  # folders can be opened on POSIX only
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


@contextmanager
def exclusive(lock: Path, what: str, timeout: float = 0.0) -> Iterator[None]:
    """Hold the file lock ``lock`` during the block; the system releases it if the process dies.

    Raises QalibError with the holder's process id and ``what`` it is working on if another process
    still holds it after ``timeout`` seconds.
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
    """Rename ``draft`` to ``final``; an existing ``final`` is renamed first and removed last."""
    old = final.with_name(f"{final.name}.old")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(final, old)
    os.replace(draft, final)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def translate_os_errors(root: Path) -> Iterator[None]:
    """Turn a full disk or a refused path into a QalibError that says what to do."""
    try:
        yield
    except Exception as error:
        if _disk_is_full(error):
            raise QalibError(
                f"No space left in {root}: nothing recorded was lost; free some space "
                "and run the same command again, it goes on where it stopped."
            ) from error
        refused = "EACCES", "EPERM", "ENOTDIR", "EEXIST", "ENOTEMPTY", "EROFS"
        known = isinstance(error, OSError) and error.filename
        if known and errno.errorcode.get(error.errno) in refused:
            raise QalibError(
                f"{error.filename}: cannot be used ({error.strerror}); choose another place."
            ) from error
        raise


def _disk_is_full(error: BaseException | None) -> bool:
    """Whether an error or one of its causes is a full disk; some libraries only say so in text."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def log_usage(kind: str, name: str, value: object = None) -> None:
    """Append what a notebook used or made to the file QALIB_NOTES, for the notebook runner.

    ``kind``: "run", "figure", "data", "section" or "claim". Does nothing without the variable.
    """
    if path := os.environ.get("QALIB_NOTES"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps([kind, name, value]) + "\n")
