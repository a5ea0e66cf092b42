"""MRQA lines, rows of a datasets table, NarrativeQA: one schema, every mistake with its place."""

import csv
import gzip
import hashlib
import io
import json
import zipfile

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qalib.data.formats import (
    FreeAnswerExample,
    from_rows,
    load_any,
    load_mrqa,
    load_narrativeqa,
    occurrences,
)
from qalib.data.squad import Answer, Example, content_hash, load_squad
from qalib.errors import QalibError

CONTEXT = "[TLE] Öland Bridge [PAR] Ada Quill built it; Ada  Quill died in 1871. [DOC] Quill."
HEADER = {"header": {"dataset": "Bridges", "split": "dev"}}


def span(text, nth=0):
    """[first, last] of the nth ``text`` in CONTEXT, both ends inside as MRQA has it."""
    start = -1
    for _ in range(nth + 1):
        start = CONTEXT.index(text, start + 1)
    return [start, start + len(text) - 1]


def passage(**changes):
    first = {
        "qid": "m1",
        "question": "Who built it?",
        "question_tokens": [["Who", 0]],
        "detected_answers": [
            {"text": "ada quill", "char_spans": [span("Ada Quill"), span("Ada  Quill")]},
            {"text": "Quill", "char_spans": [span("Quill"), span("Quill", 2), span("Quill", 2)]},
        ],
        "answers": ["ada quill", "Quill", "Lady Quill"],
    }
    second = {
        "qid": "m2",
        "question": "When did she die?",
        "detected_answers": [{"text": "1871", "char_spans": [span("1871")]}],
    }
    return {"context": CONTEXT, "context_tokens": [], "qas": [first | changes, second]}


@pytest.fixture
def save(tmp_path):
    def write(lines, name="set.jsonl"):
        path = tmp_path / name
        raw = b"".join(
            line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines
        )
        path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        return path

    return write


