"""Clozes: their answers stand where they say, their words come from the answer's sentence."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qalib.data.almanac import AlmanacConfig, build_almanac
from qalib.data.cloze import WORD, cloze_examples, question_word_for
from qalib.data.squad import Answer, Example, check_example

PASSAGE = (
    "The mill was built by Anna Bell in 1823 and burnt down twice. It stands in Upper Tolland."
)
ASKING = {"who", "what", "when", "how", "many"}


def asked(passage: str = PASSAGE, answer: str = "burnt down twice") -> list[Example]:
    return [Example("q", "What happened?", passage, (Answer(answer, passage.index(answer)),))]


def test_phrases_and_gold_answers_are_asked_for():
    made = cloze_examples(asked(), 20, keep=1.0)
    questions = {example.answers[0].text: example.question for example in made}
    assert questions["Anna Bell"] == "who the mill was built by in 1823 and burnt down twice?"
    assert questions["1823"].startswith("when the mill was built")
    assert questions["burnt down twice"].startswith("what the mill")
    assert questions["Upper Tolland"] == "who it stands in?"


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 8), st.floats(0.2, 1.0))
def test_clozes_are_valid_examples(seed, per_passage, keep):
    data = build_almanac(AlmanacConfig(questions=10, length=300)).examples
    made = cloze_examples(data, per_passage, seed, keep)
    counts: dict[str, int] = {}
    for example in made:
        check_example(example, example.id)
        answer = example.answers[0]
        assert example.context[answer.start : answer.end] == answer.text
        counts[example.context] = counts.get(example.context, 0) + 1
        words = set(WORD.findall(example.context.lower()))
        assert set(WORD.findall(example.question)) - ASKING <= words
    assert max(counts.values(), default=0) <= per_passage
    assert len({example.id for example in made}) == len(made)
    assert made == cloze_examples(data, per_passage, seed, keep)


def test_a_passage_without_phrases_gives_none():
    assert cloze_examples([Example("q", "?", "nothing here but words")], 5) == []


@pytest.mark.parametrize(
    ("answer", "word"),
    [("1823", "when"), ("4 May", "when"), ("1,200", "how many"), ("Anna Bell", "who")],
)
def test_question_words_fit(answer, word):
    assert question_word_for(answer) == word
    assert question_word_for("the green one") == "what"
