"""NarrativeQA: the best span against every span tried one by one, on small files of its form."""

import csv
import io
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qalib.data.formats import FreeAnswerExample
from qalib.data.narrative import (
    NarrativeConfig,
    best_span,
    first_words,
    label_spans,
    load_narrative,
)
from qalib.data.squad import Answer, Example, check_example, make_dataset
from qalib.errors import QalibError
from qalib.text_metrics import WORD, rouge_l

SUMMARIES = [
    ("s1", "Mark hides in a cellar.\nAfter the war, he goes home to his two old sisters."),
    ("s2", "A dog finds gold. " + "It digs on. " * 20),
]
ASKED = [
    ("s1", "train", "Where does Mark hide?", "In the cellar.", "a cellar"),
    ("s1", "train", "Who waits?", "His sisters", "two elderly sisters"),
    ("s1", "train", "Why?", "Fear", "dread"),
    ("s2", "valid", "What is found?", "gold", "Gold"),
]


@pytest.fixture
def archive(tmp_path):
    """A zip with the tables of the published repository, a few lines each."""

    def table(columns, rows):
        out = io.StringIO(newline="")
        csv.writer(out).writerows([columns.split(","), *rows])
        return out.getvalue()

    path = tmp_path / "narrativeqa-master.zip"
    kinds = {"s1": "train", "s2": "valid"}
    tables = {
        "documents.csv": table("document_id,set,kind", [(s, k, "movie") for s, k in kinds.items()]),
        "third_party/wikipedia/summaries.csv": table(
            "document_id,set,summary,summary_tokenized",
            [(story, kinds[story], text, text.lower()) for story, text in SUMMARIES],
        ),
        "qaps.csv": table(
            "document_id,set,question,answer1,answer2,question_tokenized",
            [(*row, row[2].lower()) for row in ASKED],
        ),
    }
    with zipfile.ZipFile(path, "w") as out:
        for name, text in tables.items():
            out.writestr(f"narrativeqa-master/{name}", text)
    return path


def test_the_label_is_the_best_span_and_the_references_stay(archive):
    found = load_narrative(archive, "train")
    assert [e.answers[0].text if e.answers else None for e in found.dataset] == [
        "a cellar",
        "his two old sisters",
        None,
    ]
    for example in found.dataset:
        check_example(example, example.id)
    assert found.dataset.examples[0].answer_texts == ["In the cellar.", "a cellar"]
    assert found.dataset.version == "1.1"
    assert found.rouge[0] == 1
    assert found.rouge[1] == pytest.approx(2.44 * 2 / (4 + 1.44 * 2))
    assert found.rouge[2] == 0
    assert found.share_without == pytest.approx(1 / 3)
    assert found.cut == 0


def test_a_summary_is_cut_and_a_poor_span_is_no_label(archive):
    short = load_narrative(archive, "valid", NarrativeConfig(words=4))
    [example] = short.dataset
    assert (example.context, short.cut) == ("A dog finds gold.", 1)
    assert example.answers == (Answer("gold", 12),)
    none = load_narrative(archive, "valid", NarrativeConfig(words=3))
    assert none.dataset.examples[0].answers == ()
    assert none.share_without == 1
    strict = load_narrative(archive, "train", NarrativeConfig(least=0.9))
    assert [bool(e.answers) for e in strict.dataset] == [True, False, False]
    assert strict.share_without == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("text", "count", "kept"),
    [
        (" a  b\nc ", 2, " a  b"),
        (" a  b\nc ", 3, " a  b\nc "),
        ("a b c", 9, "a b c"),
        ("a b c", 1, "a"),
    ],
)
def test_the_first_words_keep_their_white_space(text, count, kept):
    assert first_words(text, count) == kept


def every_span(context, answers):
    """The best span by trying all, scored by ``rouge_l`` one answer at a time."""
    places = [match.span() for match in WORD.finditer(context)]
    spans = [
        (max(rouge_l(context[b[0] : e[1]], answer) for answer in answers), j - i, b[0], e[1])
        for i, b in enumerate(places)
        for j, e in enumerate(places[i:], start=i)
    ]
    score = max((s[0] for s in spans), default=0.0)
    best = [span for span in spans if span[0] > score - 1e-9]
    return score, {(start, end) for _, _, start, end in best}


words = st.lists(st.sampled_from(["a", "b", "C,", "d-e", "."]), min_size=1)


@given(words.map(" ".join), st.lists(words.map(" ".join), min_size=1, max_size=2))
def test_the_best_span_is_the_best_of_all(context, answers):
    context, answers = context[:40], [answer[:14] for answer in answers]
    score, spans = every_span(context, answers)
    found, start, end = best_span(context, answers)
    assert found == pytest.approx(score)
    assert (start, end) in spans if score else (start, end) == (0, 0)


def test_of_equal_spans_the_shortest_then_the_first_is_taken():
    assert best_span("x b y b", ["b"]) == (1.0, 2, 3)
    rng = np.random.default_rng(0)
    long = " ".join(rng.choice(["p", "q", "r"], 800))
    answer = " ".join(rng.choice(["q", "r", "s"], 30))
    score, start, end = best_span(long, [answer])
    assert score == pytest.approx(rouge_l(long[start:end], answer))


def test_mistakes_are_named(archive):
    plain = make_dataset("plain", [Example("q", "Who?", "Ada.", (Answer("Ada", 0),))])
    with pytest.raises(QalibError, match="no free answers"):
        label_spans(plain)
    with pytest.raises(QalibError, match="no part 'dev'"):
        load_narrative(archive, "dev")
    for values, name in (({"words": 0}, "words"), ({"least": 1.5}, "least")):
        with pytest.raises(QalibError, match=name):
            NarrativeConfig(**values)
    free = FreeAnswerExample("q", "Who?", "Ada.", (), "", ("ada",))
    assert label_spans(make_dataset("free", [free])).dataset.examples[0].answers[0].text == "Ada"
