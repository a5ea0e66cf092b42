"""The byte-level answerer: spans of characters, any text, independence of the batch."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qalib.byte_answer import ByteAnswerConfig, ByteAnswerer
from qalib.data.byte_features import ByteConfig
from qalib.data.squad import Example
from qalib.errors import QalibError
from qalib.readers.byte_reader import ByteReaderConfig, build_byte_reader

READER = ByteReaderConfig(width=6, head_width=4, embedding=5, mixer="lstm")
ODD = [
    "נולדה בירושלים בשנת 1984 ולמדה שם.",
    "a null \0 byte and a lone \ud800 surrogate",
    "Zoë 😀 Zürich",
    "x",
    "the same passage, many times " * 20,
]


def answerer(unit: str = "characters", **config) -> ByteAnswerer:
    text = ByteConfig(unit=unit)
    return ByteAnswerer(
        build_byte_reader(READER), ByteAnswerConfig(text=text, precision="fp32", **config)
    )


def asked() -> list[Example]:
    questions = ["?", "Where is it?", "What is said here, and by whom? " * 20]
    return [Example(f"{i}-{q}", q, text) for i, text in enumerate(ODD) for q in questions]


@pytest.mark.parametrize("unit", ["characters", "utf-8"])
def test_answers_are_spans_of_the_passage_and_ranked(unit):
    for example, found in zip(asked(), answerer(unit, n_best=4).answer_many(asked()), strict=True):
        assert found
        assert [c.text for c in found] == [example.context[c.start : c.end] for c in found]
        assert len({c.text for c in found}) == len(found) <= 4
        assert [c.score for c in found] == sorted((c.score for c in found), reverse=True)
        assert 0 < sum(c.probability for c in found) <= 1 + 1e-5


def test_answers_do_not_depend_on_the_company():
    ours = answerer(n_best=3)
    together = ours.answer_many(asked())
    for example, found in zip(asked(), together, strict=True):
        alone = ours.answer(example.question, example.context)
        assert [(c.start, c.end) for c in alone] == [(c.start, c.end) for c in found]
        assert alone[0].score == pytest.approx(found[0].score, abs=1e-4)
    small = answerer(n_best=3, positions_per_batch=64).answer_many(asked())
    assert [[c.text for c in f] for f in small] == [[c.text for c in f] for f in together]


@settings(max_examples=20, deadline=None)
@given(st.text(st.characters(), min_size=1, max_size=80), st.text(min_size=1, max_size=9))
def test_any_text_has_an_answer(passage, question):
    found = answerer("utf-8").answer(question, passage)[0]
    assert found.text == passage[found.start : found.end] != ""


def test_the_longest_answer_is_kept_to():
    found = answerer(max_answer=3, n_best=8).answer("What?", ODD[0])
    assert max(c.end - c.start for c in found) <= 3


def test_a_hundred_thousand_characters_are_read_in_one_piece():
    passage = "All work and no play. " * 4600
    found = answerer().answer("What is there no?", passage)[0]
    assert len(passage) > 100_000
    assert found.text == passage[found.start : found.end]


@pytest.mark.parametrize(("question", "passage"), [("", "text"), ("What?", "")])
def test_empty_text_is_a_clear_error(question, passage):
    with pytest.raises(QalibError, match="empty"):
        answerer().answer(question, passage)
