"""Question answerers: n-best, long passages, null answers, any batch."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import examples, tiny_reader

from qalib.data.bytes import ByteConfig
from qalib.data.schema import Example
from qalib.data.windows import WindowConfig
from qalib.errors import QalibError
from qalib.inference import (
    AnswerConfig,
    ByteAnswerConfig,
    ByteQuestionAnswerer,
    QuestionAnswerer,
    strip_span,
)
from qalib.models.byte_reader import ByteReaderConfig, build_byte_reader
from qalib.models.encoder import EncoderReader

FP32 = AnswerConfig(n_best_size=5, precision="fp32")
SMALL = WindowConfig(max_length=48, doc_stride=8, max_query_length=12)
LONG_CONFIG = AnswerConfig(windows=SMALL, precision="fp32", n_best_size=3, tokens_per_batch=400)
YEARS = range(1900, 1930)
LONG = " ".join(f"In {year} the baker Ada{year} met Bo in Town{year}." for year in YEARS)
QUESTIONS = ["Who met Bo in 1907?", "Where?", "When did Ada1921 meet Bo?"]


@pytest.fixture(scope="module")
def reader():
    return tiny_reader(dropout=0.0)


def long_examples():
    return [Example(str(n), question, LONG) for n, question in enumerate(QUESTIONS)]


# --- short passages ---


def test_candidates_are_ranked_distinct_spans_of_the_passage(reader):
    answers = QuestionAnswerer(reader, FP32).answer_many(examples(8))
    for example, found in zip(examples(8), answers, strict=True):
        assert [c.text for c in found] == [example.context[c.start : c.end] for c in found]
        assert len({c.text for c in found}) == 5
        scores = [c.score for c in found]
        assert scores == sorted(scores, reverse=True)
        assert 0 < sum(c.probability for c in found) <= 1 + 1e-6


def test_answers_do_not_depend_on_the_batch(reader):
    answerer, data = QuestionAnswerer(reader, FP32), examples(12)
    together = answerer.answer_many(data)
    backwards = answerer.answer_many(data[::-1])[::-1]
    alone = [answerer.answer_many([example])[0] for example in data]
    for one, other, third in zip(together, backwards, alone, strict=True):
        for a, b, c in zip(one, other, third, strict=True):
            assert (a.start, a.end) == (b.start, b.end) == (c.start, c.end)
            assert a.score == pytest.approx(c.score, abs=1e-4)
    assert answerer.predictions(data) == {
        e.id: found[0].text for e, found in zip(data, together, strict=True)
    }


def test_probabilities_of_all_spans_add_up_to_one(reader):
    everything = replace(FP32, n_best_size=10_000, max_answer_length=500)
    found = QuestionAnswerer(reader, everything).answer("Who?", "Ada met Bo.")
    assert sum(c.probability for c in found) == pytest.approx(1.0, abs=1e-4)


def test_null_answers_compete_only_where_allowed(reader):
    example = examples(1)[0]

    def answers(**changes):
        return QuestionAnswerer(reader, replace(FP32, **changes)).answer_many([example])[0]

    plain, null = answers(), WindowConfig(null=True)
    assert all(c.text for c in plain)
    assert answers(windows=null, null_score_diff_threshold=1e6)[0].text == plain[0].text
    assert answers(windows=null, null_score_diff_threshold=-1e6)[0].text == ""
    assert "" in {c.text for c in answers(windows=null, n_best_size=50)}


@pytest.mark.parametrize(
    ("question", "passage"), [("", "Text."), ("Who?", " \n\t"), (" ", "Text."), ("Who?", "\u00a0")]
)
def test_empty_text_is_refused(reader, question, passage):
    with pytest.raises(QalibError, match="empty"):
        QuestionAnswerer(reader, FP32).answer(question, passage)


@pytest.mark.parametrize(
    "passage", ["?", "\u200d", "a\x00b", "مرحبا بالعالم", "x" * 3000, "\ud800 lone surrogate"]
)
def test_odd_passages_get_an_answer(reader, passage):
    found = QuestionAnswerer(reader, FP32).answer("What is it?", passage)
    assert found
    assert all(passage[c.start : c.end] == c.text for c in found)


@pytest.mark.parametrize("field", ["n_best_size", "max_answer_length", "tokens_per_batch"])
def test_impossible_settings_are_refused(field):
    with pytest.raises(QalibError, match=field):
        AnswerConfig(**{field: 0})


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_model_that_gives_nan_gives_no_answer(value):
    broken = tiny_reader()
    with torch.no_grad():
        broken.encoder.qa_outputs.bias[1] = value
    with pytest.raises(QalibError, match="gives NaN or infinity in fp32"):
        QuestionAnswerer(broken, FP32).answer("Who?", "Ada met Bo.")


def test_inputs_fit_the_positions_of_the_model(reader):
    short = EncoderReader(reader.encoder, reader.tokenizer)
    short.max_length = 128
    assert QuestionAnswerer(short).config.windows == WindowConfig(128, 44, 32)
    with pytest.raises(QalibError, match="384 tokens are longer than the 128"):
        QuestionAnswerer(short, FP32)


def test_what_a_model_raises_is_one_sentence(reader):
    class Failing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.tokenizer, self.weight = reader.tokenizer, torch.nn.Parameter(torch.ones(1))

        def forward(self, batch):
            raise IndexError("index out of range in self")

    with pytest.raises(QalibError, match=r"Failing fails on .* \(1, 16\): index out of range"):
        QuestionAnswerer(Failing(), FP32).answer("Who?", "Ada met Bo.")


# --- long passages ---


def test_a_long_passage_is_decoded_over_all_its_windows(reader):
    """The best span of all windows, and probabilities over the spans of all of them."""
    answerer = QuestionAnswerer(reader, replace(LONG_CONFIG, n_best_size=20))
    example = long_examples()[0]
    windows = list(answerer.make_windows([example]))
    assert len(windows) > 5
    scored = [answerer._score_batch(answerer.collate([w], [example]))[0] for w in windows]
    total = torch.tensor([s.log_total for s in scored]).logsumexp(0).item()
    (prediction,) = answerer.predict([example])
    best = prediction.candidates[0]
    assert best.score == pytest.approx(max(s.scores[0] for s in scored), abs=1e-4)
    for c in prediction.candidates:
        assert LONG[c.start : c.end] == c.text
        assert c.probability == pytest.approx(torch.tensor(c.score - total).exp().item(), rel=1e-3)
    assert prediction.windows == len(windows)
    assert prediction.token_fraction == 1.0


def test_many_questions_are_answered_as_one_by_one(reader):
    answerer = QuestionAnswerer(reader, LONG_CONFIG)
    for question, found in zip(QUESTIONS, answerer.answer_many(long_examples()), strict=True):
        alone = answerer.answer(question, LONG)
        assert [c.text for c in found] == [c.text for c in alone]
        assert found[0].score == pytest.approx(alone[0].score, abs=1e-4)


# --- byte-level readers ---


BYTES = ByteReaderConfig(width=6, head_width=4, embedding=5, mixer="lstm")
ODD = [
    "נולדה בירושלים בשנת 1984 ולמדה שם.",
    "a null \0 byte and a lone \ud800 surrogate",
    "Zoë 😀 Zürich",
    "x",
    "the same passage, many times " * 20,
]
BYTE_EXAMPLES = [
    Example(f"{i}-{question}", question, text)
    for i, text in enumerate(ODD)
    for question in ("?", "Where is it?", "What is said here, and by whom? " * 20)
]


def byte_answerer(unit="characters", **config):
    text = ByteConfig(unit=unit)
    config = ByteAnswerConfig(text=text, precision="fp32", **config)
    return ByteQuestionAnswerer(build_byte_reader(BYTES), config)


@pytest.mark.parametrize("unit", ["characters", "utf-8"])
def test_byte_answers_are_spans_of_the_passage_and_ranked(unit):
    answers = byte_answerer(unit, n_best_size=4).answer_many(BYTE_EXAMPLES)
    for example, found in zip(BYTE_EXAMPLES, answers, strict=True):
        assert found
        assert [c.text for c in found] == [example.context[c.start : c.end] for c in found]
        assert len({c.text for c in found}) == len(found) <= 4
        assert [c.score for c in found] == sorted((c.score for c in found), reverse=True)
        assert 0 < sum(c.probability for c in found) <= 1 + 1e-5


def test_byte_answers_do_not_depend_on_the_batch():
    answerer = byte_answerer(n_best_size=3)
    together = answerer.answer_many(BYTE_EXAMPLES)
    alone = [answerer.answer(e.question, e.context) for e in BYTE_EXAMPLES]
    small = byte_answerer(n_best_size=3, positions_per_batch=64).answer_many(BYTE_EXAMPLES)
    for found, *others in zip(together, alone, small, strict=True):
        scores = [c.score for c in found]  # spans of equal scores may change places
        for other in others:
            assert [c.score for c in other] == pytest.approx(scores, abs=1e-4)
            assert (other[0].start, other[0].end) == (found[0].start, found[0].end)


@settings(max_examples=20)
@given(st.text(st.characters(), min_size=1, max_size=80), st.text(min_size=1, max_size=9))
def test_any_text_has_a_byte_answer(passage, question):
    if not passage.strip() or not question.strip():
        return
    found = byte_answerer("utf-8").answer(question, passage)[0]
    assert found.text == passage[found.start : found.end] != ""


def test_byte_answers_respect_the_longest_answer():
    found = byte_answerer(max_answer_length=3, n_best_size=8).answer("What?", ODD[0])
    assert max(c.end - c.start for c in found) <= 3


def test_a_hundred_thousand_characters_are_processed_in_one_piece():
    passage = "All work and no play. " * 4600
    found = byte_answerer().answer("What is there no?", passage)[0]
    assert len(passage) > 100_000
    assert found.text == passage[found.start : found.end]


@pytest.mark.parametrize(("question", "passage"), [("", "text"), ("What?", "")])
def test_empty_text_is_refused_by_byte_readers(question, passage):
    with pytest.raises(QalibError, match="empty"):
        byte_answerer().answer(question, passage)


@pytest.mark.parametrize(
    ("text", "span", "expected"),
    [
        (" Jose\u0301 came", (1, 5), "Jose\u0301"),  # the tokenizer drops the accent
        ("e\u0323\u0301.", (0, 1), "e\u0323\u0301"),
        ("\u0917\u0941\u0930\u0941 is", (0, 3), "\u0917\u0941\u0930\u0941"),  # no class, but Mn
        ("a  b", (1, 3), ""),
        ("to Rome ", (2, 8), "Rome"),
    ],
)
def test_an_answer_has_no_white_space_around_it_and_keeps_its_marks(text, span, expected):
    start, end = strip_span(text, *span)
    assert text[start:end] == expected


def test_no_answer_and_the_fraction_over_several_windows():
    config = replace(LONG_CONFIG, windows=replace(SMALL, null=True))
    answerer, example = QuestionAnswerer(tiny_reader(dropout=0.0), config), long_examples()[0]
    made = list(answerer.make_windows([example]))
    scored = [answerer._score_batch(answerer.collate([w], [example]))[0] for w in made]
    (prediction,) = answerer.predict([example])
    null, best = min(s.null for s in scored), max(s.scores[0] for s in scored)
    assert prediction.null_odds == pytest.approx(null - best, abs=1e-4)
    parts = [
        (w, replace(s, token_fraction=float(not n)))
        for n, (w, s) in enumerate(zip(made, scored, strict=True))
    ]
    share = len(made[0].offsets) / sum(len(w.offsets) for w in made)
    assert answerer._merge(example, parts).token_fraction == pytest.approx(share)
