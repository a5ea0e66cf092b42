"""What ships: the adapter's arithmetic, and tables that describe data and scores."""

import pytest
import torch
from tiny import examples

from qalib.data.squad import Answer, Example, make_dataset
from qalib.study.describe import answer_type, describe, question_word, scored, summary
from qalib.study.ship import as_adapter, low_rank


def test_low_rank_is_exact_where_the_change_is_of_that_rank():
    torch.manual_seed(0)
    change = torch.randn(20, 3) @ torch.randn(3, 15)
    assert torch.linalg.matrix_rank(low_rank(change, 2), atol=1e-2) == 2
    torch.testing.assert_close(low_rank(change, 3), change, rtol=1e-2, atol=1e-2)
    errors = [(low_rank(change, rank) - change).norm() for rank in (1, 2, 3)]
    assert errors == sorted(errors, reverse=True)


def test_an_adapter_keeps_vectors_and_counts_its_bytes():
    base = {"word_embeddings.weight": torch.zeros(9, 8), "w": torch.zeros(8, 6)}
    moved = {name: torch.randn_like(t) for name, t in base.items()}
    moved["bias"] = torch.randn(6)
    tensors, size = as_adapter(moved, base, rank=2)
    assert torch.equal(tensors["word_embeddings.weight"], base["word_embeddings.weight"])
    assert torch.equal(tensors["bias"], moved["bias"])
    assert size == 2 * (2 * (8 + 6) + 6)


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
