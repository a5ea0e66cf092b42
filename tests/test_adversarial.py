"""AddSent-style sentences: the rules by example, the promises on a whole data set."""

import random
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qalib import metrics
from qalib.data import adversary_baselines as baselines
from qalib.data.adversary import (
    VARIANT,
    Adversary,
    AdversaryConfig,
    build_adversarial,
    insert,
)
from qalib.data.adversary_clauses import GAP, Asked
from qalib.data.adversary_gap import fill
from qalib.data.adversary_rules import Statement, to_statement
from qalib.data.almanac import AlmanacConfig, build_almanac
from qalib.data.english import Lexicon, contains, join, tokenize, words_of
from qalib.data.english_words import OPPOSITES
from qalib.data.fake_answers import AnswerBank, side_of
from qalib.data.fake_numbers import LISTS, alter_number, alter_numbers
from qalib.data.near_words import NearWords, alter, piece_vectors
from qalib.data.sentences import sentence_starts
from qalib.data.squad import Answer, Example, check_example, make_dataset
from qalib.errors import QalibError
from qalib.readers.encoder_reader import MINILM, model_folder

BARE = Lexicon.build([])


@pytest.fixture(scope="module")
def almanac():
    data = build_almanac(AlmanacConfig(questions=60, seed=3, split="test"))
    # AddSent's rule takes the text before the first "-" for the original's id
    return make_dataset("almanac", [replace(e, id=f"q{n}") for n, e in enumerate(data)])


@pytest.fixture(scope="module")
def made(almanac):
    return build_adversarial(almanac, AdversaryConfig(candidates=3, place="random"))


# --- From a question to a statement ----------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "statement"),
    [
        ("What did Tesla invent in 1888?", "Tesla invented ___ in 1888"),
        ("Where did Ada live after the war?", "Ada lived after the war ___"),
        ("What does the acronym stand for?", "the acronym stands for ___"),
        ("When did she leave?", "she left ___"),
        ("What did the miners try to stop?", "the miners tried to stop ___"),
        ("Who wrote Hamlet?", "___ wrote Hamlet"),
        ("Which team won the cup?", "___ won the cup"),
        ("How many people live in Rome?", "___ live in Rome"),
        ("When was the tower built?", "the tower was built ___"),
        ("What is the capital of France?", "the capital of France is ___"),
        ("Who was the first king?", "___ was the first king"),
        ("What is the gorge known for?", "the gorge is known for ___"),
        ("How many games has Ada won?", "Ada has won ___"),
        ("Who has the largest share?", "___ has the largest share"),
        ("Where can the book be found?", "the book can be found ___"),
        ("How many rooms are there in it?", "there are ___ in it"),
        ("In 1990, who led the party?", "In 1990, ___ led the party"),
        ("Ada was born in what year?", "Ada was born ___"),
        ("To whom did Ada give the ring?", "Ada gave the ring ___"),
        ("Who is the king that Ada crowned?", "___ is the king that Ada crowned"),
        ("What printed book is shown?", "___ is shown"),
        ("Was it fine?", None),
        ("Which of the kings was old?", None),
        ("Why", None),
    ],
)
def test_a_question_becomes_a_statement(question, statement):
    found = to_statement(question, BARE)
    assert (found and join(found.tokens)) == statement


@pytest.mark.parametrize(
    ("question", "answer", "sentence"),
    [
        ("When did Ada leave?", "May 5, 1871", "Ada left on May 5, 1871."),
        ("When did Ada leave?", "May 1871", "Ada left in May 1871."),
        ("When did Ada leave?", "1870s", "Ada left in the 1870s."),
        ("When did Ada leave?", "4:30", "Ada left at 4:30."),
        ("When did Ada leave?", "after the war", "Ada left after the war."),
        ("Where did Ada live?", "The Hague", "Ada lived in the Hague."),
        ("Where did Ada come from?", "Lisbon", "Ada came from Lisbon."),
        ("What city did Ada visit?", "Lisbon", "Ada visited the city of Lisbon."),
        ("Which team won in 1990?", "Vikings", "The team Vikings won in 1990."),
        ("How many people live in Rome?", "25 million", "25 million people live in Rome."),
        ("How many people live in Rome?", "9 people", "9 people live in Rome."),
        ("In what year was Ada born?", "1815", "Ada was born in 1815."),
        ("Why did Ada leave?", "heavy rain", "Ada left because of heavy rain."),
        ("Whose ship did Ada take?", "Ben", "Ada took Ben's ship."),
        (
            "What city north of Rome was burned?",
            "Pisa",
            "The city of Pisa north of Rome was burned.",
        ),
    ],
)
def test_the_gap_takes_the_answer_with_its_noun_and_preposition(question, answer, sentence):
    assert fill(to_statement(question, BARE), answer) == sentence


