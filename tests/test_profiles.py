"""Profiles: inheritance, and every mistake in the file named with its place."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pytest

from qalib.errors import QalibError
from qalib.settings import settings
from qalib.study.profiles import PROFILES, Profile, load_profile

TOML = """
[ci.budget]
"00" = 60
default = 30

[ci.train]
steps = 20
rate = 1
model = { layers = 2, width = 32 }

[laptop]
extends = "ci"
[laptop.train]
steps = 600
model = { layers = 6 }

[study]
extends = "laptop"
[study.score]
window = 384
"""


@settings
class Model:
    layers: int
    width: int = 64


@settings
class Train:
    steps: int
    rate: float = 0.5
    model: Model | None = None
    seeds: tuple[int, ...] = (0,)
    span: tuple[int, float] = (1, 2.0)
    device: Literal["cpu", "cuda"] = "cpu"
    names: Mapping[str, str] | None = None
    quick: bool = False


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "profiles.toml"
    path.write_text(TOML)
    return path


def with_train(text: str, folder: Path) -> Profile:
    path = folder / "profiles.toml"
    path.write_text(f"[ci.train]\n{text}\n")
    return load_profile("ci", path)


def test_a_profile_takes_over_what_it_does_not_say_itself(toml):
    assert load_profile("ci", toml).section("train", Train) == Train(20, 1.0, Model(2, 32))
    study = load_profile("study", toml)
    assert study.section("train", Train) == Train(600, 1.0, Model(6, 32))
    assert study.sections["score"] == {"window": 384}
    assert isinstance(study.section("train", Train).rate, float)
    assert "score" not in load_profile("laptop", toml).sections


def test_every_type_is_read(tmp_path):
    text = """steps = 1
        seeds = [1, 2, 3]
        span = [1, 2]
        device = "cuda"
        names = { a = "b" }
        quick = true"""
    train = with_train(text, tmp_path).section("train", Train)
    assert train == Train(1, 0.5, None, (1, 2, 3), (1, 2.0), "cuda", {"a": "b"}, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stesp = 1", r"profiles\.toml: \[ci\.train\] has no key 'stesp'; did you mean 'steps'"),
        ("steps = 1\nzzz = 1", "has no key 'zzz'; the known names are steps, rate, model"),
        ("rate = 0.5", "must set 'steps'"),
        ("steps = true", "steps is True, but input should be a valid integer"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path, text, message):
    with pytest.raises(QalibError, match=message):
        with_train(text, tmp_path).section("train", Train)


def test_an_unknown_section_or_profile_is_named_with_what_there_is(toml):
    with pytest.raises(QalibError, match=r"\[ci\.trian\] is not there; did you mean 'train'"):
        load_profile("ci", toml).section("trian", Train)
    with pytest.raises(QalibError, match="no profile 'lab'; the known names are ci, laptop, study"):
        load_profile("lab", toml)
    with pytest.raises(QalibError, match="did you mean 'laptop'"):
        load_profile("labtop", toml)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[ci]\nextends = 'la'", "there is no profile 'la'"),
        ("[ci\n", "cannot be read as TOML.*line 1"),
    ],
)
def test_a_broken_file_is_named(tmp_path, text, message):
    path = tmp_path / "profiles.toml"
    path.write_text(text)
    with pytest.raises(QalibError, match=rf"profiles\.toml.*{message}"):
        load_profile("ci", path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(QalibError, match=r"none\.toml"):
        load_profile("ci", tmp_path / "none.toml")


def test_the_profiles_of_the_kit_can_all_be_loaded():
    for name in ("ci", "laptop", "study", "paper"):
        assert load_profile(name).sections["budget"]["default"] > 0
    assert PROFILES.name == "profiles.toml"
