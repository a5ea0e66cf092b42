"""Free-form answers: two forms of data, and spans of best Rouge-L."""

import json

import pytest

from qalib.data import sources
from qalib.data.free_form import WORD, best_span, load_free_form, load_narrativeqa, with_spans
from qalib.data.schema import Example, make_dataset
from qalib.errors import QalibError

STORY = "A fox, it is said, fell into a deep well. The goat jumped after him; the fox climbed out."


def rouge_l(span: str, reference: str) -> float:
    """Literally: the longest common subsequence of two lists of words."""
    a, b = ([word.lower() for word in WORD.findall(text)] for text in (span, reference))
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            longest = max(table[i][j + 1], table[i + 1][j])
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else longest
    return 2 * table[-1][-1] / (len(a) + len(b))


@pytest.mark.parametrize("longest", [3, 20])
@pytest.mark.parametrize(
    "references",
    [("into a well",), ("He climbed out.", "The fox got out"), ("The GOAT jumped in",), ("well",)],
)
def test_the_best_span_is_that_of_a_search_over_all(references, longest):
    words = [match.span() for match in WORD.finditer(STORY)]
    spans = [
        STORY[words[i][0] : words[j][1]]
        for length in range(longest)
        for i in range(len(words) - length)
        for j in (i + length,)
    ]
    best = max(spans, key=lambda span: max(rouge_l(span, text) for text in references))
    found = best_span(STORY, references, longest)
    assert found.text == best
    assert STORY[found.start : found.end] == found.text


def test_questions_without_a_shared_word_are_left_out():
    texts = ("why",), ("deep",), ("...",)
    rows = [Example(str(n), "Why?", STORY, references=text) for n, text in enumerate(texts)]
    made = with_spans(make_dataset("x", rows))
    assert [(e.id, e.answers[0].text, e.answer_texts) for e in made] == [("1", "deep", ["deep"])]


def test_a_fairytaleqa_file(tmp_path):
    row = {"id": "fox-1", "context": STORY, "question": "Who fell?", "answers": ["a fox", " "]}
    path = tmp_path / "fairytaleqa-train.jsonl"
    path.write_text("\n".join(map(json.dumps, [row, row])), encoding="utf-8")
    first, again = load_free_form(path, "fairytaleqa-train")
    assert (first.answer_texts, first.answers, again.id) == (["a fox"], (), "fox-1-2")
    path.write_text('{"id": "fox-1", "question": "Who fell?"}')
    with pytest.raises(QalibError, match="line 1: expected a JSON object with id, context"):
        load_free_form(path, "fairytaleqa-train")


def test_a_copy_of_narrativeqa(tmp_path, monkeypatch):
    folder = tmp_path / "narrativeqa"
    (folder / "third_party/wikipedia").mkdir(parents=True)
    (folder / "third_party/wikipedia/summaries.csv").write_text(
        f'document_id,set,summary,summary_tokenized\nd1,train,"{STORY}",x\nd2,test,Rain.,x\n'
    )
    (folder / "qaps.csv").write_text(
        "document_id,set,question,answer1,answer2,question_tokenized,answer1_tokenized,"
        "answer2_tokenized\nd1,train,Who fell?,A fox,The fox did,x,x,x\n"
        "d2,test,What?,rain,Rain.,x,x,x\n"
    )
    monkeypatch.setenv("QALIB_DATA", str(tmp_path))
    (row,) = with_spans(sources.load_data("narrativeqa-train"))
    assert (row.answers[0].text, row.answer_texts) == ("A fox", ["A fox", "The fox did"])
    (row,) = sources.load_data("narrativeqa-test")
    assert (row.context, row.question) == ("Rain.", "What?")
    with pytest.raises(QalibError, match="no question of the set 'dev'"):
        load_narrativeqa(folder, "dev")
