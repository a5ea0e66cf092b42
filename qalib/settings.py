"""Settings: frozen dataclasses checked by pydantic, with one-sentence errors."""

import dataclasses
import difflib
import functools
import json
import typing
from collections.abc import Iterable, Mapping

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from qalib.errors import QalibError

T = typing.TypeVar("T")


@typing.dataclass_transform(frozen_default=True)
def settings(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass with checked fields.

    Types are strict (no string for a number, no bool for an int) and unknown keys are rejected;
    ``Annotated[int, Field(ge=1)]`` and ``Literal`` set further limits, ``__post_init__`` those on
    several fields. Raises QalibError instead of pydantic's ValidationError.
    """
    checked = pydantic_dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))(cls)
    construct = checked.__init__

    @functools.wraps(construct)
    def __init__(self, *args, **kwargs):
        try:
            construct(self, *args, **kwargs)
        except ValidationError as error:
            raise QalibError(_sentence(error, type(self), type(self).__name__)) from None

    checked.__init__ = __init__
    return checked


def build(table: Mapping, kind: type[T], place: str) -> T:
    """Settings of class ``kind`` from plain data: lists become tuples, tables nested settings.

    Raises QalibError naming ``place`` for a key or a value that is not allowed.
    """
    try:
        return TypeAdapter(kind).validate_json(json.dumps(table))
    except ValidationError as error:
        raise QalibError(_sentence(error, kind, place)) from None


def nearest(name: object, known: Iterable[str]) -> str:
    """ "did you mean 'steps'" if one of the known names is similar, else a list of them."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {close[0]!r}" if close else f"the known names are {', '.join(known)}"


def _sentence(error: ValidationError, kind: type, place: str) -> str:
    """The first problem of a validation as one sentence."""
    problems = error.errors(include_url=False)
    unknown = [each for each in problems if each["type"].startswith("unexpected_")]
    problem = (unknown or problems)[0]  # a misspelt key may be why another one is missing
    if cause := problem.get("ctx", {}).get("error"):
        return f"{place}: {cause}"
    path = [str(part) for part in problem["loc"] if part not in ("dataclass", "ctor")]
    key = path[-1] if path else ""
    where = f"{place}: {'.'.join(path)}" if path else place
    if unknown:
        owner = _owner(kind, path[:-1])
        known = [field.name for field in dataclasses.fields(owner)] if owner else []
        return f"{place} has no key {'.'.join(path)!r}; {nearest(key, known)}."
    if problem["type"] in ("missing", "missing_argument"):
        return f"{place} must set {'.'.join(path)!r}."
    message = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{where} is {problem['input']!r}, but {message}."


def _owner(kind: type, path: list[str]) -> type | None:
    """The settings class that a path of field names leads to, or None."""
    for name in path:
        hints = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
        options = [hints.get(name), *typing.get_args(hints.get(name))]
        kind = next((o for o in options if dataclasses.is_dataclass(o)), None)
        if kind is None:
            return None
    return kind if dataclasses.is_dataclass(kind) else None
