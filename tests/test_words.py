"""Words: tokens with offsets and features, windows, and batches."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from whole_words import WORD, WholeWords

from qalib.data.schema import Answer, Example
from qalib.data.words import (
    MATCHES,
    TOKEN_FEATURES,
    WordConfig,
    WordPieces,
    collate_words,
    stem,
    word_windows,
)
from qalib.errors import QalibError
from qalib.models.folders import MINILM, model_folder

PASSAGE = (
    "Zoë founded the BBC-2 bakery in 1984; bakeries, founded later, unfounded Ωmega \U0001f600."
)
WORDS = WholeWords({word: n for n, word in enumerate(["the", "founded", "BBC", "in"], 1)})


@pytest.fixture(scope="session")
def pieces() -> WordPieces:
    from transformers import AutoTokenizer

    return WordPieces(AutoTokenizer.from_pretrained(model_folder(MINILM)))


def example(question: str, passage: str, *answers: str) -> Example:
    return Example("q", question, passage, tuple(Answer(a, passage.index(a)) for a in answers))


# Tokens


def test_offsets_give_back_the_text(pieces):
    (tokens,) = pieces.tokenize([PASSAGE])
    texts = [PASSAGE[a:b] for a, b in tokens.offsets.tolist()]
    assert "".join(texts) == "".join(PASSAGE.split())
    words = [PASSAGE[a:b] for a, b in dict.fromkeys(map(tuple, tokens.words.tolist()))]
    assert words == WORD.findall(PASSAGE)
    assert (tokens.offsets[:, 0] >= tokens.words[:, 0]).all()
    assert (tokens.offsets[:, 1] <= tokens.words[:, 1]).all()
    names = pieces.tokenizer.convert_ids_to_tokens(tokens.ids.tolist())
    assert {"un", "##founded"} <= set(names)
    spelt = [(name, x.lower()) for name, x in zip(names, texts, strict=True) if x.isascii()]
    assert all(name.removeprefix("##") == text for name, text in spelt)
    continues = [name.startswith("##") for name in names]
    assert continues == (tokens.offsets[:, 0] > tokens.words[:, 0]).tolist()


@settings(max_examples=50)
@given(texts=st.lists(st.text(max_size=30), min_size=1, max_size=3))
def test_any_text_has_tokens_in_order(texts, pieces):
    for text, tokens in zip(texts, pieces.tokenize(texts), strict=True):
        assert len(tokens.ids) == len(tokens.offsets) == len(tokens.words) >= 1
        assert (np.diff(tokens.offsets[:, 0]) >= 0).all()
        assert 0 <= tokens.offsets.min() <= tokens.offsets.max() <= len(text)


@pytest.mark.parametrize("text", ["\0", "\u200b", "\ud800?", "", " \n"])
def test_odd_texts_have_tokens_too(text, pieces):
    (tokens,) = pieces.tokenize([text])
    assert len(tokens.ids) == len(tokens.offsets) == len(tokens.words) >= 1
    (window,) = word_windows([Example("q", text, f"A {text} b")], pieces)
    assert np.isfinite(window.question.features).all()
    assert collate_words([window]).mask.any()


def test_a_slow_tokenizer_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(QalibError, match="Slow gives no character offsets"):
        WordPieces(Slow())


def test_features_are_those_of_the_word_as_written():
    (window,) = word_windows([example("?", PASSAGE)], WORDS)
    words = [PASSAGE[a:b] for a, b in window.offsets.tolist()]
    features = dict(zip(TOKEN_FEATURES, window.passage.features.T, strict=True))

    def chosen(name: str) -> list[str]:
        return [word for word, value in zip(words, features[name], strict=True) if value == 1]

    assert chosen("title") == ["Zoë", "BBC", "Ωmega"]
    assert chosen("upper") == ["BBC"]
    assert chosen("digit") == ["2", "1984"]
    assert chosen("symbol") == ["-", ";", ",", ",", "\U0001f600", "."]
    assert chosen("frequency") == ["founded", ",", "founded", ","]
    assert features["frequency"][0] == 0.5
    assert chosen("continues") == []


def test_pieces_of_a_word_look_like_their_word(pieces):
    (window,) = word_windows([example("?", "A Qwzrtx.")], pieces)
    features = dict(zip(TOKEN_FEATURES, window.passage.features.T, strict=True))
    inside = len(window) - 3  # pieces of the word behind its first
    assert inside > 0
    assert features["continues"].tolist() == [0, 0, *[1] * inside, 0]
    assert features["title"].tolist() == [1, *[1] * (inside + 1), 0]
    letters = window.passage.characters[1:-1, :7]
    assert (letters == [*b"Qwzrtx", 0]).all()


@pytest.mark.parametrize(
    "forms",
    [
        ("locate", "locates", "located", "locating", "location", "locations"),
        ("found", "founder", "founders", "founded", "founding"),
        ("city", "cities"),
        ("is", "is"),
    ],
)
def test_forms_of_a_word_have_one_stem(forms):
    assert len({stem(form) for form in forms}) == 1


def test_matches_are_those_of_their_definition():
    question = "Who FOUNDED the bakery, founder?"
    (window,) = word_windows([example(question, PASSAGE)], WORDS)
    question_words, words = WORD.findall(question), WORD.findall(PASSAGE)
    how = {
        "token": str.lower,
        "cased": str,
        "uncased": str.lower,
        "stem": lambda word: stem(word.lower()),
    }
    for column, name in enumerate(MATCHES):
        for matches, own, others in (
            (window.passage_matches, words, question_words),
            (window.question_matches, question_words, words),
        ):
            known = {how[name](word) for word in others}
            assert matches[:, column].tolist() == [how[name](word) in known for word in own]
    assert (
        window.passage_matches[:, MATCHES.index("stem")].sum() > window.passage_matches[:, 2].sum()
    )


# Windows


def test_gold_spans_decode_to_the_gold_answers(pieces):
    golds = ("Zoë", "BBC-2 bakery", "1984", PASSAGE, ".")
    (window,) = word_windows([example("?", PASSAGE, *golds, "1984")], pieces)
    decoded = [PASSAGE[slice(*window.characters(a, b))] for a, b in window.spans.tolist()]
    assert decoded == list(golds)
    assert window.weights.tolist() == pytest.approx([1 / 6, 1 / 6, 2 / 6, 1 / 6, 1 / 6])


@given(words=st.integers(1, 60), room=st.integers(2, 20), stride=st.integers(0, 19), data=st.data())
def test_no_answer_shorter_than_the_overlap_is_lost(words, room, stride, data):
    stride = min(stride, room - 1)
    passage = " ".join(f"w{n}" for n in range(words))
    begin = data.draw(st.integers(0, words - 1))
    length = data.draw(st.integers(1, max(1, min(stride, words - begin))))
    answer = " ".join(f"w{n}" for n in range(begin, begin + length))
    start = len(" ".join(f"w{n}" for n in range(begin))) + (begin > 0)
    config = WordConfig(max_passage=room, doc_stride=stride)
    windows = word_windows([Example("q", "?", passage, (Answer(answer, start),))], WORDS, config)
    assert all(1 <= len(window) <= room for window in windows)
    read = {tuple(span) for window in windows for span in window.offsets.tolist()}
    assert len(read) == words
    found = [
        passage[slice(*window.characters(a, b))]
        for window in windows
        for a, b in window.spans.tolist()
    ]
    assert answer in found
    assert set(found) == {answer}


def test_questions_about_a_passage_share_its_arrays_and_long_ones_are_cut():
    windows = word_windows(
        [example("Who?", PASSAGE), example("When " * 60, PASSAGE)],
        WORDS,
        WordConfig(max_query_length=9),
    )
    assert np.shares_memory(windows[0].passage.features, windows[1].passage.features)
    assert [window.example for window in windows] == [0, 1]
    assert [len(window.question) for window in windows] == [2, 9]


@pytest.mark.parametrize(
    "wrong", [{"doc_stride": 400}, {"max_query_length": 0}, {"characters": 0}, {"doc_stride": -1}]
)
def test_wrong_settings_are_named(wrong):
    with pytest.raises(QalibError, match=next(iter(wrong))):
        WordConfig(**wrong)


# Batches


def test_a_batch_holds_its_windows_and_nothing_else():
    examples = [
        example("Who founded the bakery?", PASSAGE, "Zoë"),
        example("?", "\0 x"),
        example("When was it founded, and by whom?", PASSAGE[8:], "1984", "in 1984"),
    ]
    windows = word_windows(examples, WORDS)
    batch = collate_words(windows)
    assert batch.mask.shape[1] % 8 == batch.inputs["question"].shape[1] % 8 == 0
    assert batch.num_tokens == sum(len(w) + len(w.question) for w in windows)
    assert len(torch.unique(batch.inputs["words"], dim=0)) == len(batch.inputs["words"])
    for row, window in enumerate(windows):
        for name, text, matches in (
            ("passage", window.passage, window.passage_matches),
            ("question", window.question, window.question_matches),
        ):
            real = batch.mask if name == "passage" else batch.inputs["question_real"]
            assert real[row].tolist() == [n < len(text) for n in range(real.shape[1])]
            assert batch.inputs[name][row, : len(text)].tolist() == text.ids.tolist()
            features = np.concatenate([matches, text.features], axis=1)
            padded = batch.inputs[f"{name}_features"][row]
            assert np.array_equal(padded[: len(text)], features)
            assert (padded[len(text) :] == 0).all()
            letters = batch.inputs["words"][batch.inputs[f"{name}_words"][row, : len(text)]]
            assert np.array_equal(letters, text.characters)
        kept = batch.answer_weights[row] > 0
        assert batch.answer_spans[row][kept].tolist() == window.spans.tolist()
        assert batch.answer_weights[row][kept].tolist() == window.weights.tolist()


def test_a_piece_inside_a_word_is_not_the_word(pieces):
    (window,) = word_windows([Example("q", "Who founded it?", "unfounded")], pieces)
    assert len(window) == 2
    assert not window.passage_matches.any()
