"""Tokens with offsets, what is seen of them, windows, batches, and vectors made from counts."""

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qalib.data.squad import Answer, Example
from qalib.data.word_batches import collate_words
from qalib.data.word_features import (
    ALIKE,
    LOOKS,
    WORD,
    WordConfig,
    WordPieces,
    Words,
    stem,
    word_windows,
)
from qalib.errors import QalibError
from qalib.readers.word_vectors import (
    WordVectors,
    glove_vectors,
    load_vectors,
    own_vectors,
    piece_vectors,
    save_vectors,
)

PASSAGE = (
    "Zoë founded the BBC-2 bakery in 1984; bakeries, founded later, unfounded Ωmega \U0001f600."
)
WORDS = Words({word: n for n, word in enumerate(["the", "founded", "BBC", "in"], 1)})


@pytest.fixture(scope="session")
def pieces() -> WordVectors:
    return piece_vectors()


def example(question: str, passage: str, *answers: str) -> Example:
    return Example("q", question, passage, tuple(Answer(a, passage.index(a)) for a in answers))


# Tokens


@pytest.mark.parametrize("unit", ["pieces", "words"])
def test_offsets_give_back_the_text(unit, pieces):
    vocabulary = pieces.vocabulary if unit == "pieces" else WORDS
    (cut,) = vocabulary.cut([PASSAGE])
    texts = [PASSAGE[a:b] for a, b in cut.offsets.tolist()]
    assert "".join(texts) == "".join(PASSAGE.split())
    assert [PASSAGE[a:b] for a, b in dict.fromkeys(map(tuple, cut.words.tolist()))] == (
        WORD.findall(PASSAGE)
    )
    inside = (cut.offsets[:, 0] >= cut.words[:, 0]) & (cut.offsets[:, 1] <= cut.words[:, 1])
    assert inside.all()
    if unit == "pieces":
        tokens = pieces.vocabulary.tokenizer.convert_ids_to_tokens(cut.ids.tolist())
        assert "un" in tokens or "unfounded" in tokens
        spelt = [(t, x.lower()) for t, x in zip(tokens, texts, strict=True) if x.isascii()]
        assert all(token.removeprefix("##") == text for token, text in spelt)
        continues = [token.startswith("##") for token in tokens]
        assert continues == (cut.offsets[:, 0] > cut.words[:, 0]).tolist()
    else:
        assert cut.ids.tolist()[:5] == [0, 2, 1, 3, 0]  # "Zoë" and "-" have no row


@given(st.lists(st.text(max_size=30), min_size=1, max_size=4))
def test_any_text_has_tokens_in_order(texts):
    for text, cut in zip(texts, WORDS.cut(texts), strict=True):
        assert len(cut.ids) == len(cut.offsets) >= 1
        flat = cut.offsets.ravel()
        assert (np.diff(flat) >= 0).all()
        assert 0 <= flat[0] <= flat[-1] <= len(text)
        assert "".join(text[a:b] for a, b in cut.offsets.tolist()).split() or not text.split()


@pytest.mark.parametrize("text", ["\0", "\u200b", "\ud800?", "", " \n"])
def test_odd_texts_have_tokens_too(text, pieces):
    (cut,) = pieces.vocabulary.cut([text])
    assert len(cut.ids) == len(cut.offsets) == len(cut.words) >= 1
    (window,) = word_windows([Example("q", text, f"A {text} b")], pieces.vocabulary)
    assert np.isfinite(window.question.looks).all()
    assert collate_words([window]).mask.any()


def test_a_slow_tokenizer_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(QalibError, match="Slow gives no character offsets"):
        WordPieces(Slow())


def test_looks_are_those_of_the_word_as_written():
    (window,) = word_windows([example("?", PASSAGE)], WORDS)
    words = [PASSAGE[a:b] for a, b in window.offsets.tolist()]
    looks = dict(zip(LOOKS, window.passage.looks.T, strict=True))

    def chosen(name: str) -> list[str]:
        return [word for word, value in zip(words, looks[name], strict=True) if value == 1]

    assert chosen("title") == ["Zoë", "BBC", "Ωmega"]
    assert chosen("upper") == ["BBC"]
    assert chosen("digit") == ["2", "1984"]
    assert chosen("symbol") == ["-", ";", ",", ",", "\U0001f600", "."]
    assert chosen("frequency") == ["founded", ",", "founded", ","]
    assert looks["frequency"][0] == 0.5
    assert chosen("continues") == []


