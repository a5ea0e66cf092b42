"""Longer passages and sentence boundaries."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qalib.data.augment import (
    SEPARATOR,
    article_of,
    lengthen,
    maximal_ranges,
    sentence_starts,
)
from qalib.data.corpus import CorpusConfig, build_corpus
from qalib.data.schema import Answer, Example, check_example, make_dataset
from qalib.data.windows import replace_surrogates
from qalib.errors import QalibError
from qalib.models.folders import MINILM, model_folder

# ------------------------------------------------------------------------------- longer passages


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_folder(MINILM))


def pieces(example: Example, tokenizer) -> int:
    """The length of an example's whole input in word pieces."""
    context = replace_surrogates(example.context)
    return len(tokenizer(example.question.strip(), context, verbose=False)["input_ids"])


def literal_ranges(lengths: list[int], own: int, available: int) -> set[tuple[int, int]]:
    """All ranges that fit and lie within no other one that fits."""
    every = [
        (first, last)
        for first in range(own + 1)
        for last in range(own, len(lengths))
        if sum(lengths[first : last + 1]) <= available
    ]
    within = {(a, b) for a, b in every for c, d in every if (a, b) != (c, d) and c <= a and b <= d}
    return set(every) - within or {(own, own)}


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.data(), st.integers(0, 30))
def test_ranges_are_all_that_fit_and_cannot_grow(lengths, data, available):
    own = data.draw(st.integers(0, len(lengths) - 1))
    found = maximal_ranges(lengths, own, available)
    assert set(found) == literal_ranges(lengths, own, available)
    assert len(found) == len(set(found))


words = st.text("abcdé\ud800 ", min_size=1, max_size=60).filter(str.strip)
articles = st.lists(st.lists(words, min_size=1, max_size=6, unique=True), min_size=1, max_size=3)


def questions(texts: list[list[str]]) -> list[Example]:
    """Two questions a paragraph, whose answers are its first and its last letters."""
    made = []
    for a, article in enumerate(texts):
        for p, text in enumerate(article):
            golds = (Answer(text[:2], 0), Answer(text[-2:], len(text) - len(text[-2:])))
            about = {"context": text, "title": f"Article {a}"}
            made += [Example(f"{a}-{p}-{q}", "Who is it?", answers=golds, **about) for q in "xy"]
    return made


@settings(max_examples=40)
@given(articles, st.integers(16, 60))
def test_paragraphs_stay_whole_in_order_and_within_the_budget(tokenizer, texts, budget):
    dataset = make_dataset("toy", questions(texts), "folder/toy.json", "abc", "2.0")
    long = lengthen(dataset, tokenizer, budget)
    assert (long.name, long.path, long.raw_sha256) == ("toy-long", dataset.path, "abc")
    assert long.version == "2.0"
    orders = [list(dict.fromkeys(article)) for article in texts]
    for before, after in zip(dataset, long, strict=True):
        check_example(after, after.id)
        order = orders[int(before.title.split()[-1])]
        parts = after.context.split(SEPARATOR)
        first = order.index(parts[0])
        assert parts == order[first : first + len(parts)]
        assert before.context in parts
        assert after.answer_texts == before.answer_texts
        shift = after.answers[0].start - before.answers[0].start
        assert after.context[shift : shift + len(before.context)] == before.context
        assert all(
            b.start - a.start == shift for a, b in zip(before.answers, after.answers, strict=True)
        )
        assert len(parts) == 1 or pieces(after, tokenizer) <= budget
        assert replace(after, context="", answers=()) == replace(before, context="", answers=())


def test_the_budget_counts_question_and_special_tokens(tokenizer):
    texts = [["one two three four five", "six seven eight nine ten"]]
    dataset = make_dataset("toy", questions(texts))
    whole = pieces(replace(dataset.examples[0], context=SEPARATOR.join(texts[0])), tokenizer)
    fits = lengthen(dataset, tokenizer, whole)
    tight = lengthen(dataset, tokenizer, whole - 1)
    assert {example.context for example in fits} == {SEPARATOR.join(texts[0])}
    assert tight.examples == dataset.examples


def test_the_place_is_drawn_from_the_id(tokenizer):
    texts = [[f"paragraph {n} tells of winter" for n in range(9)]]
    context = texts[0][4]
    same_paragraph = [Example(f"q{n}", "Who?", context, (), "Article 0") for n in range(400)]
    rest = [Example(f"p{n}", "Who?", text, (), "Article 0") for n, text in enumerate(texts[0])]
    # the paragraphs come first, for their order
    dataset = make_dataset("toy", [*rest, *same_paragraph])
    long = lengthen(dataset, tokenizer, 20)
    found = [example.context.split(SEPARATOR) for example in long.examples[9:]]
    assert {len(parts) for parts in found} == {3}
    places = Counter(parts.index(context) for parts in found)
    assert set(places) == {0, 1, 2}
    assert min(places.values()) > 100  # of 133 expected
    again = lengthen(make_dataset("toy", [*rest, *same_paragraph[::-1]]), tokenizer, 20)
    by_id = {example.id: example for example in again}
    assert all(by_id[example.id] == example for example in long)


def test_without_titles_nothing_can_be_lengthened(tokenizer):
    bare = [replace(example, title="") for example in questions([["a b", "c d"]])]
    with pytest.raises(QalibError, match="toy: no question has a title"):
        lengthen(make_dataset("toy", bare), tokenizer)
    mixed = [*questions([["a b", "c d"]])[:2], *bare[2:]]
    assert lengthen(make_dataset("toy", mixed), tokenizer).examples[2:] == tuple(bare[2:])


def test_the_corpus_has_articles_of_one_kind(tokenizer):
    corpus = build_corpus(CorpusConfig(questions=300, length=400))
    long = lengthen(corpus, tokenizer)
    kinds: dict[str, set[str]] = {}
    for example in corpus:
        kinds.setdefault(article_of(example), set()).add(example.context)
    assert {article_of(example) for example in long} == set(kinds)
    for before, after in zip(corpus, long, strict=True):
        check_example(after, after.id)
        assert before.context in after.context
        assert set(after.context.split(SEPARATOR)) <= kinds[article_of(before)]
        assert pieces(after, tokenizer) <= 512
    lengths = [len(example.context) for example in long]
    assert sum(lengths) > 3 * sum(len(example.context) for example in corpus)


# --------------------------------------------------------------------------- sentence boundaries


def sentences(text: str) -> list[str]:
    starts = sentence_starts(text)
    ends = [*starts[1:], len(text)]
    return [text[start:end].strip() for start, end in zip(starts, ends, strict=True)]


@pytest.mark.parametrize(
    "parts",
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
def test_where_sentences_end(parts):
    between = "\n" if parts[0] == "A heading" else " "
    assert sentences(between.join(parts)) == parts


def test_an_empty_text_is_one_sentence_of_nothing():
    assert sentence_starts("") == [0]
    assert sentence_starts("One. ") == [0]
    assert sentence_starts("\n\nOne.\n \nTwo.\n") == [0, 2, 9]


def test_long_white_space_is_no_sentence_of_its_own():
    gap = " " * 5000
    assert sentence_starts(f"One{gap}two.{gap}Three{gap}\n{gap}Four") == [0, 5007 + 5000, 20013]
