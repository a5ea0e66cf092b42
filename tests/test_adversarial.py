"""AddSent-style sentences: the rules by example, the guarantees on a whole dataset."""

import hashlib
import json
import random
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qalib.data.adversarial import (
    VARIANT,
    Adversary,
    AdversaryConfig,
    answer_by_type,
    build_adversarial,
    insert,
    predictions_by_type,
)
from qalib.data.corpus import CorpusConfig, build_corpus
from qalib.data.fakes import AnswerBank, perturb_number, perturb_numbers, side_of
from qalib.data.formats import load_squad
from qalib.data.lexicon import Lexicon, contains, join, tokenize, words_of
from qalib.data.neighbours import piece_vectors
from qalib.data.schema import Answer, Example, check_example, make_dataset
from qalib.data.statements import QuestionTarget, realize, to_statement
from qalib.errors import QalibError
from qalib.models.encoder import MINILM, model_folder

BARE = Lexicon.build([])


@pytest.fixture(scope="module")
def corpus():
    data = build_corpus(CorpusConfig(questions=60, seed=3, split="test"))
    # AddSent's rule takes the text before the first "-" for the original's id
    return make_dataset("corpus", [replace(e, id=f"q{n}") for n, e in enumerate(data)])


@pytest.fixture(scope="module")
def made(corpus):
    return build_adversarial(corpus, AdversaryConfig(candidates=3, place="random"))


# --- From a question to a statement ---------------------------------------------------------------


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
    assert realize(to_statement(question, BARE), answer) == sentence


@given(st.lists(st.sampled_from(["Ada's", "(old)", '"Red', 'dog"', "U.S.", "1,000", "a-b,", "x"])))
def test_tokens_join_to_the_text_they_came_from(parts):
    text = " ".join(parts)
    assert tokenize(join(tokenize(text))) == tokenize(text)
    assert "".join(tokenize(text)) == text.replace(" ", "")


# --- Fake answers ---------------------------------------------------------------------------------


def last_digit(text: str) -> int:
    return int(re.sub(r"\D", "", text).rstrip("0")[-1])


@settings(max_examples=150)
@given(st.integers(0, 10**7), st.sampled_from(["{}", "${}", "{:,}", "{}.5%"]), st.integers(0, 99))
def test_numbers_keep_their_form_and_the_splits_never_meet(number, form, seed):
    text = form.format(number)
    shape = re.sub(r"\d", "0", text)
    for split, parity in (("train", 1), ("test", 0)):
        found = perturb_number(text, random.Random(seed), split)
        assert re.sub(r"\d", "0", found) == shape
        assert found != text
        assert last_digit(found) % 2 == parity


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
        found = perturb_numbers(text, random.Random(n), "test")
        assert found is None if pattern is None else re.fullmatch(pattern, found)
        assert found != text


def bank_of(split, examples=()):
    return AnswerBank.build(examples, split, lambda q: QuestionTarget("who"))


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
    drawn = {
        bank.draw(QuestionTarget("who"), ["Mira Kovač"], passage, random.Random(n))
        for n in range(20)
    }
    assert drawn == {names[0]}
    assert bank.draw(QuestionTarget("who"), [names[0]], passage, random.Random(0)) is None
    assert bank.draw(QuestionTarget("when"), ["1871"], " 1871 ", random.Random(0)).isdigit()


# --- Whole data sets ------------------------------------------------------------------------------


def test_every_variant_keeps_the_guarantees(corpus, made):
    variants = {e.id: e for e in made.dataset if VARIANT in e.id}
    originals = {e.id: e for e in corpus}
    assert [e for e in made.dataset if VARIANT not in e.id] == list(corpus)
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


def test_training_and_test_never_use_the_same_fake(corpus):
    fakes = {}
    for split in ("train", "test"):
        adversary = Adversary(corpus, AdversaryConfig(candidates=2, split=split))
        attempts = [a for e in list(corpus)[:30] for a in adversary.attempts(e)]
        fakes[split] = {" ".join(words_of(a.fake)) for a in attempts}
    assert fakes["train"]
    assert not fakes["train"] & fakes["test"]


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


# --- Baseline by question type --------------------------------------------------------------------


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
    assert answer_by_type(example) == answer
    assert predictions_by_type([example]) == {"q": answer}


# --- The same sentences on every machine and in every version -------------------------------------


def digest(made) -> tuple[int, str]:
    rows = [
        [e.id, e.question, e.context, [[a.text, a.start] for a in e.answers]] for e in made.dataset
    ]
    rows += [list(vars(attempt).values()) for attempt in made.attempts]
    return len(made.attempts), hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def test_sentences_for_the_corpus_are_the_recorded_ones():
    data = build_corpus(CorpusConfig(questions=60, seed=3, split="test"))
    made = build_adversarial(data, AdversaryConfig(candidates=3, place="random"))
    assert digest(made) == (
        171,
        "19edc8f7328989db89e9f6dec0c9ccf38b1839b5e1d04e0fa1e0b25ac4ec67c7",
    )
    config = AdversaryConfig(split="train", place="front", seed=2)
    made = build_adversarial(data, config, piece_vectors(model_folder(MINILM)))
    assert digest(made) == (
        57,
        "ec4797bd0bc9ae291cee61715f6c648b1a9576eb00ba674280ddeae2c4ae6400",
    )


def test_sentences_for_real_questions_are_the_recorded_ones(real_data):
    squad = load_squad(real_data / "squad-dev-v1.1.json")
    few = make_dataset("few", squad.examples[::26][:400])
    assert digest(build_adversarial(few)) == (
        280,
        "d064edca983da00831ac2c97921359abb961caf25ffae313665a648127730666",
    )
    config = AdversaryConfig(candidates=3, place="random", split="train")
    assert digest(build_adversarial(few, config, piece_vectors(model_folder(MINILM)))) == (
        840,
        "7695d7e3278e71f7fed1751a731131593949bb5cc0ef74e8b633fc033c5dfadd",
    )
