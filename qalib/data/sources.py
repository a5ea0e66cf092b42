"""Real data, looked up offline first and checked before it is used.

A name of the registry, such as ``squad-dev-v1.1``, is searched in the directory that QALIB_DATA
names, then in ``data/``, then in the cache; only :func:`fetch` goes to the network. Whatever is
found is compared with the published SHA-256 of the file's bytes or, for a copy in another layout,
with the accepted hashes of the questions, passages and answers in it.

A copy for which nobody published a checksum (the Hub's tables) is compared with the one seen when
it was first fetched, kept beside it as ``FILE.sha256``: a different file is refused from then on.
"""

import difflib
import os
import tempfile
import warnings
from pathlib import Path

from qalib.data.formats import from_rows, load_any
from qalib.data.registry import SOURCES, Source
from qalib.data.squad import Dataset, file_sha256, write_squad
from qalib.errors import QalibError
from qalib.paths import cache_dir, data_dirs

__all__ = ["SOURCES", "Source", "fetch", "find", "load"]

TIMEOUT = (10, 30)  # seconds to connect, and between two pieces of the answer
ATTEMPTS = 5  # each takes up where the one before broke off
CHUNK = 1 << 16  # bytes


def find(name: str) -> Path | None:
    """The file of a source if it is on this machine, unchecked; None if it is not.

    Raises QalibError for a name that is not in the registry, and if QALIB_DATA names no directory.
    """
    source = _source(name)
    named = os.environ.get("QALIB_DATA")
    if named and not Path(named).expanduser().is_dir():
        raise QalibError(
            f"QALIB_DATA={named}: no such directory; correct the variable or unset it."
        )
    names = dict.fromkeys((source.file, *source.also, f"{name}.json"))
    candidates = (folder / file for folder in data_dirs() for file in names)
    return next((path for path in candidates if path.is_file()), None)


def load(name: str, allow_network: bool = False) -> Dataset:
    """The checked questions of a source; fetched first if need be and if ``allow_network``.

    Raises QalibError in one sentence if the file is nowhere (what to put where, and from which
    address), if it is not the published one, and as the readers and :func:`fetch` do.
    """
    source = _source(name)
    path = find(name)
    if path is None and not allow_network:
        raise QalibError(
            f"{_nowhere(source)}: run 'python -m qalib fetch {name}', or {_by_hand(source)}."
        )
    path = path or fetch(name)
    dataset = load_any(path, name, source.part)
    _check(source, path, dataset)
    return dataset


def fetch(name: str, progress: bool = True) -> Path:
    """Have the file of a source on this machine: the path to it, downloaded if it is nowhere.

    A download that breaks off is taken up again, by this call and by the next; the file gets its
    name only when it is whole and checked. A spoiled file in the cache is replaced, one anywhere
    else is left alone. Where the address is gone, the rows come from the Hub, if it has them.

    Raises QalibError for an unknown name, without a network (or with QALIB_OFFLINE=1 or
    HF_HUB_OFFLINE=1: what to put where), for a file that is not the published one, and if the
    cache cannot be written.
    """
    import requests
    from filelock import FileLock

    source = _source(name)
    path = find(name)
    if path is not None and _usable(source, path):
        return path
    if offline := next((key for key in ("QALIB_OFFLINE", "HF_HUB_OFFLINE") if _is_set(key)), ""):
        raise QalibError(
            f"{_nowhere(source)} and {offline} forbids the network: {_by_hand(source)}."
        )
    target = cache_dir() / source.file
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if target.is_file() and _usable(source, target):  # another process was first
                return target
            try:
                _download(source, target, progress)
            except requests.RequestException as error:
                if not source.hub:
                    raise _unreachable(source, error) from None
                _from_hub(source, target, error)
    except OSError as error:
        reason = error.strerror or error
        raise QalibError(
            f"{target}: cannot be written ({reason}); make room or set QALIB_CACHE."
        ) from None
    return target


# ------------------------------------------------------------------------------------ checking


def _check(source: Source, path: Path, dataset: Dataset | None = None) -> None:
    """Raise QalibError unless the file is the source's, in its bytes or in its content."""
    raw = dataset.raw_sha256 if dataset else file_sha256(path)
    seen = _seen(path)
    if raw in (source.sha256, seen) or not (source.sha256 or seen or source.content_sha256):
        return
    dataset = dataset or load_any(path, source.name, source.part)
    if dataset.content_sha256 in source.content_sha256:
        return
    raise QalibError(
        f"{path}: this is not {source.name}: expected SHA-256 {source.sha256 or seen}, "
        f"found {raw} (content {dataset.content_sha256}, {len(dataset)} questions of "
        f"{source.questions}); remove it and run 'python -m qalib fetch {source.name}', or read it "
        "by its path under a name of its own."
    )


def _usable(source: Source, path: Path) -> bool:
    """Whether the file is the source's; raises QalibError if not and it is not the cache's own."""
    try:
        _check(source, path)
    except QalibError:
        if path != cache_dir() / source.file:
            raise
        return False
    return True


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _seen(path: Path) -> str | None:
    """The checksum recorded beside a file when it was first fetched."""
    try:
        return _note(path).read_text(encoding="utf-8").split()[0]
    except (OSError, IndexError, UnicodeDecodeError):
        return None