def test_pieces_of_a_word_look_like_their_word(pieces):
    (window,) = word_windows([example("?", "A Qwzrtx.")], pieces.vocabulary)
    looks = dict(zip(LOOKS, window.passage.looks.T, strict=True))
    inside = len(window) - 3  # pieces of the word behind its first
    assert inside > 0
    assert looks["continues"].tolist() == [0, 0, *[1] * inside, 0]
    assert looks["title"].tolist() == [1, *[1] * (inside + 1), 0]
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


def test_alike_is_what_it_says():
    question = "Who FOUNDED the bakery, founder?"
    (window,) = word_windows([example(question, PASSAGE)], WORDS)
    asked, said = WORD.findall(question), WORD.findall(PASSAGE)
    how = {
        "token": str.lower,
        "written": str,
        "lower": str.lower,
        "stem": lambda word: stem(word.lower()),
    }
    for column, name in enumerate(ALIKE):
        for alike, mine, others in (
            (window.passage_alike, said, asked),
            (window.question_alike, asked, said),
        ):
            known = {how[name](word) for word in others}
            assert alike[:, column].tolist() == [how[name](word) in known for word in mine]
    assert window.passage_alike[:, ALIKE.index("stem")].sum() > window.passage_alike[:, 2].sum()


# Windows


@pytest.mark.parametrize("unit", ["pieces", "words"])
def test_gold_spans_decode_to_the_gold_answers(unit, pieces):
    vocabulary = pieces.vocabulary if unit == "pieces" else WORDS
    golds = ("Zoë", "BBC-2 bakery", "1984", PASSAGE, ".")
    (window,) = word_windows([example("?", PASSAGE, *golds, "1984")], vocabulary)
    decoded = [PASSAGE[slice(*window.characters(a, b))] for a, b in window.spans.tolist()]
    assert decoded == list(golds)
    assert window.weights.tolist() == pytest.approx([1 / 6, 1 / 6, 2 / 6, 1 / 6, 1 / 6])


def test_an_answer_within_a_token_takes_the_token():
    (window,) = word_windows([example("?", "In the 1980s.", "1980")], WORDS)
    ((a, b),) = window.spans.tolist()
    assert "In the 1980s."[slice(*window.characters(a, b))] == "1980s"


@given(words=st.integers(1, 60), room=st.integers(2, 20), stride=st.integers(0, 19), data=st.data())
def test_no_answer_shorter_than_the_overlap_is_lost(words, room, stride, data):
    stride = min(stride, room - 1)
    passage = " ".join(f"w{n}" for n in range(words))
    begin = data.draw(st.integers(0, words - 1))
    length = data.draw(st.integers(1, max(1, min(stride, words - begin))))
    answer = " ".join(f"w{n}" for n in range(begin, begin + length))
    start = len(" ".join(f"w{n}" for n in range(begin))) + (begin > 0)
    config = WordConfig(max_passage=room, stride=stride)
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
        WordConfig(max_question=9),
    )
    assert np.shares_memory(windows[0].passage.looks, windows[1].passage.looks)
    assert [window.example for window in windows] == [0, 1]
    assert [len(window.question) for window in windows] == [2, 9]


