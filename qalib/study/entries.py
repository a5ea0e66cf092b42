"""What one run looks like on the disk, and the checks that it passes before anybody uses it.

<stage>-<first twelve digits of the key>/
    config.json     stage, version, configuration and inputs: what the key is the hash of
    metrics.json    what was measured
    env.json        versions, device, commit, command, seconds
    DONE.json       SHA-256 and size of every file of the run; written last
    ...             what the stage made: weights, predictions, curves
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qalib.data.squad import file_sha256
from qalib.errors import QalibError
from qalib.study.files import canonical

HASHED_ON_READ = 50_000_000  # bytes; larger files are checked by size alone
SHORT = 12  # hexadecimal digits of the key in a folder's name
OWN_FILES = {"config.json", "metrics.json", "env.json"}


@dataclass(frozen=True)
class Run:
    """A finished run: what it was asked, what it measured and where its files are."""

    stage: str
    key: str
    folder: Path
    config: dict
    inputs: dict
    metrics: dict
    env: dict

    @property
    def short(self) -> str:
        """The name of its folder."""
        return short_name(self.stage, self.key)

    def file(self, name: str) -> Path:
        """The path of one of the run's files. Raises QalibError if it is not kept here."""
        path = self.folder / name
        if not path.is_file():
            raise QalibError(
                f"{self.short}: the file {name} is not kept in {self.folder}; "
                "add --force to the command that uses it, and it is computed again."
            )
        return path


def run_key(stage: str, config: object, inputs: Mapping[str, str], version: int = 1) -> str:
    """SHA-256 of the canonical JSON of everything that a run's result may depend on."""
    request = {"stage": stage, "version": version, "config": config, "inputs": dict(inputs)}
    return hashlib.sha256(canonical(request, stage).encode()).hexdigest()


def short_name(stage: str, key: str) -> str:
    """The folder's name of the run of a stage with a key."""
    return f"{stage}-{key[:SHORT]}"


def split_name(folder: Path) -> tuple[str, str] | None:
    """Stage and short key from a folder's name; None for a folder that is no run."""
    stage, _, key = folder.name.removesuffix(".partial").rpartition("-")
    is_key = len(key) == SHORT and set(key) <= set("0123456789abcdef")
    return (stage, key) if stage and is_key else None


def read_run(folder: Path, key: str = "") -> Run:
    """A finished run from its folder, every file checked.

    Raises QalibError that names entry, file and way out if anything is missing or has changed,
    or if the entry is not that of ``key``.
    """
    files = read_json(folder, "DONE.json").get("files")
    if not isinstance(files, dict) or not set(files) >= OWN_FILES:
        raise damaged(folder, "DONE.json", "does not list the run's files")
    for name, expected in files.items():
        if not isinstance(expected, dict) or not set(expected) >= {"sha256", "size"}:
            raise damaged(folder, "DONE.json", f"does not give hash and size of {name}")
        if expected.get("kept", True):
            _check(folder, name, expected)
    about, metrics, env = (
        read_json(folder, name) for name in ("config.json", "metrics.json", "env.json")
    )
    stage, config, inputs = (about.get(name) for name in ("stage", "config", "inputs"))
    found = run_key(stage, config, inputs or {}, about.get("version"))
    if found != about.get("key") or key not in ("", found):
        raise damaged(folder, "config.json", "is not the configuration that the entry stands for")
    return Run(stage, found, folder, config, inputs, metrics, env)


def _check(folder: Path, name: str, expected: dict) -> None:
    path = folder / name
    if not path.is_file():
        raise damaged(folder, name, "is missing")
    if path.stat().st_size != expected["size"]:
        raise damaged(folder, name, f"has {path.stat().st_size} bytes, not {expected['size']}")
    if expected["size"] <= HASHED_ON_READ and file_sha256(path) != expected["sha256"]:
        raise damaged(folder, name, "has changed since it was recorded (its SHA-256 differs)")


def read_json(folder: Path, name: str) -> dict:
    """One of the JSON files of an entry. Raises QalibError if it is not there or not whole."""
    try:
        value = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise damaged(folder, name, "is missing") from None
    except (OSError, ValueError):
        raise damaged(folder, name, "is not readable as JSON") from None
    if not isinstance(value, dict):
        raise damaged(folder, name, "holds no JSON object")
    return value


def damaged(folder: Path, name: str, what: str) -> QalibError:
    """The error for an entry that cannot be used: what is wrong with which file, and what to do."""
    return QalibError(
        f"The run {folder.name} is damaged: {folder / name} {what}; delete the entry with "
        f"`python -m qalib runs --drop {folder.name}`, or make it anew with --force."
    )


def list_files(folder: Path, without: tuple[str, ...] = ()) -> dict[str, dict]:
    """SHA-256 and size of every file below a folder, by its relative name.

    ``without`` names files and folders at the top that are passed over.
    """
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {
        name: {"sha256": file_sha256(path), "size": path.stat().st_size}
        for name, path in names.items()
        if name.split("/")[0] not in without
    }


def differences(here: dict, there: dict) -> list[tuple[str, object, object]]:
    """Where two configurations differ: rows (dotted field, value here, value there)."""
    ours, theirs = _flat(here), _flat(there)
    return [
        (field, ours.get(field), theirs.get(field))
        for field in sorted(ours | theirs)
        if ours.get(field) != theirs.get(field) and field != "key"
    ]


def _flat(value: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        name: leaf
        for key, item in value.items()
        for name, leaf in _flat(item, f"{prefix}.{key}" if prefix else key).items()
    }
