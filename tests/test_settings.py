"""Settings: strict types, limits, nested tables, and errors that name the place."""

from dataclasses import FrozenInstanceError, field, replace
from typing import Annotated, Literal

import pytest
from pydantic import Field

from qalib.errors import QalibError
from qalib.files import canonical
from qalib.settings import build, settings


@settings
class Inner:
    size: Annotated[int, Field(ge=1)] = 1
    kind: Literal["cnn", "mlp"] = "cnn"
    parts: tuple[str, ...] = ("a",)

    def __post_init__(self):
        if self.kind == "mlp" and self.size == 7:
            raise QalibError("an mlp of size 7 does not exist.")


@settings
class Outer:
    inner: Inner = field(default_factory=Inner)
    rate: float = 1.0
    names: dict[str, float] = field(default_factory=dict)


def test_settings_are_frozen_comparable_and_hash_into_keys():
    assert Outer(Inner(2)) == Outer(inner=Inner(size=2)) != Outer()
    with pytest.raises(FrozenInstanceError):
        Inner().size = 3
    assert canonical(Outer(rate=2)) == (
        '{"inner":{"kind":"cnn","parts":["a"],"size":1},"names":{},"rate":2.0}'
    )


def test_plain_data_becomes_settings():
    table = {"inner": {"size": 2, "parts": ["b", "c"]}, "rate": 1, "names": {"x": 2}}
    assert build(table, Outer, "here") == Outer(Inner(2, parts=("b", "c")), 1.0, {"x": 2.0})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Inner(size=0), "Inner: size is 0, but"),
        (lambda: Inner(size=True), "size is True, but input should be a valid integer"),
        (lambda: Inner(size="1"), "size is '1'"),
        (lambda: Inner(kind="rnn"), "kind is 'rnn', but input should be 'cnn' or 'mlp'"),
        (lambda: Inner(sise=1), "Inner has no key 'sise'; did you mean 'size'"),
        (lambda: replace(Inner(), size=-1), "size is -1"),
        (lambda: Inner(7, "mlp"), "an mlp of size 7 does not exist"),
        (lambda: build({"iner": {}}, Outer, "a.toml: [ci]"), r"a\.toml: \[ci\] has no key 'iner'"),
        (lambda: build({"inner": {"sise": 2}}, Outer, "p"), r"'inner\.sise'; did you mean 'size'"),
        (lambda: build({"inner": {"parts": "b"}}, Outer, "p"), r"p: inner\.parts is 'b'"),
        (lambda: build({"inner": {"size": 7, "kind": "mlp"}}, Outer, "p"), "size 7 does not"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_place(make, message):
    with pytest.raises(QalibError, match=message):
        make()
