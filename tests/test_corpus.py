"""The embedded corpus: the same bytes everywhere, right offsets, and hard for word overlap."""

import hashlib
import json
import random
import re
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qalib.data import corpus
from qalib.data.corpus import CorpusConfig, build_corpus, draw_facts
from qalib.data.schema import check_example
from qalib.errors import QalibError
from qalib.metrics import score
from qalib.models.lexical import lexical_answers

SPLITS = ("train", "dev", "test")


@pytest.fixture(scope="module")
def corpora():
    return {split: build_corpus(CorpusConfig(800, split=split)) for split in SPLITS}


def lexical_f1(**changes):
    dataset = build_corpus(CorpusConfig(400, split="test", **changes))
    return score(dataset, lexical_answers(dataset))["f1"]


# ---- the same everywhere ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "sha256"),
    [
        ((200,), "90baa819728df51a845b4dfebae1fd00484d8d2dadd4396a99bf79ceaeb31304"),
        ((60, 5, "test"), "fe477756876e4cf7c28a4db103a3cfe05b59c0f3be8fa0c01dcfdf87a3b6dba4"),
        ((120, 1, "dev"), "23886f74432d528a832d6a3b249d957879e4eddf99c7c117f695360acf51ed27"),
        (
            (100, 2, "test", 2500),
            "123e1e64e706d783b4aaf19f81f378e98dd8910e95cff0bd1ce3b3d709bf0b18",
        ),
    ],
)
def test_bytes_do_not_depend_on_the_machine(config, sha256):
    """Recorded results name this corpus by its hash, which therefore must not change."""
    assert build_corpus(CorpusConfig(*config)).content_sha256 == sha256


def test_offsets_and_titles_do_not_depend_on_the_machine():
    """The content hash leaves them out."""
    rows = [
        [e.id, e.question, e.context, e.title, [[a.text, a.start] for a in e.answers]]
        for e in build_corpus(CorpusConfig(200))
    ]
    sha256 = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    assert sha256 == "570a86905d29c3772498ce01410c0a94acac7bc80a05236c3c68f170678e341d"


@pytest.mark.parametrize("count", [1, 4, 5, 6, 123])
def test_more_questions_only_add_to_the_end(count):
    config = CorpusConfig(200, split="dev", seed=3)
    assert (
        build_corpus(replace(config, questions=count)).examples
        == build_corpus(config).examples[:count]
    )


def test_ids_and_passages_are_not_shared_between_splits_and_seeds(corpora):
    sets = [*corpora.values(), build_corpus(CorpusConfig(200, seed=1))]
    examples = [example for dataset in sets for example in dataset]
    assert len({e.id for e in examples}) == len(examples)
    passages = [{e.context for e in dataset} for dataset in sets]
    assert len(set.union(*passages)) == sum(map(len, passages))


# ---- answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_every_answer_is_at_its_offset(corpora, split):
    for example in corpora[split]:
        check_example(example, example.id)
        spans = {(answer.start, answer.end) for answer in example.answers}
        assert 1 <= len(example.answers) <= 3
        assert len(spans) == len(example.answers)
        # All golds of a question are readings of one place: each lies within the longest.
        widest = max(spans, key=lambda span: span[1] - span[0])
        assert all(widest[0] <= start and end <= widest[1] for start, end in spans)
        assert all(not a.text[0].isspace() and not a.text[-1].isspace() for a in example.answers)


def test_offsets_point_at_the_right_occurrence_of_a_repeated_text():
    """The first occurrence of the text would sometimes be wrong."""
    dataset = build_corpus(CorpusConfig(1500))
    assert any(e.context.find(a.text) != a.start for e in dataset for a in e.answers)


@settings(max_examples=40, deadline=None)
@given(
    split=st.sampled_from(SPLITS),
    seed=st.integers(0, 2**63),
    length=st.integers(300, 2500),
)
def test_length_and_number_of_questions_hold(split, seed, length):
    config = CorpusConfig(25, seed, split, length)
    dataset = build_corpus(config)
    assert len(dataset) == 25
    for example in dataset:
        check_example(example, example.id)
        assert abs(len(example.context) / length - 1) < 0.15
    assert max(Counter(e.context for e in dataset).values()) <= corpus.QUESTIONS_PER_PASSAGE


# ---- facts and phrasings ---------------------------------------------------------------------