def _record(source: Source, draft: Path, target: Path, origin: str) -> None:
    """Give ``draft`` its name and note its hash; raises QalibError if another was noted before."""
    raw, seen = file_sha256(draft), _seen(target)
    if seen not in (None, raw):
        draft.unlink()
        raise QalibError(
            f"{source.name}: {origin} now gives a file with SHA-256 {raw}, not {seen} as at first; "
            f"if the change is known to be right, remove {_note(target)} and fetch again."
        )
    _note(target).write_text(f"{raw}  {target.name}  first seen from {origin}\n", encoding="utf-8")
    os.replace(draft, target)
    warnings.warn(
        f"{source.name}: nobody published a checksum of this file, so it is unverified; its "
        f"SHA-256 {raw} is recorded in {_note(target)} and a different file will be refused.",
        stacklevel=4,
    )


# --------------------------------------------------------------------------------- downloading


def _download(source: Source, target: Path, progress: bool) -> None:
    """``source.url`` to ``target``, whole and checked, over ``target``.part.

    Raises QalibError for a wrong checksum and requests.RequestException if the file cannot be had.
    """
    part = target.with_name(f"{target.name}.part")
    resumed = part.exists()
    if not (resumed and file_sha256(part) == source.sha256):  # else killed just before its naming
        _transfer(source.url, part, progress)
    if source.sha256 is None:
        _record(source, part, target, source.url)
        return
    raw = file_sha256(part)
    if raw == source.sha256:
        os.replace(part, target)
        return
    part.unlink()
    if resumed:  # the old piece may have been another file's: once more from the beginning
        _download(source, target, progress)
        return
    raise QalibError(
        f"{source.name}: {source.url} gave a file with SHA-256 {raw}, expected {source.sha256}; "
        f"fetch again later, or {_by_hand(source)}."
    )


def _transfer(url: str, part: Path, progress: bool) -> None:
    """Append to ``part`` what it lacks of the file at ``url``; try again as long as that helps."""
    import requests
    from pooch import HTTPDownloader

    def start_over(response: requests.Response, **_: object) -> None:
        if response.status_code in (200, 416):  # the whole file instead of the rest, or no rest
            os.truncate(part, 0)

    for attempt in range(ATTEMPTS):
        have = part.stat().st_size if part.exists() else 0
        # Unencoded, so that ranges and checksums speak of the file's own bytes.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        get = HTTPDownloader(
            progress, CHUNK, timeout=TIMEOUT, headers=headers, hooks={"response": start_over}
        )
        try:
            with part.open("ab") as file:
                get(url, file, None)
            return
        except requests.RequestException:
            size = part.stat().st_size
            if not size:
                part.unlink()
            if size == have or attempt == ATTEMPTS - 1:
                raise


def _from_hub(source: Source, target: Path, reason: Exception) -> None:
    """The source's rows from the Parquet tables that the Hub keeps, written as SQuAD JSON."""
    import datasets

    repository, config, split = source.hub
    address = f"hf://datasets/{repository}@~parquet/{config}/{split}/*.parquet"
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        try:
            rows = datasets.load_dataset(
                "parquet", data_files=address, split="train", cache_dir=folder
            )
        except Exception:  # whatever the layers below raise, the file is not to be had
            raise _unreachable(source, reason) from None
        examples = from_rows(rows, address).examples
    if len(examples) != source.questions:
        raise QalibError(
            f"{source.name}: {address} holds {len(examples)} questions, expected "
            f"{source.questions}; {_by_hand(source)}."
        )
    draft = target.with_name(f"{target.name}.part")
    write_squad(examples, draft)
    _record(source, draft, target, address)


# ------------------------------------------------------------------------------------- wording


def _source(name: str) -> Source:
    if name not in SOURCES:
        close = difflib.get_close_matches(name, SOURCES, n=1)
        meant = f" (did you mean {close[0]}?)" if close else ""
        raise QalibError(f"{name}: no such source{meant}; the sources are {', '.join(SOURCES)}.")
    return SOURCES[name]


def _is_set(key: str) -> bool:
    return os.environ.get(key, "").strip().lower() not in ("", "0", "false", "no", "off")


def _nowhere(source: Source) -> str:
    return f"{source.name}: no {source.file} in {', '.join(map(str, data_dirs()))}"


def _by_hand(source: Source) -> str:
    return (
        f"download {source.url} where there is a network and put it as {source.file} into the "
        f"directory that QALIB_DATA names or into {cache_dir()}"
    )


def _unreachable(source: Source, error: Exception) -> QalibError:
    response = getattr(error, "response", None)
    why = f"cannot be reached ({type(error).__name__})"
    if response is not None:
        why = f"answers {response.status_code} {response.reason}"
    return QalibError(f"{source.name}: {source.url} {why}: {_by_hand(source)}.")
