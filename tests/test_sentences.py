"""Sentences: where they end, and blocks that follow them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import examples, tiny_reader

from qalib.data.features import Window, WindowConfig, make_windows
from qalib.data.squad import Example
from qalib.errors import QalibError
from qalib.skim.blocks import make_blocks
from qalib.skim.sentences import place_blocks, sentence_blocks, sentence_starts


def sentences(text: str) -> list[str]:
    starts = sentence_starts(text)
    ends = [*starts[1:], len(text)]
    return [text[start:end].strip() for start, end in zip(starts, ends, strict=True)]


@pytest.mark.parametrize(
    "told",
    [
        ["It rained.", "Nobody came!", "Why?", "1066 was the year."],
        ['He said "No."', '"Yes," she said.', "(So it was.)", "Then they left."],
        ["Dr. J. R. Smith of the U.S. Army met Mrs. Brown.", "They talked."],
        ["It cost 3.5 million vs. 2 million in Jan. 1990, i.e. more.", "Really."],
        ["See Fig. 3 and No. 7 by Smith et al. in detail.", "Done."],
        ["A heading", "Then a paragraph. which goes on", "and ends"],
        ["Één ding.", "Çok iyi.", "“Quoted.”", "Элементы.", "End"],
        ["no end at all"],
    ],
)
def test_where_sentences_end(told):
    between = "\n" if told[0] == "A heading" else " "
    assert sentences(between.join(told)) == told


def test_an_empty_text_is_one_sentence_of_nothing():
    assert sentence_starts("") == [0]
    assert sentence_starts("One. ") == [0]
    assert sentence_starts("\n\nOne.\n \nTwo.\n") == [0, 2, 9]


def window_of(lengths: list[int]) -> tuple[Window, str]:
    """A window over sentences of so many words, each one token."""
    text, offsets = "", []
    for length in lengths:
        for word in range(length):
            token = "End" if word == 0 else "end"
            token += "." * (word == length - 1)
            offsets.append((len(text), len(text) + len(token)))
            text += token + " "
    table = np.array(offsets, dtype=np.int32).reshape(-1, 2)
    count = len(table)
    ids = np.arange(count + 3, dtype=np.int32) + 10
    none = np.zeros((0, 2), dtype=np.int64), np.zeros(0, dtype=np.float32)
    return Window(0, ids, np.zeros(count + 3, dtype=np.int8), 2, table, *none), text


@settings(max_examples=150, deadline=None)
@given(lengths=st.lists(st.integers(2, 90), max_size=12), size=st.integers(1, 40))
def test_blocks_follow_sentences_within_bounds(lengths, size):
    window, text = window_of(lengths)
    blocks = sentence_blocks(window, text, size)
    assert blocks.shape == (sum(lengths),)
    if not lengths:
        return
    assert blocks[0] == 0
    assert set(np.diff(blocks).tolist()) <= {0, 1}
    sizes = np.bincount(blocks)
    assert sizes.max() <= 2 * size
    edges = set(np.flatnonzero(np.diff(blocks)) + 1)
    begin = 0
    for length in lengths:  # only long sentences are cut, and they into nearly equal parts
        inside = [edge for edge in edges if begin < edge < begin + length]
        if length <= 2 * size:
            assert not inside
        else:
            parts = np.diff([begin, *sorted(inside), begin + length])
            assert parts.max() - parts.min() <= 1
            assert size / 2 < parts.max() <= 1.5 * size or size == 1
        begin += length


def test_short_sentences_join_and_long_ones_are_cut():
    window, text = window_of([5, 6, 8, 30, 3, 3, 100, 4])
    sizes = np.bincount(sentence_blocks(window, text, 32))
    assert sizes.tolist() == [19, 33, 36, 33, 34, 4]


def test_a_size_below_one_is_refused():
    window, text = window_of([3])
    with pytest.raises(QalibError, match="at least 1 token"):
        sentence_blocks(window, text, 0)


def test_real_windows_get_whole_sentences():
    """Also where a passage is read in several windows."""
    tokenizer = tiny_reader().tokenizer
    long = Example("long", "Who?", "The baker sold bread. He was old. " * 40, ())
    given = [*examples(6), long]
    windows = make_windows(
        given, tokenizer, WindowConfig(max_length=128, stride=32, max_question=32)
    )
    assert len(windows) > len(given)
    blocks = [sentence_blocks(w, given[w.example].context, 12) for w in windows]
    length = max(len(w) for w in windows)
    of = place_blocks(blocks, windows, length)
    ids = torch.zeros(len(windows), length, dtype=torch.int64)
    passage = torch.zeros(len(windows), length, dtype=torch.bool)
    for row, window in enumerate(windows):
        ids[row, : len(window)] = torch.from_numpy(window.input_ids)
        passage[row, window.first : window.first + len(window.offsets)] = True
    made = make_blocks(ids, ids != 0, passage, tokenizer.all_special_ids, of=of)
    for row, window in enumerate(windows):
        context = given[window.example].context
        assert made.count >= blocks[row].max() + 1
        first = np.unique(blocks[row], return_index=True)[1][1:]
        for token in first:  # every block but a window's first begins a sentence
            begin = window.offsets[token, 0]
            assert context[:begin].rstrip().endswith(".")
        at = made.of[row][passage[row]]
        assert at.tolist() == blocks[row].tolist()
