"""What ships: the adapter's arithmetic, and tables that describe data and scores."""

import pytest
import torch
from tiny import examples

from qalib.answer import Answerer
from qalib.data.almanac import AlmanacConfig, build_almanac
from qalib.data.squad import Answer, Example, make_dataset
from qalib.readers.shipped import SHIPPED, checkpoint_hash, low_rank
from qalib.skim.storage import SKIMMER, load_skimmer
from qalib.study.describe import answer_type, describe, question_word, scored, summary


def test_low_rank_is_exact_where_the_change_is_of_that_rank():
    torch.manual_seed(0)
    change = torch.randn(20, 3) @ torch.randn(3, 15)
    left, right = low_rank(change, 3)
    assert (left.shape, right.shape) == ((20, 3), (3, 15))
    torch.testing.assert_close(left @ right, change, rtol=1e-4, atol=1e-4)
    parts = [low_rank(change, rank) for rank in (1, 2, 3)]
    errors = [(b @ a - change).norm() for b, a in parts]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(
    ("question", "word"),
    [
        ("In which year was it built?", "which"),
        ("How many people came?", "how many"),
        ("To whom did it belong?", "who"),
        ("Name the river.", "other"),
        ("Whatever happened, when did it end?", "when"),
    ],
)
def test_question_words(question, word):
    assert question_word(question) == word


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("in 1847", "date"),
        ("3 March", "date"),
        ("4,000", "number"),
        ("Ilsa Venn", "name"),
        ("bronze", "one word"),
        ("a bridge of stone", "phrase"),
        ("because the ferry had stopped in the winter", "clause"),
    ],
)
def test_answer_types(text, kind):
    assert answer_type(text) == kind


def test_descriptions_have_a_row_a_question():
    dataset = make_dataset("few", [*examples(5), Example("none", "Why?", "No reason.")])
    table = describe(dataset)
    assert len(table) == 6
    assert table["position"].iloc[:5].between(0, 1).all()
    assert summary({"few": table})["questions"]["few"] == 6


def test_scores_are_those_of_the_metric():
    dataset = make_dataset("one", [Example("a", "Who?", "Ada met Bo.", (Answer("Ada", 0),))])
    table = scored(dataset, {"right": {"a": "Ada"}, "half": {"a": "Ada met"}})
    assert table["EM"].tolist() == [100, 0]
    assert table["F1"].round(1).tolist() == [100, 66.7]


def test_the_skimmer_that_ships_belongs_to_the_reader_that_ships():
    skimmer = load_skimmer(SKIMMER, reader=checkpoint_hash(SHIPPED))  # else it would refuse
    assert skimmer.config.skim_at
    assert sum(path.stat().st_size for path in SKIMMER.iterdir()) < 2e6


def test_what_ships_reads_a_part_of_a_passage_and_finds_the_answer():
    asked = build_almanac(AlmanacConfig(questions=16, split="test", length=1500)).examples
    whole, part = (Answerer.load(skim=skim).answer_all(asked) for skim in (False, True))
    assert {answered.read for answered in whole} == {1.0}
    assert sum(answered.read for answered in part) < 0.5 * len(asked)
    texts = [[answered.candidates[0].text for answered in both] for both in (whole, part)]
    assert sum(a == b for a, b in zip(*texts, strict=True)) >= 12