def refused(reader, *arguments) -> str:
    """The one line that a bad file is refused with."""
    with pytest.raises(QalibError) as caught:
        reader(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


# ----------------------------------------------------------------------------------------- MRQA


@pytest.mark.parametrize("name", ["bridges.jsonl", "bridges.jsonl.gz"])
@pytest.mark.parametrize("header", [[HEADER], []])
def test_mrqa_is_read(save, name, header):
    path = save([*header, passage(), b"\n"], name)
    dataset = load_mrqa(path)
    first, second = dataset
    assert [(a.text, a.start) for a in first.answers] == [
        ("Ada Quill", 25),
        ("Ada  Quill", 45),
        ("Quill", 29),
        ("Quill", 76),
    ]
    assert first.context == CONTEXT
    assert (first.id, first.question) == ("m1", "Who built it?")
    assert first.answer_texts == ["ada quill", "Quill", "Lady Quill"]
    assert second.answers == (Answer("1871", span("1871")[0]),)
    assert second.answer_texts == ["1871"]
    assert first.answerable
    assert second.answerable
    assert dataset.name == "bridges"
    assert dataset.raw_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_mrqa(path, "mine").name == "mine"


def test_line_separators_inside_a_passage_end_no_line(save):
    context = "one\u2028two\x85three\r\nfour"
    entry = {
        "context": context,
        "qas": [
            {
                "qid": "x",
                "question": "?",
                "detected_answers": [{"char_spans": [[len(context) - 4, len(context) - 1]]}],
            }
        ],
    }
    path = save([json.dumps(entry, ensure_ascii=False).encode() + b"\r\n"])
    assert load_mrqa(path).examples[0].answers == (Answer("four", len(context) - 4),)


@pytest.mark.parametrize("kept", [0, 1, 5, 19, 60, -9, -5, -1])
def test_truncated_gzip_is_named(save, kept):
    path = save([HEADER, passage()], "cut.jsonl.gz")
    path.write_bytes(path.read_bytes()[:kept])
    message = refused(load_mrqa, path)
    assert str(path) in message
    assert "fetch" in message


def test_damaged_gzip_is_named(save):
    path = save([HEADER, passage()], "bad.jsonl.gz")
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(raw)
    assert "damaged or cut short after line" in refused(load_mrqa, path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"context": "a", "qas": [\n', ["line 3, column", "not valid JSON", "cut short"]),
        (b"\xff\xfe\n", ["line 3", "UTF-8"]),
        (b"[" * 100_000 + b"\n", ["line 3"]),
        (b'{"context": ' + b"9" * 5000 + b"}\n", ["line 3"]),
        ([], ["line 3", "JSON object", "list"]),
        (HEADER, ["line 3", "'context'", "missing"]),
        ({"context": 1, "qas": []}, ["line 3", "'context' must be a str", "int"]),
        ({"context": "a"}, ["line 3", "'qas'"]),
        (passage(qid=7), ["line 3, question 0", "'qid' must be a str"]),
        (passage(qid="m2"), ["'m2'", "twice"]),
        (passage(question=" "), ["line 3, question 0 (id m1)", "question is empty"]),
        (passage(detected_answers=[]), ["id m1", "no answer span"]),
        (passage(detected_answers=["Ada"]), ["id m1", "JSON object", "str"]),
        (passage(detected_answers=[{}]), ["id m1", "'char_spans'"]),
        (passage(detected_answers=[{"char_spans": [[0]]}]), ["id m1", "two whole numbers", "[0]"]),
        (passage(detected_answers=[{"char_spans": [[0, True]]}]), ["two whole numbers"]),
        (passage(detected_answers=[{"char_spans": [[0, 1.5]]}]), ["two whole numbers"]),
        (passage(detected_answers=[{"char_spans": [[5, 4]]}]), ["[5, 4]", "outside"]),
        (passage(detected_answers=[{"char_spans": [[-1, 4]]}]), ["[-1, 4]", "outside"]),
        (
            passage(detected_answers=[{"char_spans": [[0, len(CONTEXT)]]}]),
            [f"[0, {len(CONTEXT)}]", f"{len(CONTEXT)} characters"],
        ),
        (passage(answers="Ada"), ["id m1", "'answers' must be a list of texts"]),
        (passage(answers=[1]), ["id m1", "'answers' must be a list of texts"]),
    ],
)
def test_bad_mrqa_lines_are_named(save, line, said):
    path = save([HEADER, b"\n", line])
    message = refused(load_mrqa, path)
    assert [words for words in [str(path), *said] if words not in message] == []


def test_the_last_character_of_a_passage_can_end_an_answer(save):
    last = len(CONTEXT) - 1
    path = save([passage(detected_answers=[{"char_spans": [[last, last]]}])])
    assert load_mrqa(path).examples[0].answers == (Answer(".", last),)


def test_an_empty_passage_is_refused(save):
    entry = passage() | {"context": " " * len(CONTEXT)}
    assert "context is empty" in refused(load_mrqa, save([entry]))


def test_mrqa_files_without_questions_are_refused(save, tmp_path):
    assert "no question" in refused(load_mrqa, save([HEADER]))
    assert "no question" in refused(load_mrqa, save([]))
    assert "cannot be read" in refused(load_mrqa, tmp_path / "absent.jsonl")
    assert "cannot be read" in refused(load_mrqa, tmp_path)


passages = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@settings(max_examples=50)
@given(context=passages, data=st.data())
def test_spans_of_any_script_come_back(context, data, tmp_path_factory):
    first = data.draw(st.integers(0, len(context) - 1))
    last = data.draw(st.integers(first, len(context) - 1))
    detected = [{"text": "anything", "char_spans": [[first, last]]}]
    entry = {
        "context": context,
        "qas": [{"qid": "x", "question": "?", "detected_answers": detected, "answers": ["y"]}],
    }
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text(json.dumps(entry, ensure_ascii=False), encoding="utf-8", newline="")
    [example] = load_mrqa(path)
    assert example.context == context
    assert example.answers == (Answer(context[first : last + 1], first),)
    assert example.answer_texts == ["y"]


# ----------------------------------------------------------------------------------------- rows

ROW = {
    "id": "r1",
    "title": "Bridges",
    "question": "Who?",
    "context": "👩‍🚀 Ada Quill",
    "answers": {"text": ["Ada Quill", "Ada"], "answer_start": [4, 4]},
}
EXAMPLE = Example(
    "r1", "Who?", "👩‍🚀 Ada Quill", (Answer("Ada Quill", 4), Answer("Ada", 4)), "Bridges"
)


def test_rows_are_read():
    unanswerable = ROW | {"id": "r2", "answers": {"text": [], "answer_start": []}}
    dataset = from_rows(iter([ROW, unanswerable]), "rows")
    assert dataset.examples[0] == EXAMPLE
    assert [example.answerable for example in dataset] == [True, False]
    assert (dataset.name, dataset.path, dataset.raw_sha256) == ("rows", "", "")


def test_rows_in_their_other_shapes():
    untitled = {key: value for key, value in ROW.items() if key != "title"}
    listed = [{"text": "Ada Quill", "answer_start": 4}, {"text": "Ada", "answer_start": 4}]
    arrays = {"text": np.array(["Ada Quill", "Ada"]), "answer_start": np.array([4, 4], np.int32)}
    assert from_rows([untitled], "x").examples[0].title == ""
    assert from_rows([ROW | {"title": None}], "x").examples[0].title == ""
    assert from_rows([ROW | {"answers": listed}], "x").examples == (EXAMPLE,)
    [example] = from_rows([ROW | {"answers": arrays}], "x")
    assert example == EXAMPLE
    assert {type(a.start) for a in example.answers} == {int}
    assert {type(a.text) for a in example.answers} == {str}


def test_a_table_of_the_datasets_library_is_read(tmp_path):
    table = datasets.Dataset.from_list([ROW])
    table.to_parquet(tmp_path / "0000.parquet")
    again = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "0000.parquet"), split="train", cache_dir=str(tmp_path)
    )
    assert from_rows(table, "x").examples == (EXAMPLE,)
    assert from_rows(again, "x").examples == (EXAMPLE,)
    assert from_rows(table.with_format("numpy"), "x").examples == (EXAMPLE,)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"id": 5}, ["rows: row 1", "'id' must be a str", "int"]),
        ({"id": None}, ["rows: row 1", "'id'"]),
        ({"question": None}, ["row 1 (id r1)", "'question'", "NoneType"]),
        ({"question": ""}, ["row 1 (id r1)", "question is empty"]),
        ({"context": "\n"}, ["row 1 (id r1)", "context is empty"]),
        ({"answers": None}, ["row 1 (id r1)", "'answers'"]),
        ({"answers": 3}, ["row 1 (id r1)", "'answers'"]),
        ({"answers": "Ada"}, ["row 1 (id r1)", "'answers'"]),
        ({"answers": {"text": ["Ada"]}}, ["row 1 (id r1)", "'answer_start' is missing"]),
        ({"answers": {"text": ["Ada"], "answer_start": []}}, ["row 1 (id r1)", "as many"]),
        ({"answers": {"text": "A", "answer_start": "4"}}, ["row 1 (id r1)", "whole numbers"]),
        ({"answers": {"text": [None], "answer_start": [4]}}, ["row 1 (id r1)", "texts"]),
        ({"answers": {"text": ["Ada"], "answer_start": [4.0]}}, ["row 1", "whole numbers"]),
        ({"answers": {"text": ["Ada"], "answer_start": [5]}}, ["answer_start 5", "occurs at 4"]),
        ({"answers": {"text": ["Eve"], "answer_start": [4]}}, ["'Eve'", "not occur"]),
        ({"answers": {"text": [""], "answer_start": [4]}}, ["empty string"]),
    ],
)
def test_bad_rows_are_named(changes, said):
    message = refused(from_rows, [ROW | {"id": "r0"}, ROW | changes], "rows")
    assert [words for words in said if words not in message] == []