def test_the_data_tell_what_a_verb_is():
    texts = [
        "They want to glimbet it. He may glimbet. It was glimbetted.",
        "the morf. A morf, the morf.",
    ]
    lexicon = Lexicon.build(texts)
    assert lexicon.verbness("glimbet") > 0.5 > lexicon.verbness("morf")
    assert lexicon.past("glimbet") == "glimbetted"
    assert (
        join(to_statement("When did the morf glimbet?", lexicon).tokens)
        == "the morf glimbetted ___"
    )
    assert to_statement("When did the morf glimbet?", BARE) is None


@given(st.lists(st.sampled_from(["Ada's", "(old)", '"Red', 'dog"', "U.S.", "1,000", "a-b,", "x"])))
def test_tokens_join_to_the_text_they_came_from(parts):
    text = " ".join(parts)
    assert tokenize(join(tokenize(text))) == tokenize(text)
    assert "".join(tokenize(text)) == text.replace(" ", "")


def test_opposites_go_both_ways_or_to_one_of_their_kind():
    assert all(OPPOSITES[other] in OPPOSITES and other != word for word, other in OPPOSITES.items())


# --- Fake answers ----------------------------------------------------------------------------


def last_digit(text: str) -> int:
    return int(re.sub(r"\D", "", text).rstrip("0")[-1])


@settings(max_examples=150)
@given(st.integers(0, 10**7), st.sampled_from(["{}", "${}", "{:,}", "{}.5%"]), st.integers(0, 99))
def test_numbers_keep_their_form_and_the_splits_never_meet(number, form, seed):
    text = form.format(number)
    shape = re.sub(r"\d", "0", text)
    for split, parity in (("train", 1), ("test", 0)):
        found = alter_number(text, random.Random(seed), split)
        assert re.sub(r"\d", "0", found) == shape
        assert found != text
        assert last_digit(found) % 2 == parity


@pytest.mark.parametrize("words", LISTS, ids=lambda words: words[0])
def test_number_words_are_drawn_from_halves_of_their_list(words):
    drawn = {
        split: {alter_number(words[0], random.Random(n), split) for n in range(60)} - {None}
        for split in ("train", "test")
    }
    assert not drawn["train"] & drawn["test"]
    assert drawn["train"] | drawn["test"] <= set(words) - {words[0]}


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("May 5, 1915", r"[A-Z]\w+ ([1-9]|1\d|2[0-8]), (18[7-9]\d|19[0-5]\d)"),
        ("the 1990s", r"the (19[5-7]0|20[12]0|1980)s"),
        ("19th", r"(1[0-9]|2[0-8])(st|nd|rd|th)"),
        ("4:30 pm", r"[1-9]:[1-5]0 pm"),
        ("about 25 million people", r"about (1\d|2[0-8]) million people"),
        ("twenty-five", r"[a-z]+ty-[a-z]+"),
        ("no number", None),
    ],
)
def test_dates_and_quantities_stay_what_they_are(text, pattern):
    for n in range(40):
        found = alter_numbers(text, random.Random(n), "test")
        assert found is None if pattern is None else re.fullmatch(pattern, found)
        assert found != text


def bank_of(split, examples=()):
    return AnswerBank.build(examples, split, lambda q: Asked("who"))


def test_the_banks_of_the_splits_share_nothing():
    examples = [
        Example(str(n), "Who?", f"Ada Q{chr(97 + n)}x", (Answer(f"Ada Q{chr(97 + n)}x", 0),))
        for n in range(26)
    ]
    texts = {
        split: set().union(*bank_of(split, examples).texts.values()) for split in ("train", "test")
    }
    assert all(side_of(text) == split for split in texts for text in texts[split])
    assert {e.answers[0].text for e in examples} <= texts["train"] | texts["test"]
    with pytest.raises(QalibError, match="'train' or 'test'"):
        bank_of("dev")


def test_a_drawn_fake_has_no_word_of_a_gold_and_is_not_in_the_passage():
    bank = bank_of("test")
    names = list(bank.texts["reserve", "who"])
    passage = f" {' '.join(words_of(' '.join(names[1:])))} "
    drawn = {bank.draw(Asked("who"), ["Mira Kovač"], passage, random.Random(n)) for n in range(20)}
    assert drawn == {names[0]}
    assert bank.draw(Asked("who"), [names[0]], passage, random.Random(0)) is None
    assert bank.draw(Asked("when"), ["1871"], " 1871 ", random.Random(0)).isdigit()


# --- Near words ------------------------------------------------------------------------------


