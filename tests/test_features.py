"""Windows: every gold span comes back as the characters it stands for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import examples

from qalib.data.features import WindowConfig, make_windows, training_windows
from qalib.data.squad import Answer, Example, load_squad
from qalib.errors import QalibError
from qalib.readers.encoder_reader import MINILM, model_folder


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_folder(MINILM))


def test_gold_spans_cover_the_answers(tokenizer):
    asked = examples()
    for window in make_windows(asked, tokenizer, WindowConfig()):
        example = asked[window.example]
        texts = set()
        for start, end in window.spans:
            a, b = window.characters(start, end)
            texts.add(example.context[a:b])
        assert texts == set(example.answer_texts)
        assert window.weights.sum() == pytest.approx(1.0)


def test_long_passages_are_read_through_overlapping_windows(tokenizer):
    words = [f"word{n}" for n in range(400)]
    context = " ".join(words)
    answer = Answer("word200", context.index("word200"))
    example = Example("q", "Which word?", context, (answer,))
    config = WindowConfig(max_length=128, stride=32, max_question=16)
    windows = make_windows([example], tokenizer, config)
    assert len(windows) > 5
    assert all(len(w) <= 128 for w in windows)
    covered = np.zeros(len(context), dtype=bool)
    for window in windows:
        covered[window.offsets[0, 0] : window.offsets[-1, 1]] = True
    assert covered.all()
    holders = training_windows(windows)
    assert holders
    for window in holders:
        a, b = window.characters(*window.spans[0])
        assert (a, b) == (answer.start, answer.end)


def test_window_without_gold_is_null_only_if_asked(tokenizer):
    example = Example("q", "Why?", "Nobody knows.")
    (plain,) = make_windows([example], tokenizer, WindowConfig())
    assert len(plain.spans) == 0
    (null,) = make_windows([example], tokenizer, WindowConfig(null=True))
    assert null.spans.tolist() == [[0, 0]]


def test_long_questions_are_cut_and_the_passage_kept(tokenizer):
    example = Example("q", "why " * 500, "Because it rained.")
    (window,) = make_windows([example], tokenizer, WindowConfig())
    assert len(window) <= 64 + 3 + len(window.offsets)
    assert window.characters(window.first, window.first + len(window.offsets) - 1) == (0, 18)


def test_no_room_for_the_passage_is_refused():
    with pytest.raises(QalibError, match="stride"):
        WindowConfig(max_length=128, stride=128)


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
    asked = load_squad(real_data / "squad-dev-v1.1.json").examples[:400]
    exact = total = 0
    for window in make_windows(asked, tokenizer, WindowConfig()):
        golds = {(a.start, a.end) for a in asked[window.example].answers}
        for start, end in window.spans:
            total += 1
            exact += window.characters(start, end) in golds
    assert exact / total > 0.97  # the rest are answers that end inside a word
