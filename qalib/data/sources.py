"""Published question sets: found offline first, and verified before use.

A name such as ``squad-dev-v1.1`` is searched in ``paths.data_dirs()``; only :func:`fetch` uses the
network. A file must have the published SHA-256 or, for a copy in another layout, an accepted hash
of its questions, passages and answers.

If the published address fails, the rows come from the Hugging Face Hub's Parquet tables, which are
verified by their content.
"""

import os
import tempfile
import tomllib
import warnings
from pathlib import Path

from qalib.data.formats import Purpose, load_file, load_narrativeqa
from qalib.data.schema import Dataset, file_sha256
from qalib.errors import DataWarning, QalibError
from qalib.paths import cache_dir, data_dirs
from qalib.settings import build, nearest, settings

TIMEOUT = (10, 30)  # seconds to connect, and between two pieces of the answer
RETRIES = 2  # after a failed download
OFF = ("", "0", "false", "no", "off")  # values of a variable that is not set


@settings
class Source:
    """A published set of questions of sources.toml, whose comments explain the fields."""

    name: str
    file: str  # its name in a data directory and in the cache
    sha256: str
    questions: int
    licence: str
    url: str = ""  # "" = not published as one file
    also: tuple[str, ...] = ()
    content_sha256: tuple[str, ...] = ()
    hub: tuple[str, str, str] | None = None
    without: int = 0  # rows that have no span for an answer and are left out
    free_form: bool = False  # answers are texts without offsets


_TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
SOURCES = {
    name: build({"name": name} | table, Source, "sources.toml") for name, table in _TABLES.items()
}


def find(name: str) -> Path | None:
    """The file of a source if it is on this machine, not yet verified; None if it is not.

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


def load_data(name: str | Path, purpose: Purpose = "train", skip_bad: bool = False) -> Dataset:
    """The verified questions of a source by its name, or a file by its path.

    "narrativeqa-train", "-valid" and "-test" are read from a copy of NarrativeQA's repository,
    the folder ``narrativeqa`` in a data directory.

    Raises QalibError if a source's file is missing (with the address to get it from) or not the
    published one, and as :func:`~qalib.data.formats.load_file` does.
    """
    source = SOURCES.get(str(name))
    family, _, split = str(name).partition("-")
    if family == "narrativeqa" and not Path(name).exists():  # no checksum is known of it
        folders = [folder / family for folder in data_dirs()]
        return load_narrativeqa(next(filter(Path.is_dir, folders), folders[0]), split)
    if source is None:
        return load_file(name, purpose, skip_bad=skip_bad)
    path = find(source.name)
    if path is None:
        raise QalibError(
            f"{_missing(source)}: run 'python -m qalib fetch {name}', or {_by_hand(source)}."
        )
    purpose = "score" if source.free_form else "train"
    with warnings.catch_warnings():
        if source.free_form:  # an answer without an offset is no fault here
            warnings.simplefilter("ignore", DataWarning)
        dataset = load_file(path, purpose, name=source.name, skip_bad=bool(source.without))
    _verify(source, path, dataset)
    return dataset


def fetch(name: str) -> Path:
    """The path of a source's file, which is downloaded to the cache if it is not on this machine.

    A damaged file in the cache is replaced, one in another directory is left alone. Raises
    QalibError for an unknown name, without a network (or with QALIB_OFFLINE=1 or HF_HUB_OFFLINE=1),
    for a file that is not the published one, and if the cache cannot be written.
    """
    import requests

    source = _source(name)
    path = find(name)
    target = cache_dir() / source.file
    if not source.url and path is None:
        raise QalibError(f"{_missing(source)}, and it has no public address: {_by_hand(source)}.")
    if path is not None:
        try:
            _verify(source, path)
            return path
        except QalibError:
            if path != target:
                raise
    values = {key: os.environ.get(key, "").strip() for key in ("QALIB_OFFLINE", "HF_HUB_OFFLINE")}
    if offline := next((key for key, value in values.items() if value.lower() not in OFF), ""):
        raise QalibError(
            f"{_missing(source)} and {offline} forbids the network: {_by_hand(source)}."
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            _download(source)
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


def _verify(source: Source, path: Path, dataset: Dataset | None = None) -> None:
    """Raise QalibError unless the file is the source's, by its bytes or by its content."""
    raw = dataset.raw_sha256 if dataset else file_sha256(path)
    if raw == source.sha256:
        return
    purpose = "score" if source.free_form else "train"
    dataset = dataset or load_file(path, purpose, name=source.name, skip_bad=bool(source.without))
    if dataset.content_sha256 in source.content_sha256:
        return
    raise QalibError(
        f"{path}: this is not {source.name}: expected SHA-256 {source.sha256}, "
        f"found {raw} (content {dataset.content_sha256}, {len(dataset)} questions of "
        f"{source.questions}); remove it and run 'python -m qalib fetch {source.name}', or read it "
        "by its path under a name of its own."
    )


def _download(source: Source) -> None:
    """Download ``source.url`` to the cache, verified. Raises RequestException if that fails."""
    import pooch

    pooch.get_logger().setLevel("WARNING")
    registry, urls = {source.file: f"sha256:{source.sha256}"}, {source.file: source.url}
    downloads = pooch.create(cache_dir(), "", registry=registry, urls=urls, retry_if_failed=RETRIES)
    downloader = pooch.HTTPDownloader(progressbar=True, timeout=TIMEOUT)
    try:
        downloads.fetch(source.file, downloader=downloader)
    except ValueError as error:  # pooch's error for a wrong checksum
        raise QalibError(
            f"{source.name}: {source.url} gave another file than expected ({error}); fetch again "
            f"later, or {_by_hand(source)}."
        ) from None


def _from_hub(source: Source, target: Path, reason: Exception) -> None:
    """Write the Hub's tables as JSON lines. Raises QalibError if that fails or they are others."""
    import datasets

    repository, config, split = source.hub
    address = f"hf://datasets/{repository}@~parquet/{config}/{split}/*.parquet"
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        try:
            rows = datasets.load_dataset(
                "parquet", data_files=address, split="train", cache_dir=folder
            )
        except Exception:  # any of the libraries below may raise its own
            raise _unreachable(source, reason) from None
        draft = Path(folder) / target.name
        rows.to_json(draft)
        _verify(source, draft)
        os.replace(draft, target)


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise QalibError(f"{name}: no such source; {nearest(name, SOURCES)}.")
    return SOURCES[name]


def _missing(source: Source) -> str:
    return f"{source.name}: no {source.file} in {', '.join(map(str, data_dirs()))}"


def _by_hand(source: Source) -> str:
    get = f"download {source.url} where there is a network" if source.url else "get its file"
    places = f"the directory that QALIB_DATA names or into {cache_dir()}"
    return f"{get} and put it as {source.file} into {places}"


def _unreachable(source: Source, error: Exception) -> QalibError:
    why = f"cannot be reached ({type(error).__name__})"
    if (response := getattr(error, "response", None)) is not None:
        why = f"answers {response.status_code} {response.reason}"
    return QalibError(f"{source.name}: {source.url} {why}: {_by_hand(source)}.")
