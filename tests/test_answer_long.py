"""Long passages: many questions on one, windows made when asked for, windows dropped early."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import examples, tiny_reader

from qalib.answer import AnswerConfig, Answerer
from qalib.data.features import WindowConfig, make_windows
from qalib.data.shared_windows import SharedWindows
from qalib.data.squad import Example
from qalib.errors import QalibError
from qalib.skim.predictors import PredictorConfig
from qalib.skim.reader import SkimReader
from qalib.skim.settings import SkimConfig
from qalib.skim.skimmer import Skimmer
from qalib.skim.wishes import Wish

SMALL = WindowConfig(max_length=48, stride=8, max_question=12)
CONFIG = AnswerConfig(windows=SMALL, precision="fp32", n_best=3, tokens_per_batch=400)
YEARS = range(1900, 1930)
LONG = " ".join(f"In {year} the baker Ada{year} met Bo in Town{year}." for year in YEARS)
QUESTIONS = ["Who met Bo in 1907?", "Where?", "When did Ada1921 meet Bo?"]


@pytest.fixture(scope="module")
def reader():
    return tiny_reader(dropout=0.0)


@pytest.fixture
def skims(reader):
    """A reader that keeps every block at its skim point, but for what it drops."""
    config = SkimConfig(PredictorConfig("question", block_size=8), (1,), (1,), (0.0,))
    torch.manual_seed(3)
    skimmer = Skimmer.beside(reader.encoder, config)
    with torch.no_grad():
        for parameter in skimmer.parameters():
            parameter.add_(torch.randn_like(parameter))  # scores far from each other
    return SkimReader(reader, skimmer.eval())


# Windows that are made when they are asked for


def assert_same_windows(asked, tokenizer, config):
    """One by one as ``make_windows`` makes them."""
    expected = make_windows([replace(e, answers=()) for e in asked], tokenizer, config)
    for got, window in zip(SharedWindows(asked, tokenizer, config), expected, strict=True):
        assert got.example == window.example
        assert got.input_ids.dtype == window.input_ids.dtype
        assert np.array_equal(got.input_ids, window.input_ids)
        assert np.array_equal(got.token_type_ids, window.token_type_ids)
        assert np.array_equal(got.offsets, window.offsets)
        assert got.first == window.first or not len(window.offsets)
        assert not len(got.spans)


WORDS = st.lists(
    st.sampled_from(["Ada", "met", "unforgettably", "?!", "\u200d", "مرحبا", "\ud800"])
)


@settings(max_examples=30, deadline=None)
@given(
    questions=st.lists(WORDS, min_size=1, max_size=3),
    passages=st.lists(st.tuples(WORDS, st.integers(1, 9)), min_size=1, max_size=3),
    stride=st.integers(0, 11),
)
def test_shared_windows_are_those_of_every_example(reader, questions, passages, stride):
    asked = [
        Example("", " ".join(["who", *question]), " ".join(["in", *passage] * times))
        for passage, times in passages
        for question in questions
    ]
    assert_same_windows(asked, reader.tokenizer, WindowConfig(32, stride, 10))


def test_examples_of_different_passages_in_any_order(reader):
    asked = [e for pair in zip(examples(9), examples(9)[::-1], strict=True) for e in pair]
    assert_same_windows(asked, reader.tokenizer, WindowConfig(40, 5, 16))
    windows = SharedWindows(asked, reader.tokenizer, SMALL)
    assert len(windows) >= len(asked)
    with pytest.raises(IndexError, match="none has the number"):
        windows[len(windows)]


def test_a_passage_is_tokenised_once(reader, monkeypatch):
    seen = []
    original = type(reader.tokenizer).__call__

    def watch(self, *texts, **how):
        seen.extend(text for batch in texts for text in batch)
        return original(self, *texts, **how)

    monkeypatch.setattr(type(reader.tokenizer), "__call__", watch)
    Answerer(reader, CONFIG).answer_questions(QUESTIONS * 3, LONG)
    assert seen.count(LONG) == 1


def test_texts_are_handed_on_in_groups(reader, monkeypatch):
    from qalib.data import shared_windows

    monkeypatch.setattr(shared_windows, "GROUP", 100)  # characters
    assert_same_windows(examples(20), reader.tokenizer, SMALL)


# Many questions on one passage


def test_many_questions_are_answered_as_one_by_one(reader):
    answerer = Answerer(reader, CONFIG)
    together = answerer.answer_questions(QUESTIONS, LONG)
    assert len(together) == len(QUESTIONS)
    for question, found in zip(QUESTIONS, together, strict=True):
        alone = answerer.answer(question, LONG)
        assert [c.text for c in found] == [c.text for c in alone]
        assert found[0].score == pytest.approx(alone[0].score, abs=1e-4)
    assert answerer.answer_questions([], LONG) == []


def test_an_empty_question_among_many_is_named(reader):
    with pytest.raises(QalibError, match="question '2': the question is empty"):
        Answerer(reader, CONFIG).answer_questions(["Who?", " "], LONG)


# Windows that are dropped


def asked(passage: str = LONG) -> list[Example]:
    return [Example(str(n), question, passage) for n, question in enumerate(QUESTIONS)]


def best_blocks(skims) -> list[float]:
    """The score of the best block of every window, as probabilities."""
    answerer = Answerer(skims, CONFIG)
    windows = answerer.cut(asked())
    scored = answerer._score(windows, range(len(windows)), asked())
    return torch.tensor([scored[i].best for i in range(len(windows))]).sigmoid().tolist()


def test_a_bound_of_0_drops_nothing(skims, reader):
    plain = Answerer(reader, CONFIG).answer_all(asked())
    got = Answerer(skims, CONFIG).answer_all(asked())
    for one, other in zip(plain, got, strict=True):
        assert (other.read, other.dropped) == (1.0, 0)
        assert one.windows == other.windows > 5
        assert [c.text for c in one.candidates] == [c.text for c in other.candidates]
        assert one.candidates[0].score == pytest.approx(other.candidates[0].score, abs=1e-4)


def test_what_is_dropped_is_no_candidate_and_nothing_else_changes(skims):
    best = sorted(best_blocks(skims))
    middle = len(best) // 2
    bound = (best[middle] + best[middle + 1]) / 2
    answerer = Answerer(skims, replace(CONFIG, n_best=50))
    whole, windows = answerer.answer_all(asked()), answerer.cut(asked())
    skims.skimmer.tune(drop=bound)
    got = answerer.answer_all(asked())
    scored = answerer._score(windows, range(len(windows)), asked(), range(len(windows)))
    assert 0 < sum(answered.dropped for answered in got) < len(windows)
    for number, (answered, before) in enumerate(zip(got, whole, strict=True)):
        stay = [i for i, w in enumerate(windows) if w.example == number and not scored[i].dropped]
        if not stay:  # all were dropped, and the best one is read after all
            mine = [i for i, window in enumerate(windows) if window.example == number]
            stay = [max(mine, key=lambda i: scored[i].best)]
        assert answered.windows - answered.dropped == len(stay)
        reach = [(windows[i].offsets[0, 0], windows[i].offsets[-1, 1]) for i in stay]
        assert all(any(a <= c.start < c.end <= b for a, b in reach) for c in answered.candidates)
        scores = {(c.start, c.end): c.score for c in before.candidates}
        for c in answered.candidates:
            if (c.start, c.end) in scores:
                assert c.score == pytest.approx(scores[c.start, c.end], abs=1e-3)
        assert sum(c.probability for c in answered.candidates) <= 1 + 1e-6
        assert (answered.read < 1) == (answered.dropped > 0)


def test_of_a_passage_the_best_window_is_always_read(skims):
    best = best_blocks(skims)
    answerer = Answerer(skims, CONFIG)
    windows = answerer.cut(asked())
    skims.skimmer.tune(drop=1.0)
    got = answerer.answer_all(asked())
    for number, answered in enumerate(got):
        mine = [i for i, window in enumerate(windows) if window.example == number]
        window = windows[max(mine, key=lambda i: best[i])]
        begin, end = int(window.offsets[0, 0]), int(window.offsets[-1, 1])
        (alone,) = answerer.answer_all([Example("", QUESTIONS[number], LONG[begin:end])])
        assert (answered.windows, answered.dropped) == (len(mine), len(mine) - 1)
        assert [c.text for c in answered.candidates] == [c.text for c in alone.candidates]
        assert answered.candidates[0].start == alone.candidates[0].start + begin
        assert answered.candidates[0].score == pytest.approx(alone.candidates[0].score, abs=1e-3)
        assert answered.read < 0.2


def test_a_passage_of_one_window_is_read(skims):
    skims.skimmer.tune(drop=1.0)
    (answered,) = Answerer(skims, CONFIG).answer_all([Example("", "Who?", "Ada met Bo in Oslo.")])
    assert (answered.read, answered.windows, answered.dropped) == (1.0, 1, 0)
    assert answered.candidates[0].probability > 0


@pytest.mark.parametrize("drop", [0.5, 1.0])
def test_dropping_does_not_depend_on_the_company(skims, drop):
    skims.skimmer.tune(drop=drop)
    one = Answerer(skims, CONFIG).answer_all(asked())
    few = Answerer(skims, replace(CONFIG, tokens_per_batch=1)).answer_all(asked()[::-1])[::-1]
    alone = [Answerer(skims, CONFIG).answer_all([example])[0] for example in asked()]
    for a, b, c in zip(one, few, alone, strict=True):
        assert a.dropped == b.dropped == c.dropped
        assert a.read == pytest.approx(b.read) == pytest.approx(c.read)
        assert [x.text for x in a.candidates] == [x.text for x in b.candidates]
        assert [x.text for x in a.candidates] == [x.text for x in c.candidates]


def test_no_answer_is_not_said_by_what_was_dropped(skims):
    """The score of "no answer" is the least of all windows that were read."""
    null = replace(CONFIG, windows=replace(SMALL, null=True), null_threshold=-1e6)
    skims.skimmer.tune(drop=1.0)
    for answered in Answerer(skims, null).answer_all(asked()):
        nothing = answered.candidates[0]
        assert nothing.text == ""
        assert nothing.score > -1e6
        assert nothing.probability > 0


# What is no proper input


def test_long_questions_are_cut_and_named(reader, caplog):
    wordy = Example("wordy", "Who " + "really " * 40 + "met Bo?", "Ada met Bo in Oslo.")
    with caplog.at_level(logging.WARNING):
        found = Answerer(reader, CONFIG).answer_many([*examples(2), wordy])
    assert len(found) == 3
    said = [record.getMessage() for record in caplog.records]
    text = "1 of 3 questions are longer than 12 word pieces and are cut there, first 'wordy'."
    assert said == [text]


def test_a_question_that_just_fits_is_not_named(reader, caplog):
    with caplog.at_level(logging.WARNING):
        Answerer(reader, CONFIG).answer("who " * 12, "Ada met Bo in Oslo.")
    assert not caplog.records


def test_a_long_passage_without_spaces_is_refused(reader):
    with pytest.raises(QalibError, match=r"100,000 characters is one single word.*spaces"):
        Answerer(reader, CONFIG).answer("Who?", "x" * 100_000)
    some = Answerer(reader, CONFIG).answer("Who?", "x" * 100_000 + " met Bo.")
    assert some[0].text


@pytest.mark.parametrize("passage", ["", " \n\t ", "\u00a0"])
def test_empty_passages_are_refused(reader, passage):
    with pytest.raises(QalibError, match="the context is empty"):
        Answerer(reader, CONFIG).answer("Who?", passage)


def test_a_passage_of_one_token_is_the_answer(reader, skims):
    for each in (reader, skims):
        assert Answerer(each, CONFIG).answer("Who?", "Ada")[0].text in "Ada"


def test_wishes_and_bounds_are_for_skimming():
    for told in ({"wish": Wish(keep=0.9)}, {"drop": 0.1}):
        with pytest.raises(QalibError, match="is for skimming"):
            Answerer.load(**told)
