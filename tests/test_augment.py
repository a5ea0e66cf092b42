"""Longer passages: the paragraph whole, in its order, within the budget, its answers in place."""

import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_reader

from qalib.data.almanac import AlmanacConfig, build_almanac
from qalib.data.features import WindowConfig, make_windows
from qalib.data.long import BETWEEN, LongConfig, article_of, lengthen, paragraphs, stretches
from qalib.data.squad import Answer, Example, check_example, load_squad, make_dataset
from qalib.errors import QalibError


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_reader().tokenizer


def pieces(example: Example, tokenizer) -> int:
    """The whole input of an example, as a reader would see it."""
    return len(tokenizer(example.question.strip(), example.context, verbose=False)["input_ids"])


def literal_stretches(lengths: list[int], own: int, room: int) -> set[tuple[int, int]]:
    """All stretches that fit and lie within no other one that fits."""
    every = [
        (first, last)
        for first in range(own + 1)
        for last in range(own, len(lengths))
        if sum(lengths[first : last + 1]) <= room
    ]
    within = {(a, b) for a, b in every for c, d in every if (a, b) != (c, d) and c <= a and b <= d}
    return set(every) - within or {(own, own)}


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.data(), st.integers(0, 30))
def test_stretches_are_all_that_fit_and_cannot_grow(lengths, data, room):
    own = data.draw(st.integers(0, len(lengths) - 1))
    found = stretches(lengths, own, room)
    assert set(found) == literal_stretches(lengths, own, room)
    assert len(found) == len(set(found))


words = st.text("abcdé ", min_size=1, max_size=60).filter(str.strip)
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
    dataset = make_dataset("toy", questions(texts))
    long = lengthen(dataset, tokenizer, LongConfig(budget))
    orders = [list(dict.fromkeys(article)) for article in texts]
    for before, after in zip(dataset, long, strict=True):
        check_example(after, after.id)
        order = orders[int(before.title.split()[-1])]
        parts = after.context.split(BETWEEN)
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


def test_a_paragraph_that_is_too_long_stays_alone(tokenizer):
    texts = [["short one", "a long one " * 30, "short two"]]
    dataset = make_dataset("toy", questions(texts))
    long = lengthen(dataset, tokenizer, LongConfig(40))
    for before, after in zip(dataset, long, strict=True):
        assert after == before  # the long one has no room, and is in the way of the others
    wide = lengthen(dataset, tokenizer, LongConfig(512))
    assert {example.context for example in wide} == {BETWEEN.join(texts[0])}


def test_the_budget_counts_question_and_special_tokens(tokenizer):
    texts = [["one two three four five", "six seven eight nine ten"]]
    dataset = make_dataset("toy", questions(texts))
    whole = pieces(replace(dataset.examples[0], context=BETWEEN.join(texts[0])), tokenizer)
    fits = lengthen(dataset, tokenizer, LongConfig(whole))
    tight = lengthen(dataset, tokenizer, LongConfig(whole - 1))
    assert {example.context for example in fits} == {BETWEEN.join(texts[0])}
    assert tight.examples == dataset.examples


def test_the_place_is_drawn_from_the_id(tokenizer):
    texts = [[f"paragraph {n} tells of winter" for n in range(9)]]
    context = texts[0][4]
    asked = [Example(f"q{n}", "Who?", context, (), "Article 0") for n in range(400)]
    rest = [Example(f"p{n}", "Who?", text, (), "Article 0") for n, text in enumerate(texts[0])]
    # the paragraphs come first, for their order
    dataset = make_dataset("toy", [*rest, *asked])
    long = lengthen(dataset, tokenizer, LongConfig(20))
    found = [example.context.split(BETWEEN) for example in long.examples[9:]]
    assert {len(parts) for parts in found} == {3}
    places = Counter(parts.index(context) for parts in found)
    assert set(places) == {0, 1, 2}
    assert min(places.values()) > 100  # of 133 expected
    again = lengthen(make_dataset("toy", [*rest, *asked[::-1]]), tokenizer, LongConfig(20))
    by_id = {example.id: example for example in again}
    assert all(by_id[example.id] == example for example in long)


def test_provenance_and_version_are_kept(tokenizer):
    examples = [replace(questions([["a b"]])[0], answers=())]
    dataset = make_dataset("toy", examples, "folder/toy.json", "abc", "2.0")
    long = lengthen(dataset, tokenizer)
    assert (long.name, long.path, long.raw_sha256) == ("toy-long", "folder/toy.json", "abc")
    assert long.version == "2.0"


def test_without_titles_nothing_can_be_lengthened(tokenizer):
    bare = [replace(example, title="") for example in questions([["a b", "c d"]])]
    with pytest.raises(QalibError, match="toy: no question has a title"):
        lengthen(make_dataset("toy", bare), tokenizer)
    mixed = [*questions([["a b", "c d"]])[:2], *bare[2:]]
    assert lengthen(make_dataset("toy", mixed), tokenizer).examples[2:] == tuple(bare[2:])
    with pytest.raises(QalibError, match="at least 8"):
        LongConfig(7)


def test_lone_surrogates_are_counted(tokenizer):
    dataset = make_dataset("toy", questions([["a \ud800 b", "c d"]]))
    assert len(lengthen(dataset, tokenizer).examples[0].context) == len("a \ud800 b\n\nc d")


def test_the_almanac_has_articles_of_one_kind(tokenizer):
    almanac = build_almanac(AlmanacConfig(questions=300, length=400))
    long = lengthen(almanac, tokenizer)
    kinds = paragraphs(almanac)
    assert {article_of(example) for example in long} == set(kinds)
    for before, after in zip(almanac, long, strict=True):
        check_example(after, after.id)
        assert before.context in after.context
        assert set(after.context.split(BETWEEN)) <= set(kinds[article_of(before)])
        assert pieces(after, tokenizer) <= 512
    lengths = [len(example.context) for example in long]
    assert sum(lengths) > 3 * sum(len(example.context) for example in almanac)


def test_real_paragraphs_fill_the_budget(real_data, tokenizer, tmp_path):
    tree = json.loads((real_data / "squad-dev-v1.1.json").read_text(encoding="utf-8"))
    tree["data"] = tree["data"][:2]
    small = tmp_path / "squad-small.json"
    small.write_text(json.dumps(tree), encoding="utf-8")
    dataset = load_squad(small)
    long = lengthen(dataset, tokenizer)
    order = {a["title"]: [p["context"] for p in a["paragraphs"]] for a in tree["data"]}
    lengths = [pieces(example, tokenizer) for example in long]
    for before, after, length in zip(dataset, long, lengths, strict=True):
        check_example(after, after.id)
        assert after.context in BETWEEN.join(order[after.title])
        assert before.context in after.context
        assert length <= 512 or after.context == before.context
    assert sum(lengths) / len(lengths) > 380
    windows = make_windows(long.examples, tokenizer, WindowConfig(max_length=512))
    whole = [window for window in windows if len(window) <= 512]
    assert len(whole) <= 1.02 * len(long)
    places = [e.answers[0].start / len(e.context) for e in long]
    thirds = Counter(min(2, int(3 * place)) for place in places)
    assert min(thirds.values()) > 0.2 * len(long)