def test_frozen_vectors_bring_near_names():
    embed = piece_vectors(model_folder(MINILM))
    london, paris, banana = embed(["London", "Paris", "banana"])
    assert london @ paris > london @ banana
    others = ["Berlin", "Madrid", "Vienna", "Monday", "Gravity", "Sonata", "Bishop", "Oxygen"]
    texts = [f"He saw {name} and {name}." for name in others]
    examples = [Example(str(n), "Who?", t, (), f"a{n}") for n, t in enumerate(texts)]
    examples.append(Example("x", "Who?", "In Rome; in Rome.", (), "b"))
    near = NearWords.build(examples, BARE, embed)
    order = [near.entries[i] for i in near._order("Rome", random.Random(0))]
    assert order[0] == "Rome"
    assert set(order[1:4]) == {"Berlin", "Madrid", "Vienna"}
    assert near.another("Rome", "b", set(), random.Random(0)) in others
    with pytest.raises(QalibError, match="word embeddings"):
        piece_vectors("/nowhere")


def test_what_is_sure_comes_first_and_no_more_than_asked_for():
    near = NearWords.build([Example("1", "Who saw Ghent?", "In Ghent.", (), "a")], BARE)
    tokens = tokenize("What did Pisa build in the largest square in 1871?")
    for count, expected in ((1, 1), (3, 3)):
        changed, changes = alter(tokens, "b", near, set(), count, random.Random(0))
        assert len(changes) == expected
        assert changed != tokens
    old = dict(changes)
    assert (old["Pisa"], old["largest"]) == ("Ghent", "smallest")
    assert old["1871"].isdigit()
    assert "square" not in old
    assert alter(tokens, "b", near, set(), 3, random.Random(0), {"Pisa"})[0][2] == "Pisa"
    assert alter(tokens, "a", near, {"ghent"}, 3, random.Random(0))[0][2] == "Pisa"


# --- Whole data sets -------------------------------------------------------------------------


def test_every_variant_keeps_the_promises(almanac, made):
    variants = {e.id: e for e in made.dataset if VARIANT in e.id}
    originals = {e.id: e for e in almanac}
    assert [e for e in made.dataset if VARIANT not in e.id] == list(almanac)
    assert {a.id for a in made.attempts} == set(variants)
    for attempt in made.attempts:
        new, old = variants[attempt.id], originals[attempt.base]
        check_example(new, attempt.id)
        assert (new.question, new.answer_texts) == (old.question, old.answer_texts)
        assert new.context[attempt.start :].lstrip().startswith(attempt.sentence)
        assert len(new.context) == len(old.context) + len(attempt.sentence) + 1
        assert attempt.altered != old.question
        assert not any(contains(attempt.sentence, gold) for gold in old.answer_texts)
        assert not contains(old.context, attempt.fake)
        assert attempt.sentence[0].isupper() or attempt.sentence[0].isdigit()
        assert attempt.sentence.endswith(".")
        assert "?" not in attempt.sentence
    places = {a.start == 0 for a in made.attempts}
    assert places == {True, False}


def test_the_share_attempted_is_counted(almanac, made):
    done = {a.base for a in made.attempts}
    assert made.attempted() == {"all": (len(done), 60)}
    assert len(done) > 30
    by_word = made.attempted(lambda question: question.split()[0])
    assert sum(turned for turned, _ in by_word.values()) == len(done)
    assert sum(total for _, total in by_word.values()) == 60
    rows = made.sample(10, seed=1)
    assert len(rows) == 10
    assert rows == made.sample(10, seed=1) != made.sample(10, seed=2)
    assert list(rows[0]) == ["question", "gold", "fake", "sentence", "rule"]


def test_a_question_gives_the_same_sentences_in_any_company(almanac, made):
    few = make_dataset("few", list(almanac)[::-4])
    again = build_adversarial(few, AdversaryConfig(candidates=3, place="random"), source=almanac)
    whole = {a.id: a for a in made.attempts}
    assert again.attempts
    assert all(whole[a.id] == a for a in again.attempts)
    other = build_adversarial(
        few, AdversaryConfig(candidates=3, place="random", seed=1), source=almanac
    )
    assert other.attempts != again.attempts


def test_training_and_test_never_use_the_same_fake(almanac):
    fakes = {}
    for split in ("train", "test"):
        adversary = Adversary(almanac, AdversaryConfig(candidates=2, split=split))
        attempts = [a for e in list(almanac)[:30] for a in adversary.attempts(e)]
        fakes[split] = {" ".join(words_of(a.fake)) for a in attempts}
    assert fakes["train"]
    assert not fakes["train"] & fakes["test"]


