"""The files of a teacher cache: written whole, sealed with their hashes, checked before use.

A folder is written under another name, gets a list of its files with their hashes last, and then
its own name; so it is complete or not there. Only .npy and JSON: nothing in it can run.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from qalib.data.squad import file_sha256, parse_json, read_bytes
from qalib.errors import QalibError

FORMAT = 1
HEADER, SEAL = "rows.json", "seal.json"
FIELDS = ("data", "tokenizer", "hops", "offsets", "ids", "tokens", "first", "question")


def write_json(path: Path, value: dict) -> None:
    """Write a JSON file, complete or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value), encoding="ascii")
    partial.replace(path)


def read_header(folder: Path) -> dict:
    """What rows.json says. Raises QalibError if it is missing, damaged or of another version."""
    path = folder / HEADER
    if not path.is_file():
        raise QalibError(f"{folder}: no teacher cache is here ({HEADER} is missing); write one.")
    header = parse_json(read_bytes(path), path)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        found = header.get("format") if isinstance(header, dict) else None
        raise QalibError(
            f"{path}: a stale cache of format {found!r}, this version reads {FORMAT}; remove the "
            "folder and write it again."
        )
    missing = [name for name in FIELDS if name not in header]
    if missing:
        raise QalibError(f"{path}: damaged, {missing[0]!r} is missing; write the cache again.")
    return header


def header_key(header: dict) -> str:
    """SHA-256 of what rows.json says: the name of these rows."""
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def check_same_rows(folder: Path, there: dict, wanted: dict) -> None:
    """Raise QalibError that says in what a cache differs from the one that is wanted."""
    told = {
        "data": "another data set",
        "tokenizer": "another tokenizer",
        "hops": "other attention maps",
        "ids": "other questions, or in another order",
        "tokens": "passages of other lengths",
        "offsets": "passages cut into other tokens",
        "first": "passages at other positions",
        "question": "questions of other lengths",
    }
    for name, what in told.items():
        if there[name] != wanted[name]:
            raise QalibError(
                f"{folder}: holds a cache of {what} ({name} differ); name another folder, or "
                "remove this one."
            )


@contextmanager
def sealed(final: Path, rows: str, **about: object) -> Iterator[Path]:
    """Write a folder of arrays: it gets its name when the block ends well, and is sealed then."""
    partial = final.with_name(f"{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    files = {path.name: file_sha256(path) for path in sorted(partial.glob("*.npy"))}
    write_json(partial / SEAL, {"rows": rows, "files": files, **about})
    partial.replace(final)


def open_sealed(folder: Path, rows: str, files: Sequence[str] = ()) -> dict:
    """The seal of a folder whose ``files`` (all, if none are named) are what they were.

    Raises QalibError if the folder is missing, half written, damaged or of other rows.
    """
    if not folder.is_dir():
        half = folder.with_name(f"{folder.name}.partial").is_dir()
        state = "is only half written; finish writing it" if half else "is missing; write it"
        raise QalibError(f"{folder}: {state} before it is read.")
    path = folder / SEAL
    seal = parse_json(read_bytes(path), path)
    if not isinstance(seal, dict) or not isinstance(seal.get("files"), dict):
        raise QalibError(f"{path}: damaged; remove the folder and write it again.")
    if seal.get("rows") != rows:
        raise QalibError(
            f"{folder}: comes from a cache of other rows; remove it and write it again."
        )
    for name in files or seal["files"]:
        file = folder / name
        if name not in seal["files"] or not file.is_file():
            raise QalibError(f"{file}: missing; remove {folder.name} and write it again.")
        if file_sha256(file) != seal["files"][name]:
            raise QalibError(f"{file}: damaged; remove {folder.name} and write it again.")
    return seal


def load_array(path: Path) -> np.ndarray:
    """An array of a file, mapped and not read. Raises QalibError if it is missing or damaged."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise QalibError(f"{path}: missing; write the cache again.") from None
    except (ValueError, OSError, EOFError) as error:
        raise QalibError(f"{path}: damaged ({error}); write the cache again.") from None


def new_array(path: Path, size: int) -> np.memmap:
    """A mapped fp16 array of ``size`` > 0 zeros in a new file."""
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(size,))


def write_mean(sources: Sequence[Path], target: Path, chunk: int = 1 << 22) -> None:
    """The mean of fp16 arrays of one shape, taken in fp32, as fp16."""
    arrays = [load_array(path) for path in sources]
    mean = new_array(target, len(arrays[0]))
    for begin in range(0, len(mean), chunk):
        part = sum(array[begin : begin + chunk].astype(np.float32) for array in arrays)
        mean[begin : begin + chunk] = part / len(arrays)
    mean.flush()


def file_of(hop: str) -> str:
    """The name of the file with the attention of a hop."""
    return f"{hop.replace(' ', '-')}.npy"


def begins(lengths: np.ndarray) -> np.ndarray:
    """Where each row begins in an array of all rows, and where the last ends.  (R,) -> (R + 1,)"""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