def test_missing_columns_and_repeated_ids_of_rows_are_named():
    assert "'r1' appears twice" in refused(from_rows, [ROW, ROW], "rows")
    for column in ("id", "question", "context", "answers"):
        row = {key: value for key, value in ROW.items() if key != column}
        assert f"'{column}'" in refused(from_rows, [row], "rows")


# ---------------------------------------------------------------------------------- NarrativeQA

SUMMARY = (
    '\nMark, "the Voice", lives in Paradise.\r\nParadise is dull; the Voice\'s radio is not.\n'
)
STORIES = [
    {"document_id": "s1", "set": "train", "summary": SUMMARY, "summary_tokenized": "x"},
    {"document_id": "s2", "set": "valid", "summary": "Été.", "summary_tokenized": "x"},
]
ASKED = [
    ("s1", "train", "Where does Mark live?", "In Paradise.", "paradise ."),
    ("s1", "train", "Is it fun?", "No", "no"),
    ("s2", "valid", "Which season?", "ÉTÉ", "summer"),
]


def table(rows):
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


@pytest.fixture
def archive(tmp_path):
    def write(stories=STORIES, asked=ASKED, leave_out=()):
        keys = ("document_id", "set", "question", "answer1", "answer2")
        tables = {
            "third_party/wikipedia/summaries.csv": table(stories),
            "qaps.csv": table([dict(zip(keys, row, strict=True)) for row in asked]),
        }
        path = tmp_path / "narrativeqa-master.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
            for name, text in tables.items():
                if name not in leave_out:
                    out.writestr(f"narrativeqa-master/{name}", text)
        return path

    return write


