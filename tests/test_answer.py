"""The answerer: n-best, long passages, null answers, and independence of the batch."""

from dataclasses import replace

import pytest
import torch
from tiny import examples, tiny_reader

from qalib.answer import LIGHT, AnswerConfig, Answerer
from qalib.data.features import WindowConfig
from qalib.data.squad import Example
from qalib.errors import QalibError
from qalib.skim.wishes import Wish

FP32 = AnswerConfig(n_best=5, precision="fp32")


@pytest.fixture(scope="module")
def reader():
    return tiny_reader(dropout=0.0)


def test_candidates_are_ranked_distinct_spans_of_the_passage(reader):
    for example, found in zip(
        examples(8), Answerer(reader, FP32).answer_many(examples(8)), strict=True
    ):
        assert [c.text for c in found] == [example.context[c.start : c.end] for c in found]
        assert len({c.text for c in found}) == 5
        scores = [c.score for c in found]
        assert scores == sorted(scores, reverse=True)
        assert 0 < sum(c.probability for c in found) <= 1 + 1e-6


def test_answers_do_not_depend_on_the_company(reader):
    answerer, asked = Answerer(reader, FP32), examples(12)
    together = answerer.answer_many(asked)
    backwards = answerer.answer_many(asked[::-1])[::-1]
    alone = [answerer.answer_many([example])[0] for example in asked]
    for one, other, third in zip(together, backwards, alone, strict=True):
        for a, b, c in zip(one, other, third, strict=True):
            assert (a.start, a.end) == (b.start, b.end) == (c.start, c.end)
            assert a.score == pytest.approx(c.score, abs=1e-4)


def test_a_long_passage_is_decoded_over_all_its_windows(reader):
    small = replace(FP32, windows=WindowConfig(max_length=64, stride=16, max_question=16))
    passage = " ".join(f"In year {n} nothing happened." for n in range(1000, 1100))
    found = Answerer(reader, small).answer("When?", passage)
    assert all(passage[c.start : c.end] == c.text for c in found)
    scores = []
    for begin in range(0, len(passage), 40):  # a literal look at many short stretches
        part = passage[begin : begin + 60].strip()
        scores.append(Answerer(reader, small).answer("When?", part)[0].score)
    assert found[0].score > sum(scores) / len(scores)


def test_probabilities_of_all_spans_add_up_to_one(reader):
    everything = replace(FP32, n_best=10_000, max_answer_tokens=500)
    found = Answerer(reader, everything).answer("Who?", "Ada met Bo.")
    assert sum(c.probability for c in found) == pytest.approx(1.0, abs=1e-4)


def test_null_answers_compete_only_where_allowed(reader):
    example = examples(1)[0]
    plain = Answerer(reader, FP32).answer_many([example])[0]
    assert all(c.text for c in plain)
    null = replace(FP32, windows=WindowConfig(null=True))
    never = Answerer(reader, replace(null, null_threshold=1e6)).answer_many([example])[0]
    always = Answerer(reader, replace(null, null_threshold=-1e6)).answer_many([example])[0]
    assert never[0].text == plain[0].text
    assert always[0].text == ""
    many = Answerer(reader, replace(null, n_best=50)).answer_many([example])[0]
    assert "" in {c.text for c in many}


def test_token_probabilities_cover_the_passage(reader):
    passage = "Ada met Bo in Oslo."
    rows = Answerer(reader, FP32).token_probabilities("Where?", passage)
    assert "".join(text for text, _, _ in rows) == passage.replace(" ", "")
    assert sum(start for _, start, _ in rows) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(("question", "passage"), [("", "Text."), ("Who?", "  "), ("  ", "Text.")])
def test_empty_text_is_refused(reader, question, passage):
    with pytest.raises(QalibError, match="empty"):
        Answerer(reader, FP32).answer(question, passage)


@pytest.mark.parametrize(
    "passage", ["?", "\u200d", "a\x00b", "مرحبا بالعالم", "x" * 3000, "\ud800 lone surrogate"]
)
def test_odd_passages_get_an_answer(reader, passage):
    found = Answerer(reader, FP32).answer("What is it?", passage)
    assert found
    assert all(passage[c.start : c.end] == c.text for c in found)


def test_no_questions_give_no_answers(reader):
    assert Answerer(reader, FP32).answer_many([]) == []


def test_impossible_settings_are_refused():
    with pytest.raises(QalibError, match="n_best"):
        AnswerConfig(n_best=0)


def test_duplicated_ids_do_not_mix_answers(reader):
    one, two = Example("same", "Who?", "Ada"), Example("same", "Who?", "Bo")
    found = Answerer(reader, FP32).answer_many([one, two])
    assert found[0][0].text in "Ada"
    assert found[1][0].text in "Bo"


@pytest.mark.parametrize(
    ("precision", "wish", "tokens"),
    [("fp32", None, 96), ("bf16", None, LIGHT), ("bf16", Wish(keep=0.95), 96)],
)
def test_in_bf16_short_inputs_are_not_judged_unless_there_is_a_wish(precision, wish, tokens):
    """There asking costs more than it saves; but what was promised is kept."""
    if torch.cuda.is_available():
        pytest.skip("this is about processors")
    config = AnswerConfig(precision=precision)
    assert (
        Answerer.load(config=config, skim=True, wish=wish).reader.skimmer.config.min_tokens
        == tokens
    )
