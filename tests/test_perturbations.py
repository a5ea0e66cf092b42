"""Typos and names: what they change and what they must not."""

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qalib.data import perturbations as p
from qalib.data.corpus import CorpusConfig, build_corpus
from qalib.data.schema import Answer, Example, check_example

words = st.text("abcdlmnopé", min_size=4, max_size=9)
texts = st.text(st.characters(exclude_categories=()), max_size=60)
COMMON = p.COMMON_NAMES.split()


def one_error(word: str) -> set[str]:
    """Every way to swap two letters, drop, double or replace one, the first left where it is."""
    after = range(1, len(word))
    made = {word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(1, len(word) - 1)}
    made |= {word[:i] + word[i + 1 :] for i in after}
    made |= {word[:i] + 2 * word[i] + word[i + 1 :] for i in after}
    letters = "abcdefghijklmnopqrstuvwxyz"
    made |= {word[:i] + letter + word[i + 1 :] for i in after for letter in letters}
    return made - {word}


@given(words, st.sampled_from(p.TYPOS), st.floats(0, 0.999), st.sampled_from("alz"))
def test_a_typo_is_one_error_and_never_the_word_itself(word, kind, place, letter):
    assert p.misspell(word, kind, place, letter) in one_error(word)


def test_every_kind_of_typo_does_what_its_name_says():
    found = {kind: p.misspell("bridge", kind, 0.5, "x") for kind in p.TYPOS}
    expected = {"swap": "brigde", "drop": "brige", "double": "briddge", "substitute": "brixge"}
    assert found == expected
    assert p.misspell("ball", "swap", 0.9, "x") == "bal"


@settings(max_examples=60)
@given(texts, st.integers(0, 3))
def test_typos_leave_everything_but_long_words(text, seed):
    drawn = p.typos(text, seed)
    parts = re.split(r"([^\W\d_]{4,})", text)  # between words, word, between words, ...
    assert [word for word, _, _ in drawn] == parts[1::2]
    parts[1::2] = [typo for _, typo, _ in drawn]
    assert p.add_typos(text, 1.0, seed) == "".join(parts)
    assert p.add_typos(text, 0.0, seed) == text


def test_typos_grow_with_the_rate_and_those_of_a_lower_rate_stay():
    text = " ".join(f"{a}{b}word" for a in "abcdefgh" for b in "abcdefgh")
    before, seen = text.split(), []
    for rate in (0.0, 0.05, 0.1, 0.2, 0.4, 1.0):
        after = p.add_typos(text, rate, seed=1).split()
        seen.append({i: word for i, word in enumerate(after) if word != before[i]})
        assert len(after) == len(before)
        assert abs(len(seen[-1]) / len(before) - rate) < 0.12
    assert len(seen[-1]) == len(before)
    for fewer, more in pairwise(seen):
        assert fewer.items() <= more.items()
    assert p.add_typos(text, 1.0, seed=2) != p.add_typos(text, 1.0, seed=1)


CITY = Example(
    "q",
    "When did Mira leave Ostra for the Tolland works in May?",
    "In May, Mira Kovač left Ostra. Ostra's TOLLAND, or Tolland, hired Mira in 1931. The works "
    "stood in Ostravia.",
    (Answer("1931", 74), Answer("in 1931", 71)),
)


def test_shared_names_are_capitalised_in_both_and_no_months():
    check_example(CITY, "CITY")
    assert p.shared_names(CITY) == ["Mira", "Ostra", "Tolland"]
    other = Example("q", "Who saw the River Tisz?", "The River Tisz is a river. Who knows?")
    assert p.shared_names(other) == ["Tisz"]


@pytest.mark.parametrize("known", [(), COMMON], ids=["invented", "common"])
def test_names_are_replaced_everywhere_and_answers_are_shifted(known):
    made = p.replace_names(CITY, known, seed=3)
    check_example(made, "renamed")
    assert made.answer_texts == CITY.answer_texts
    assert made.id == CITY.id
    pattern = (
        r"In May, (\w+) Kovač left (\w+)\. (\w+)'s TOLLAND, or (\w+), hired (\w+) in 1931\. "
        r"The works stood in Ostravia\."
    )
    mira, ostra, again, tolland, twice = re.fullmatch(pattern, made.context).groups()
    assert (again, twice) == (ostra, mira)
    assert made.question == f"When did {mira} leave {ostra} for the {tolland} works in May?"
    new = {mira, ostra, tolland}
    assert len(new) == 3
    assert not new & {"Mira", "Ostra", "Tolland"}
    assert new <= set(COMMON) if known else not new & set(COMMON)


def test_an_example_without_names_or_with_one_in_its_answer_is_left_out():
    context = "The Tolland works hired Mira Kovač."
    inside = Answer("Mira Kovač", context.index("Mira"))
    assert p.replace_names(Example("q", "Who hired Mira?", context, (inside,))) is None
    works = (Answer("Tolland works", 4),)
    asked = Example("q", "Who hired Mira?", context, works)
    assert p.replace_names(asked) is not None
    assert p.replace_names(asked, ["Tolland"]) is None
    assert p.replace_names(Example("q", "Who hired her?", context, works)) is None


def test_names_in_capitals_stay_in_capitals():
    example = Example("q", "What is the EEC?", "The EEC is one.", (Answer("one", 11),))
    assert re.fullmatch("What is the [A-Z]{4,}\\?", p.replace_names(example).question)


@pytest.mark.parametrize("known", [(), COMMON], ids=["invented", "common"])
def test_a_renamed_corpus_is_the_same_text_about_others(known):
    count = 0
    for example in build_corpus(CorpusConfig(questions=80, split="test")):
        names = p.shared_names(example)
        made = p.replace_names(example, known)
        if made is None:
            continue
        count += 1
        check_example(made, example.id)
        assert made.answer_texts == example.answer_texts
        split = rf"(?<!\w)(?:{'|'.join(map(re.escape, names))})(?!\w)"
        old = re.split(split, f"{example.question}\n{example.context}")
        assert len(old) > 2
        rest = f"{made.question}\n{made.context}"
        for part in old:  # everything between the names is there, in order
            assert part in rest
            rest = rest[rest.index(part) + len(part) :]
        assert not set(names) & set(p.NAME.findall(f"{made.question} {made.context}"))
    assert count > 40


def test_common_names_are_single_word_pieces():
    from transformers import AutoTokenizer

    from qalib.models.encoder import MINILM, model_folder

    tokenizer = AutoTokenizer.from_pretrained(model_folder(MINILM), use_fast=True)
    assert len(set(COMMON)) == len(COMMON)
    pieces = tokenizer(COMMON, add_special_tokens=False)["input_ids"]
    assert {len(ids) for ids in pieces} == {1}


def test_real_questions_stay_answerable(real_data):
    from qalib.data.formats import load_squad

    sample = load_squad(real_data / "squad-dev-v1.1.json").examples[::40]
    renamed = [p.replace_names(e, known) for e in sample for known in (COMMON, ())]
    for made in filter(None, renamed):
        check_example(made, made.id)
    texts = {e.id: e.answer_texts for e in sample}
    assert all(made.answer_texts == texts[made.id] for made in renamed if made)
    assert sum(made is not None for made in renamed) > 120
