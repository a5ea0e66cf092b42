"""Text input and output of commands: only regular files are replaced, each atomically."""

import json
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from qalib.errors import QalibError
from qalib.files import write_atomically


def is_main_process() -> bool:
    """Whether this is the one process of ``accelerate launch`` that prints and writes files."""
    return os.environ.get("RANK", "0") == "0"


def is_special(path: Path) -> bool:
    """Whether a path is a device, pipe or link, such as /dev/stdout, which is never replaced."""
    return path.is_symlink() or (path.exists() and not path.is_file())


def to_json(value: object, indent: int | None = 2) -> str:
    """``value`` as strict JSON. Raises ValueError for NaN and infinities, which JSON does not have.

    Lone surrogates are escaped: JSON can hold them, but UTF-8 cannot encode them.
    """
    text = json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False)
    return re.sub("[\ud800-\udfff]", lambda lone: f"\\u{ord(lone[0]):04x}", text)


def check_output(path: Path, inputs: Iterable[str | Path | None]) -> None:
    """Raise QalibError if no file can be written to ``path``, or if it is one of ``inputs``.

    If an input is a folder (a model), the files directly in it count as inputs, too.
    """
    if path.is_dir():
        raise QalibError(f"{path}: is a folder; name a file in it.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise QalibError(f"{path}: cannot be written to; name a file in a folder that exists.")
    for source in map(Path, filter(None, inputs)):
        files = [source, *source.iterdir()] if os.path.isdir(source) else [source]
        same = (path.is_file() and f.is_file() and path.samefile(f) for f in files)
        if any(same) or os.path.abspath(path) in map(os.path.abspath, files):
            raise QalibError(
                f"{path}: is an input or another output of this command; name another file."
            )


def write_output(path: Path, text: str) -> None:
    """Write text to a file: atomically to a regular one, directly to a device, pipe or link.

    If ``path`` is standard output, the text is printed, because opening the file again would
    truncate it. Raises QalibError if the file cannot be written.
    """
    try:
        if _is_stdout(path):
            print(text, flush=True)
        elif is_special(path):
            path.write_text(text, encoding="utf-8")
        else:
            write_atomically(path, text)
    except OSError as error:
        raise QalibError(f"{path}: cannot be written ({error.strerror or error}).") from None


def _is_stdout(path: Path) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(1))
    except OSError:
        return False


def read_text(path: Path | None) -> str:
    """Read a file or standard input. Raises QalibError if it is unreadable, blank or not UTF-8."""
    from qalib.data.formats import read_bytes

    raw = sys.stdin.buffer.read() if path is None else read_bytes(path)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise QalibError(
            f"{path or 'stdin'}: byte {error.start} is not UTF-8; save the text as UTF-8."
        ) from None
    if not text.strip():
        raise QalibError(f"{path or 'stdin'}: there is no text in it.")
    return text