def test_names_are_not_shared_between_splits():
    kinds = ("person", "place", "organisation", "title", "material", "product", "trade", "reason")
    names = {split: set() for split in SPLITS}
    for split, seed in ((split, seed) for split in SPLITS for seed in range(150)):
        _, region, subjects, facts = draw_facts(random.Random(seed), split, 3)
        names[split] |= {region} | {subject.names[0] for subject in subjects}
        for fact in facts:
            if fact.relation.type in kinds:
                names[split].add(re.search("=<(.*?)>", fact.value)[1].replace("<", ""))
    assert all(len(found) > 1000 for found in names.values())
    for one, other in (("train", "dev"), ("train", "test"), ("dev", "test")):
        assert not names[one] & names[other]


@pytest.mark.parametrize("split", SPLITS)
def test_questions_use_the_phrasings_of_their_split(corpora, split):
    def shapes(field):
        phrasings = [p for r in corpus.RELATIONS for p in getattr(r, field)]
        return re.compile("|".join(re.escape(p).replace(r"\{N\}", ".+") for p in phrasings))

    own, others = (
        ("test_questions", "questions") if split == "test" else ("questions", "test_questions")
    )
    own, others = shapes(own), shapes(others)
    for example in corpora[split]:
        assert own.fullmatch(example.question)
        assert not others.fullmatch(example.question)


# ---- how it reads -------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_text_is_well_formed(corpora, split):
    texts = {e.context for e in corpora[split]} | {e.question for e in corpora[split]}
    for text in texts:
        assert not re.search(r"[{}|\[\]<>=_\ue000-\uf8ff]", text), text
        assert not re.search(r"\s\s|\s[.,;?]|[.,;]{2}|^\s|\s$", text), text
        assert not re.search(r"\b(the|a|an|in|of|and) \1\b", text, re.IGNORECASE), text
        assert not re.search(r"\b(the|a|an) (the|a|an)\b", text, re.IGNORECASE), text
        assert not re.search(r"\ba (?!use)[aeiou]|\ban [^aeiou]", text, re.IGNORECASE), text
        assert text[0].isupper() or text[0].isdigit() or text[0] == '"', text
        assert text[-1] in ".?", text
        assert all(s[0].isupper() or s[0] in '"123456789' for s in re.split(r"(?<=\.) ", text)), (
            text
        )


# ---- how hard it is -----------------------------------------------------------------------------


def test_word_overlap_does_not_solve_it():
    assert 15 < lexical_f1() < 40


def test_length_makes_it_harder():
    assert lexical_f1(length=300) > lexical_f1(length=2500) + 8


@pytest.mark.parametrize("place", ["front", "end"])
@pytest.mark.parametrize("split", SPLITS)
def test_a_misleading_sentence_is_added_and_nothing_else_changes(corpora, split, place):
    misled = build_corpus(CorpusConfig(800, split=split, misleading=place))
    assert misled.name == f"almanac-{split}-misleading-{place}"
    for before, after in zip(corpora[split], misled, strict=True):
        check_example(after, after.id)
        kept = replace(after, context=before.context, answers=before.answers)
        assert kept == before
        assert after.answer_texts == before.answer_texts
        first, last = after.context[: -len(before.context)], after.context[len(before.context) :]
        sentence = (first if place == "front" else last).strip()
        join = (sentence, before.context) if place == "front" else (before.context, sentence)
        assert after.context == " ".join(join)
        assert re.fullmatch(r"[^{}|\[\]<>=_\ue000-\uf8ff]+\.", sentence)
        assert not any(text in sentence for text in before.answer_texts)


def test_misleading_sentences_mislead_word_overlap():
    assert lexical_f1(misleading="end") < lexical_f1() - 1


# ---- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"questions": 0}, "questions is 0"),
        ({"questions": True}, "questions is True"),
        ({"seed": -1}, "seed is -1"),
        ({"split": "validation"}, "'train', 'dev' or 'test'"),
        ({"length": 299}, "greater than or equal to 300"),
        ({"length": 2501}, "less than or equal to 2500"),
        ({"length": "800"}, "length is '800'"),
    ],
)
def test_a_wrong_setting_is_named(setting, message):
    with pytest.raises(QalibError, match=message) as caught:
        CorpusConfig(**{"questions": 10} | setting)
    assert str(caught.value).startswith("CorpusConfig: ")
    assert "\n" not in str(caught.value)