def test_the_candidates_are_different_and_the_first_is_the_single_one(almanac, made):
    single = build_adversarial(almanac, AdversaryConfig(place="random"))
    firsts = [a for a in made.attempts if a.id.endswith(f"{VARIANT}0")]
    assert list(single.attempts) == firsts
    for base in {a.base for a in made.attempts}:
        sentences = [a.sentence for a in made.attempts if a.base == base]
        assert len(set(sentences)) == len(sentences) <= 3


def test_the_worst_candidate_counts(made):
    golds = {e.id: e.answers[0].text for e in made.dataset}
    fooled = {a.id: a.fake for a in made.attempts if a.id.endswith(f"{VARIANT}1")}
    exact, _ = metrics.adversarial_question_scores(made.dataset, {**golds, **fooled})
    assert len(exact) == 60
    assert exact.sum() == 60 - len(fooled)
    assert fooled


@given(st.data())
def test_answers_move_with_an_inserted_sentence(data):
    words = data.draw(st.lists(st.sampled_from(["ab", "c.", "d\n"]), min_size=1, max_size=8))
    context = " ".join(words)
    starts = [m.start() for m in re.finditer(r"\S+", context)]
    answers = tuple(Answer(context[s : s + 1], s) for s in starts)
    at = data.draw(st.sampled_from([*starts, len(context)]))
    new = insert(Example("q", "?", context, answers), "v", "New one.", at)
    assert [a.text for a in new.answers] == [a.text for a in answers]
    assert all(new.context[a.start : a.end] == a.text for a in new.answers)
    assert new.context.replace("New one.", "").split() == context.split()


def test_no_answer_is_cut_in_two():
    context = "It was Dr. Nu. And he ran."
    whole = Example("q", "Who?", context, (Answer("Nu. And he", 11),))
    with pytest.raises(QalibError, match="character 15"):
        insert(whole, "v", "New one.", 15)
    assert sentence_starts(context) == [0, 15]


def test_published_placement_is_front_or_end(almanac):
    for place in ("front", "end"):
        adversary = Adversary(almanac, AdversaryConfig(place=place))
        example, attempt = next((e, a) for e in almanac for a in adversary.attempts(e))
        assert attempt.start == (0 if place == "front" else len(example.context))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"place": "middle"}, "place"),
        ({"split": "dev"}, "split"),
        ({"candidates": 0}, "candidates"),
        ({"candidates": True}, "candidates"),
        ({"changes": 11}, "changes"),
        ({"seed": -1}, "seed"),
    ],
)
def test_wrong_settings_are_named(values, message):
    with pytest.raises(QalibError, match=message):
        AdversaryConfig(**values)


def test_data_that_no_rule_takes_is_refused():
    silent = Example("q", "Ist es gut?", "Ja, es ist gut.", (Answer("gut", 11),))
    with pytest.raises(QalibError, match="English"):
        build_adversarial(make_dataset("fremd", [silent]))


# --- Yardsticks ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("When was it built?", "May 1871"),
        ("How many rooms?", "40"),
        ("Where is it?", "Old Torford"),
        ("Who built it?", "Ada Quill"),
        ("Who helped Ada Quill?", "Old Torford"),
    ],
)
def test_the_type_alone_gives_an_answer(question, answer):
    context = "The keep that Ada Quill built in Old Torford in May 1871 has 40 rooms."
    example = Example("q", question, context)
    assert baselines.answer_by_type(example) == answer
    assert baselines.predictions_by_type([example]) == {"q": answer}


def test_without_a_fitting_form_the_first_words_are_the_answer():
    assert baselines.answer_by_type(Example("q", "When?", "it is so very long")) == "it is so"


def test_a_trigger_is_found_and_only_ever_lowers_the_score(almanac):
    examples = list(almanac)[:3]

    def score(tried):
        return float(
            np.mean([e.context.count("plain") - 2 * e.context.count("bad") for e in tried])
        )

    config = baselines.TriggerConfig(length=3, tries=9)
    found = baselines.find_trigger(examples, ["bad", "plain", "other"], score, config)
    assert found.text == "bad bad bad"
    assert len(found.scores) == 4
    assert list(found.scores) == sorted(found.scores, reverse=True)
    data = baselines.trigger_set(make_dataset("few", examples), found)
    assert [e.id for e in data][:2] == ["q0", f"q0{VARIANT}trigger"]
    assert all(e.context.endswith("bad bad bad") for e in list(data)[1::2])
    with pytest.raises(QalibError, match="two words"):
        baselines.find_trigger(examples, ["bad"], score)
    with pytest.raises(QalibError, match="tries"):
        baselines.TriggerConfig(tries=0)


def test_a_statement_has_one_gap():
    statement = to_statement("Who wrote Hamlet?", BARE)
    assert isinstance(statement, Statement)
    assert statement.tokens.count(GAP) == 1
