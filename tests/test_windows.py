"""Windows: gold spans map back to their characters, and lazy windows equal the others."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import examples

from qalib.data import windows as windows_module
from qalib.data.formats import load_file
from qalib.data.schema import Answer, Example
from qalib.data.windows import (
    LazyWindows,
    WindowConfig,
    fit_windows,
    make_windows,
    replace_surrogates,
    training_windows,
)
from qalib.errors import QalibError
from qalib.models.folders import MINILM, model_folder


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_folder(MINILM))


def test_gold_spans_cover_the_answers(tokenizer):
    data = examples()
    for window in make_windows(data, tokenizer, WindowConfig()):
        example = data[window.example]
        found = {example.context[slice(*window.characters(*span))] for span in window.spans}
        assert found == set(example.answer_texts)
        assert window.weights.sum() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("context", "answer", "seen"),
    [
        ("The teacher is called \u0917\u0941\u0930\u0941", "\u0917\u0941\u0930\u0941", None),
        ("It was written by Rene\u0301", "Rene\u0301", "Rene"),
        ("She likes Rome \n", "Rome \n", "Rome"),
        ("\u200b Anna won.", "\u200b Anna", "Anna"),
    ],
)
def test_an_answer_at_the_edge_may_have_characters_without_a_token(
    tokenizer, context, answer, seen
):
    example = Example("q", "Who?", context, (Answer(answer, context.index(answer)),))
    (window,) = training_windows(make_windows([example], tokenizer, WindowConfig()))
    found = context[slice(*window.characters(*window.spans[0]))]
    assert found == (seen or answer[:-1])


def test_long_passages_are_cut_into_overlapping_windows(tokenizer):
    words = [f"word{n}" for n in range(400)]
    context = " ".join(words)
    answer = Answer("word200", context.index("word200"))
    example = Example("q", "Which word?", context, (answer,))
    config = WindowConfig(max_length=128, doc_stride=32, max_query_length=16)
    windows = make_windows([example], tokenizer, config)
    assert len(windows) > 5
    assert all(len(w) <= 128 for w in windows)
    covered = np.zeros(len(context), dtype=bool)
    for window in windows:
        covered[window.offsets[0, 0] : window.offsets[-1, 1]] = True
    assert covered.all()
    found = [window.characters(*window.spans[0]) for window in training_windows(windows)]
    assert found
    assert set(found) == {(answer.start, answer.end)}


def test_window_without_gold_is_null_only_if_configured(tokenizer):
    example = Example("q", "Why?", "Nobody knows.")
    (plain,) = make_windows([example], tokenizer, WindowConfig())
    assert len(plain.spans) == 0
    (null,) = make_windows([example], tokenizer, WindowConfig(null=True))
    assert null.spans.tolist() == [[0, 0]]


def test_long_questions_are_cut_and_the_passage_kept(tokenizer):
    example = Example("q", "why " * 500, "Because it rained.")
    (window,) = make_windows([example], tokenizer, WindowConfig())
    assert len(window) <= 64 + 3 + len(window.offsets)
    first = window.context_start
    assert window.characters(first, first + len(window.offsets) - 1) == (0, 18)


def test_too_short_windows_are_refused():
    with pytest.raises(QalibError, match="doc_stride"):
        WindowConfig(max_length=128, doc_stride=128)


@pytest.mark.parametrize("longest", [16, 24, 64, 128, 200, 376, 384, 512, None])
def test_default_windows_fit_any_number_of_positions(longest):
    config = fit_windows(longest)  # raises QalibError if the passage has no room
    assert config.max_length == min(longest or 384, 384)
    assert (longest is not None and longest < 384) or config == WindowConfig()


text = st.text(
    alphabet=st.one_of(
        st.sampled_from("abc ,.'\r\n\t-\u0301\u200d\u0130ß\U0001f469\U0001f3fd中文שלום"),
        st.characters(exclude_categories=("Cs",)),
    ),
    min_size=1,
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(context=text, data=st.data())
def test_offsets_point_into_any_text(tokenizer, context, data):
    if not context.strip():
        return
    start = data.draw(st.integers(0, len(context) - 1))
    end = data.draw(st.integers(start + 1, len(context)))
    gold = Answer(context[start:end], start)
    (window,) = make_windows([Example("q", "What?", context, (gold,))], tokenizer, WindowConfig())
    offsets = window.offsets
    assert (offsets[:, 0] <= offsets[:, 1]).all()
    assert (offsets >= 0).all()
    assert (offsets <= len(context)).all()
    for a, b in window.spans:
        first, last = window.characters(a, b)
        visible = [o for o in offsets if o[1] > start and o[0] < end]
        assert first == min(o[0] for o in visible)
        assert last == max(o[1] for o in visible)


def test_real_answers_survive_tokenisation(tokenizer, real_data):
    data = load_file(real_data / "squad-dev-v1.1.json").examples[:400]
    exact = total = 0
    for window in make_windows(data, tokenizer, WindowConfig()):
        golds = {(a.start, a.end) for a in data[window.example].answers}
        for start, end in window.spans:
            total += 1
            exact += window.characters(start, end) in golds
    assert exact / total > 0.97  # the rest are answers that end inside a word


# ------------------------------------------------------------------------------ windows on access

SMALL = WindowConfig(max_length=48, doc_stride=8, max_query_length=12)


def assert_same_windows(data, tokenizer, config):
    """Compare with the overflowing windows of the tokenizer itself."""
    cut = {}
    for question in {e.question for e in data}:
        clean = replace_surrogates(question)
        pieces = tokenizer(clean, add_special_tokens=False, return_offsets_mapping=True)
        ends = [end for _, end in pieces["offset_mapping"]][: config.max_query_length]
        cut[question] = clean[: ends[-1]]
    encoded = tokenizer(
        [cut[e.question] for e in data],
        [replace_surrogates(e.context) for e in data],
        truncation="only_second",
        max_length=config.max_length,
        stride=config.doc_stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    windows = LazyWindows(data, tokenizer, config)
    assert len(windows) == len(encoded["input_ids"])
    for row, window in enumerate(windows):
        inside = [i for i, part in enumerate(encoded.sequence_ids(row)) if part == 1]
        assert window.example == encoded["overflow_to_sample_mapping"][row]
        assert window.input_ids.tolist() == encoded["input_ids"][row]
        assert window.token_type_ids.tolist() == encoded["token_type_ids"][row]
        assert [tuple(o) for o in window.offsets] == [
            encoded["offset_mapping"][row][i] for i in inside
        ]
        assert not inside or window.context_start == inside[0]
        assert not len(window.spans)


WORDS = st.lists(
    st.sampled_from(["Ada", "met", "unforgettably", "?!", "\u200d", "مرحبا", "\ud800"])
)


@settings(max_examples=30, deadline=None)
@given(
    questions=st.lists(WORDS, min_size=1, max_size=3),
    passages=st.lists(st.tuples(WORDS, st.integers(1, 9)), min_size=1, max_size=3),
    stride=st.integers(0, 11),
)
def test_lazy_windows_are_those_of_every_example(tokenizer, questions, passages, stride):
    data = [
        Example("", " ".join(["who", *question]), " ".join(["in", *passage] * times))
        for passage, times in passages
        for question in questions
    ]
    assert_same_windows(data, tokenizer, WindowConfig(32, stride, 10))


def test_lazy_windows_of_passages_in_any_order(tokenizer, monkeypatch):
    data = [e for pair in zip(examples(9), examples(9)[::-1], strict=True) for e in pair]
    assert_same_windows(data, tokenizer, WindowConfig(40, 5, 16))
    windows = LazyWindows(data, tokenizer, SMALL)
    assert len(windows) >= len(data)
    with pytest.raises(IndexError, match="is not among"):
        windows[len(windows)]
    monkeypatch.setattr(windows_module, "GROUP", 100)  # characters
    assert_same_windows(examples(20), tokenizer, SMALL)


def test_a_passage_is_tokenised_once(tokenizer, monkeypatch):
    context = "Ada met Bo. " * 50
    texts = []
    original = type(tokenizer).__call__

    def record(self, *arguments, **options):
        texts.extend(text for batch in arguments for text in batch)
        return original(self, *arguments, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", record)
    LazyWindows([Example("", f"Who is {n}?", context) for n in range(5)], tokenizer, SMALL)
    assert texts.count(context) == 1


def test_cut_questions_are_logged(tokenizer, caplog):
    data = [Example("short", "Who?", "Ada."), Example("long", "who " * 30, "Ada.")]
    LazyWindows(data, tokenizer, SMALL)
    assert "1 of 2 questions are longer than 12 word pieces" in caplog.text
    assert "'long'" in caplog.text


def test_a_long_passage_of_one_word_is_refused(tokenizer):
    with pytest.raises(QalibError, match="is a single word"):
        LazyWindows([Example("", "Who?", "x" * 20_000)], tokenizer, SMALL)
