"""The lexical baseline: word overlap and answer types, for any text."""

import os
import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qalib.data.corpus import CorpusConfig, build_corpus
from qalib.data.formats import load_file
from qalib.data.schema import Example, make_dataset
from qalib.metrics import score
from qalib.models.lexical import lexical_answers

PASSAGE = (
    "Anna Broke finished the mill at Fenby on 4 March 1821. Her brother Tom hated noise. "
    "It ground wheat for 1,200 families. The wheel stopped because the brook ran dry, and "
    "from then on the miller dealt in copper kettles."
)


def answer(question, context=PASSAGE):
    return lexical_answers(make_dataset("one", [Example("q", question, context)]))["q"]


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Who finished the mill at Fenby?", "Anna Broke"),
        ("Who hated noise?", "Tom"),
        ("When was the mill finished?", "4 March 1821"),
        ("For how many families did it grind wheat?", "1,200"),
        ("Why did the wheel stop?", "the brook ran dry"),
        ("In what was it that the miller dealt?", "copper kettles"),
    ],
)
def test_question_word_and_overlap_decide(question, expected):
    assert answer(question) == expected


def test_a_rare_word_outweighs_common_ones():
    context = (
        "The bridge in the town was built by Ada Moss. The bridge in the village was built by "
        "Ben Rook. The gate in the town was built by Cy Lark."
    )
    assert answer("Who built the gate?", context) == "Cy Lark"
    assert answer("Who built in the village?", context) == "Ben Rook"


def test_no_candidate_of_the_kind_gives_a_phrase_and_no_phrase_the_passage():
    assert answer("When did it rain?", "Nobody knows.") == "Nobody knows"
    assert answer("Who was it?", " It was so. ") == "It was so."


VOCABULARY = ("Who", "When", "Why", "How many", "the", "mill", "Ö", "1847", ".", ",", "because")
text = st.text(st.characters(codec="utf-8"), min_size=1, max_size=200)
words = st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=40).map(" ".join)


@settings(max_examples=100)
@given(question=text | words, context=(text | words).filter(str.strip))
def test_an_answer_is_a_piece_of_its_context(question, context):
    found = answer(question, context)
    assert found.strip()
    assert found in context


def test_answers_do_not_depend_on_the_other_questions():
    examples = list(build_corpus(CorpusConfig(60)))
    together = lexical_answers(make_dataset("all", examples))
    random.Random(0).shuffle(examples)
    assert lexical_answers(make_dataset("all", examples)) == together
    assert list(together) != [e.id for e in examples]
    alone = [lexical_answers(make_dataset("one", [e]))[e.id] for e in examples]
    assert alone == [together[e.id] for e in examples]


def test_answers_do_not_depend_on_the_process():
    code = (
        "from qalib.data.corpus import *; from qalib.models.lexical import *; "
        "print(sorted(lexical_answers(build_corpus(CorpusConfig(100))).items()))"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONIOENCODING": "utf-8"},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(printed) == 1


def test_it_is_a_fair_baseline_on_real_questions(real_data):
    """About what a sliding window reached on SQuAD (Rajpurkar et al. 2016: 20 F1), and better."""
    dataset = load_file(real_data / "squad-dev-v1.1.json")
    scores = score(dataset, lexical_answers(dataset))
    assert 22 < scores["exact_match"] < 35
    assert 30 < scores["f1"] < 45