def test_narrativeqa_is_read(archive):
    path = archive()
    train = load_narrativeqa(path, "train")
    first, second = train
    starts = [SUMMARY.index("Paradise"), SUMMARY.rindex("Paradise")]
    assert first == FreeAnswerExample(
        "s1-1",
        "Where does Mark live?",
        SUMMARY,
        (Answer("in Paradise", starts[0] - 3), *(Answer("Paradise", start) for start in starts)),
        "s1",
        ("In Paradise.", "paradise ."),
    )
    assert (second.id, second.answers, second.answer_texts) == ("s1-2", (), ["No", "no"])
    assert second.answerable
    assert train.version == "1.1"
    assert train.raw_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert train.name == "narrativeqa-train"
    [only] = load_narrativeqa(path, "valid", "mine")
    assert only.answers == (Answer("Été", 0),)
    assert only.answer_texts == ["ÉTÉ", "summer"]


def test_the_references_are_part_of_the_content():
    with_reference = FreeAnswerExample("a", "?", "c", (), "", ("x",))
    assert content_hash([with_reference]) != content_hash([Example("a", "?", "c")])


@pytest.mark.parametrize(
    ("text", "context", "found"),
    [
        ("art", "Art, party, art", [("Art", 0), ("art", 12)]),
        ("The End.", "the end", [("the end", 0)]),
        ("a.b", "axb a.b", [("a.b", 4)]),
        ("No", "none. not", []),
        ("(x)", "f(x) (x)", [("(x)", 5)]),
        (".", "a. b.", []),
        ("", "abc", []),
    ],
)
def test_occurrences(text, context, found):
    assert occurrences(text, context) == [Answer(*pair) for pair in found]


def test_bad_archives_are_named(archive, tmp_path):
    whole = archive()
    assert "no part 'dev'" in refused(load_narrativeqa, whole, "dev")
    raw = whole.read_bytes()
    cut = tmp_path / "cut.zip"
    for kept in (0, 4, len(raw) // 2, len(raw) - 30):
        cut.write_bytes(raw[:kept])
        message = refused(load_narrativeqa, cut, "train")
        assert str(cut) in message
        assert "damaged" in message
    flipped = bytearray(raw)
    flipped[90] ^= 0xFF  # in the first table's compressed bytes
    cut.write_bytes(flipped)
    assert "damaged" in refused(load_narrativeqa, cut, "train")
    assert "cannot be read" in refused(load_narrativeqa, tmp_path / "absent.zip", "train")
    assert "no qaps.csv in it" in refused(
        load_narrativeqa, archive(leave_out=["qaps.csv"]), "train"
    )
    assert "s1" in refused(load_narrativeqa, archive(stories=STORIES[1:]), "train")
    columns = [{"document_id": "s1", "set": "train"}]
    assert "'summary' is missing" in refused(load_narrativeqa, archive(stories=columns), "train")
    empty = [("s1", "train", "?", " ", "")]
    message = refused(load_narrativeqa, archive(asked=empty), "train")
    assert "qaps.csv, line 2: no answer" in message
    blank = [("s1", "train", " ", "x", "y")]
    assert "question is empty" in refused(load_narrativeqa, archive(asked=blank), "train")


# ------------------------------------------------------------------------------------- any form

SQUAD = {
    "data": [
        {
            "paragraphs": [
                {
                    "context": "a b",
                    "qas": [
                        {
                            "id": "q",
                            "question": "?",
                            "answers": [{"text": "b", "answer_start": 2}],
                        }
                    ],
                }
            ]
        }
    ]
}


def test_the_right_reader_is_chosen(save, archive, tmp_path):
    squad = save([SQUAD], "a.json")
    assert load_any(squad).examples == load_squad(squad).examples
    assert load_any(squad, "mine").name == "mine"
    assert load_any(save([SQUAD], "b.txt")).examples[0].id == "q"
    assert len(load_any(save([HEADER, passage()], "c.jsonl"))) == 2
    assert len(load_any(save([passage()], "d.jsonl"))) == 2
    assert len(load_any(save([HEADER, passage()], "e.jsonl.gz"))) == 2
    assert len(load_any(save([HEADER, passage()], "f.json"))) == 2
    packed = save([HEADER, passage()], "g.jsonl.gz").rename(tmp_path / "g.data")
    assert len(load_any(packed)) == 2
    assert len(load_any(archive(), part="train")) == 2
    assert len(load_any(archive())) == 1


def test_any_form_refuses_in_the_words_of_its_reader(save, tmp_path):
    assert "no such file" in refused(load_any, tmp_path / "absent.json")
    assert "cannot be read" in refused(load_any, tmp_path)
    assert "line 1" in refused(load_any, save([], "empty.json"))
    assert "no question" in refused(load_any, save([], "empty.jsonl"))
    (tmp_path / "empty.zip").write_bytes(b"")
    assert "damaged" in refused(load_any, tmp_path / "empty.zip")