@pytest.mark.parametrize(
    "wrong", [{"stride": 400}, {"max_question": 0}, {"characters": 0}, {"stride": -1}]
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
    assert batch.tokens == sum(len(w) + len(w.question) for w in windows)
    assert len(torch.unique(batch.inputs["words"], dim=0)) == len(batch.inputs["words"])
    for row, window in enumerate(windows):
        for name, text, alike in (
            ("passage", window.passage, window.passage_alike),
            ("question", window.question, window.question_alike),
        ):
            real = batch.mask if name == "passage" else batch.inputs["question_real"]
            assert real[row].tolist() == [n < len(text) for n in range(real.shape[1])]
            assert batch.inputs[name][row, : len(text)].tolist() == text.ids.tolist()
            features = np.concatenate([alike, text.looks], axis=1)
            padded = batch.inputs[f"{name}_features"][row]
            assert np.array_equal(padded[: len(text)], features)
            assert (padded[len(text) :] == 0).all()
            letters = batch.inputs["words"][batch.inputs[f"{name}_words"][row, : len(text)]]
            assert np.array_equal(letters, text.characters)
        kept = batch.weights[row] > 0
        assert batch.spans[row][kept].tolist() == window.spans.tolist()
        assert batch.weights[row][kept].tolist() == window.weights.tolist()


# Vectors


def test_piece_vectors_fit_their_vocabulary(pieces):
    tokenizer = pieces.vocabulary.tokenizer
    assert pieces.matrix.shape == (len(tokenizer), 384)
    assert torch.allclose(pieces.matrix.mean(dim=0), torch.zeros(384), atol=1e-3)
    assert torch.allclose(pieces.matrix.std(dim=0), torch.ones(384), atol=1e-3)
    units = torch.nn.functional.normalize(pieces.matrix, dim=1)
    near = [units[i] @ units[j] for i, j in _rows(tokenizer, ("paris", "london"), ("paris", "the"))]
    assert near[0] > near[1] + 0.1


def _rows(tokenizer, *pairs):
    return [tokenizer.convert_tokens_to_ids(list(pair)) for pair in pairs]


TEXTS = ["The cat sat on the mat . The dog sat on the mat .", "A cat and a dog . A cat ran ."] * 2


def test_own_vectors_factor_the_literal_information():
    vectors = own_vectors(TEXTS, width=4, window=3, least=2)
    words = list(vectors.vocabulary.rows)
    counts: dict[tuple[str, str], float] = defaultdict(float)
    for text in TEXTS:
        tokens = text.lower().split()
        for p, word in enumerate(tokens):
            for q, other in enumerate(tokens):
                if p != q and abs(p - q) <= 3:
                    counts[word, other] += 1 / abs(p - q)
    of_word = {word: sum(counts[word, other] for other in words) for word in words}
    total = sum(of_word.values())
    smooth = sum(n**0.75 for n in of_word.values())
    literal = torch.zeros(len(words), len(words))
    for i, word in enumerate(words):
        for j, other in enumerate(words):
            if counts[word, other]:
                context = of_word[other] ** 0.75 / smooth * total
                information = math.log(counts[word, other] * total / (of_word[word] * context))
                literal[i, j] = max(0.0, information)
    u = torch.linalg.svd(literal).U[:, :4]
    expected = (u - u.mean(dim=0)) / u.std(dim=0, correction=0)
    signs = (expected * vectors.matrix[1:]).sum(dim=0).sign()
    assert torch.allclose(vectors.matrix[1:], expected * signs, atol=1e-2)
    assert (vectors.matrix[0] == 0).all()


def test_own_vectors_are_the_same_each_time_and_survive_the_disk(tmp_path):
    state = torch.get_rng_state()
    first, again = (own_vectors(TEXTS, width=4, least=2) for _ in range(2))
    assert torch.equal(first.matrix, again.matrix)
    assert torch.equal(state, torch.get_rng_state())
    save_vectors(first, tmp_path / "vectors.safetensors")
    loaded = load_vectors(tmp_path / "vectors.safetensors")
    assert torch.equal(loaded.matrix, first.matrix)
    assert loaded.vocabulary.rows == first.vocabulary.rows


def test_too_little_text_is_an_error():
    for texts in ([], ["one two"], ["one", "one", "one"]):
        with pytest.raises(QalibError, match="too little text"):
            own_vectors(texts)


def test_glove_files_are_read_with_or_without_a_size_line(tmp_path):
    path = tmp_path / "glove.txt"
    lines = ["the 1 2", "BBC 3 5", ". . . -1 0.5"]  # the third word holds blanks
    for header in ([], ["3 2"]):
        path.write_text("\n".join([*header, *lines]) + "\n", encoding="utf-8")
        vectors = glove_vectors(path)
        assert vectors.vocabulary.rows == {"the": 1, "BBC": 2, ". . .": 3}
        raw = torch.tensor([[1.0, 2], [3, 5], [-1, 0.5]])
        expected = (raw - raw.mean(dim=0)) / raw.std(dim=0, correction=0)
        assert torch.allclose(vectors.matrix[1:], expected, atol=1e-6)
    kept = glove_vectors(path, words={"BBC", "the"})
    assert list(kept.vocabulary.rows) == ["the", "BBC"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a 1 2\nb 1\n", "line 2: no word vector"),
        ("a 1 2\nb 1 x\n", "line 2: no word vector"),
        ("", "no vector of a wanted word"),
        ("a\n", "line 1: no word vector"),
    ],
)
def test_broken_glove_files_are_named(tmp_path, text, complaint):
    path = tmp_path / "glove.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(QalibError, match=complaint):
        glove_vectors(path)
    with pytest.raises(QalibError, match="cannot be read"):
        glove_vectors(tmp_path / "nothing.txt")
