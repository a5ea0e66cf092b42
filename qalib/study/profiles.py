"""Profiles: data, sizes and training settings in one file, so that notebooks need no branches.

``profiles.toml`` beside this module has one table per profile (ci, laptop, study, paper), with one
table per section in it. A profile may extend another one and override its keys.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from qalib.errors import QalibError
from qalib.files import log_usage
from qalib.settings import build, nearest

PROFILES = Path(__file__).with_name("profiles.toml")
T = TypeVar("T")


@dataclass(frozen=True)
class Profile:
    """A named set of sections, each a mapping of settings; read them with ``section``."""

    name: str
    sections: Mapping[str, Mapping[str, object]]
    path: Path = PROFILES

    def section(self, name: str, kind: type[T]) -> T:
        """The section as settings of class ``kind``; keys that it leaves out keep their defaults.

        Raises QalibError naming file, section and key for an unknown section or key (with the
        nearest known name), for an invalid value and for a missing one.
        """
        place = f"{self.path.name}: [{self.name}.{name}]"
        if name not in self.sections:
            raise QalibError(f"{place} is not there; {nearest(name, self.sections)}.")
        log_usage("section", name)
        return build(self.sections[name], kind, place)


def load_profile(name: str, path: Path = PROFILES) -> Profile:
    """The profile of that name, merged over those that it extends.

    Raises QalibError for an unknown name and for a file that is not TOML.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise QalibError(f"{path.name}: cannot be read as TOML: {error}.") from None
    if name not in tables:
        raise QalibError(f"{path.name}: there is no profile {name!r}; {nearest(name, tables)}.")
    sections = tables[name]
    if (base := sections.pop("extends", None)) is not None:
        sections = _over(load_profile(base, path).sections, sections)
    return Profile(name, sections, path)


def _over(base: dict, top: Mapping) -> dict:
    """``base`` updated with the keys of ``top``; nested tables are merged recursively."""
    merged = dict(base)
    for key, value in top.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _over(base[key], value) if both else value
    return merged
