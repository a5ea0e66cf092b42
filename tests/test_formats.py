"""SQuAD files, MRQA lines and rows of a table: one schema, every error with its place."""

import copy
import gzip
import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qalib.data.formats import from_rows, load_any, load_mrqa, load_squad, write_squad
from qalib.data.schema import Answer, Example, content_hash, file_sha256
from qalib.errors import QalibError


@pytest.fixture
def save(tmp_path):
    """Write bytes, or a value as JSON."""

    def write(value, name="set.json"):
        path = tmp_path / name
        path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
        return path

    return write


@pytest.fixture
def save_lines(save):
    """Write lines, each bytes or a value as JSON, compressed if the name says so."""

    def write(lines, name="set.jsonl"):
        raw = b"".join(
            line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines
        )
        return save(gzip.compress(raw) if name.endswith(".gz") else raw, name)

    return write


def error_of(reader, *arguments) -> str:
    """The message of the one-line error that a reader raises."""
    with pytest.raises(QalibError) as caught:
        reader(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


# ---------------------------------------------------------------------------------------- SQuAD

ADA = {"text": "Ada Quill", "answer_start": 28}
QUILL = {"text": "Quill", "answer_start": 32}
YEAR = {"text": "1871", "answer_start": 41}
QAS = [
    {"id": "q1", "question": "Who built the bridge?", "answers": [ADA, QUILL]},
    {"id": "q2", "question": "When was it built?", "answers": [YEAR]},
]
PARAGRAPH = {"context": "The old bridge was built by Ada Quill in 1871.", "qas": QAS}
TREE = {"version": "1.1", "data": [{"title": "Bridges", "paragraphs": [PARAGRAPH]}]}


@pytest.fixture
def tree():
    return copy.deepcopy(TREE)


def article(tree):
    return tree["data"][0]


def paragraph(tree):
    return article(tree)["paragraphs"][0]


def question(tree):
    return paragraph(tree)["qas"][0]


def answer(tree):
    return question(tree)["answers"][0]


def squad_error(path) -> str:
    """The error of a bad SQuAD file, which names the file."""
    message = error_of(load_squad, path)
    assert str(path) in message
    return message


def test_every_field_is_read(save, tree):
    path = save(tree, "bridges.json")
    dataset = load_squad(path)
    first, second = dataset
    context = paragraph(tree)["context"]
    golds = (Answer("Ada Quill", 28), Answer("Quill", 32))
    assert first == Example("q1", "Who built the bridge?", context, golds, "Bridges")
    assert second.answer_texts == ["1871"]
    assert second.answers[0].end == 45
    assert (dataset.name, dataset.version) == ("bridges", "1.1")
    assert dataset.raw_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_squad(path, "mine").name == "mine"


def test_unanswerable_questions_of_version_2(save, tree):
    question(tree).update(
        answers=[], is_impossible=True, plausible_answers=[{"text": "1871", "answer_start": 41}]
    )
    dataset = load_squad(save(tree))
    assert [example.answerable for example in dataset] == [False, True]
    assert dataset.examples[0].answers == ()
    assert dataset.version == "2.0"


def test_a_byte_order_mark_is_no_part_of_the_data(save, tree):
    assert len(load_squad(save(b"\xef\xbb\xbf" + json.dumps(tree).encode()))) == 2


def test_missing_file_and_directory(tmp_path):
    assert "no such file" in squad_error(tmp_path / "absent.json")
    assert "cannot be read" in squad_error(tmp_path)


def test_truncated_json_names_the_line(save, tree):
    lines = json.dumps(tree, indent=1).encode().split(b"\n")
    message = squad_error(save(b"\n".join(lines[:20])))
    assert "line 20, column" in message
    assert "cut short" in message


@pytest.mark.parametrize(
    ("raw", "part"),
    [
        *((raw, "line 1") for raw in (b"", b"   ", b"{", b'{"data": [}', b"data: []")),
        *((raw, "'data'") for raw in (b"[]", b"{}", b"3", b"null", b'{"data": {}}')),
        (b'{"data": "\xff"}', "byte 10"),
        (b"[" * 200_000, "nested"),
    ],
)
def test_other_content_is_refused(save, raw, part):
    assert part in squad_error(save(raw))


@pytest.mark.parametrize(
    ("edit", "parts"),
    [
        (lambda t: t["data"].append("x"), ["article 1", "JSON object", "str"]),
        (lambda t: article(t).pop("paragraphs"), ["article 0 (Bridges)", "'paragraphs'"]),
        (lambda t: article(t).update(paragraphs={}), ["'paragraphs' must be of type list", "dict"]),
        (lambda t: paragraph(t).pop("context"), ["paragraph 0", "'context'", "missing"]),
        (lambda t: paragraph(t).update(context=7), ["'context' must be of type str", "int"]),
        (lambda t: paragraph(t).pop("qas"), ["paragraph 0", "'qas'"]),
        (lambda t: question(t).pop("id"), ["question 0", "'id'"]),
        (lambda t: question(t).update(id=12), ["question 0", "'id' must be of type str", "int"]),
        (lambda t: question(t).pop("question"), ["id 'q1'", "'question'"]),
        (lambda t: question(t).pop("answers"), ["id 'q1'", "'answers'"]),
        (lambda t: question(t).update(answers={}), ["id 'q1'", "'answers' must be of type list"]),
        (lambda t: question(t).update(answers=[]), ["id 'q1'", "no answer", "is_impossible"]),
        (lambda t: question(t).update(is_impossible=True), ["id 'q1'", "2 answers"]),
        (lambda t: question(t).update(is_impossible="false"), ["id 'q1'", "'false'"]),
        (lambda t: question(t).update(id=""), ["question 0", "id is empty"]),
        (lambda t: answer(t).pop("text"), ["id 'q1'", "'text'"]),
        (lambda t: answer(t).pop("answer_start"), ["id 'q1'", "'answer_start'"]),
        (lambda t: answer(t).update(answer_start="28"), ["must be of type int", "str"]),
        (lambda t: answer(t).update(answer_start=True), ["must be of type int", "bool"]),
        (lambda t: paragraph(t).update(context=" \n"), ["context is empty"]),
        (lambda t: question(t).update(question="\t "), ["id 'q1'", "question is empty"]),
        (lambda t: answer(t).update(text=""), ["id 'q1'", "empty string"]),
        (lambda t: answer(t).update(text="Eve"), ["id 'q1'", "'Eve'", "not occur"]),
        (lambda t: answer(t).update(answer_start=27), ["start 27", "' Ada Quil'", "occurs at 28"]),
        (lambda t: answer(t).update(text="1871", answer_start=-5), ["start -5", "occurs at 41"]),
        (lambda t: answer(t).update(answer_start=10**9), ["1000000000", "''"]),
        (lambda t: paragraph(t)["qas"][1].update(id="q1"), ["'q1'", "twice", "unique"]),
    ],
)
def test_mistakes_are_named_with_their_place(save, tree, edit, parts):
    edit(tree)
    message = squad_error(save(tree))
    assert [words for words in parts if words not in message] == []


ODD = ["\r\n", "\r", "\u2028", "e\u0301", "👩\u200d🚀", "𝔸", "\ufeff", "\x00", "\ud800", "ß", "ﷺ"]
words = st.one_of(
    st.sampled_from(ODD),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
    st.text("अआइकखग日本語العربيةабвгдабв", min_size=1, max_size=5),
)
texts = st.lists(words, max_size=8).map("".join)
not_blank = texts.filter(str.strip)


@st.composite
def example_lists(draw):
    """Questions about a few passages, with 0 to 3 answers, all ids different."""
    passages = draw(st.lists(st.tuples(texts, not_blank), min_size=1, max_size=3))
    ids = draw(st.lists(not_blank, unique=True, max_size=5))
    examples = []
    for identity in ids:
        title, context = draw(st.sampled_from(passages))
        answers = []
        for _ in range(draw(st.integers(0, 3))):
            start = draw(st.integers(0, len(context) - 1))
            end = draw(st.integers(start + 1, len(context)))
            answers.append(Answer(context[start:end], start))
        examples.append(Example(identity, draw(not_blank), context, tuple(answers), title))
    return examples


@settings(max_examples=50)
@given(examples=example_lists())
def test_written_examples_are_read_again(examples, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "round-trip.json"
    write_squad(examples, path, version="2.0")
    dataset = load_squad(path)
    assert sorted(dataset, key=lambda e: e.id) == sorted(examples, key=lambda e: e.id)
    assert dataset.content_sha256 == content_hash(examples)


def test_order_is_kept_within_a_passage_and_line_ends_are_kept(tmp_path):
    context = "un\r\ndeux\rtrois\n quatre"
    examples = [Example(f"q{i}", "?", context, (Answer("deux", 4),)) for i in (3, 1, 2)]
    write_squad(examples, tmp_path / "set.json")
    assert load_squad(tmp_path / "set.json").examples == tuple(examples)


def test_offsets_count_code_points(save, tree):
    paragraph(tree)["context"] = "\U0001f469\u200d\U0001f680 e\u0301 Ada"
    question(tree)["answers"] = [{"text": "Ada", "answer_start": 7}]
    paragraph(tree)["qas"] = [question(tree)]
    assert load_squad(save(tree)).examples[0].answers == (Answer("Ada", 7),)
    question(tree)["answers"][0]["answer_start"] = 8  # as JavaScript counts
    assert "first occurs at 7" in squad_error(save(tree))


def test_composed_and_decomposed_letters_are_different_text(save, tree):
    paragraph(tree)["context"] = "cafe\u0301"
    question(tree)["answers"] = [{"text": "caf\u00e9", "answer_start": 0}]
    assert "does not occur" in squad_error(save(tree))


def test_real_files_are_whole(real_data):
    dev1 = load_squad(real_data / "squad-dev-v1.1.json")
    assert len(dev1) == 10_570
    assert len({example.context for example in dev1}) == 2_067
    assert len({example.title for example in dev1}) == 48
    dev2 = load_squad(real_data / "squad-dev-v2.0.json")
    assert len(dev2) == 11_873
    assert sum(not example.answerable for example in dev2) == 5_945
    assert dev1.raw_sha256 == file_sha256(real_data / "squad-dev-v1.1.json")


# ---------------------------------------------------------------------------------------- MRQA

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
    detected = [{"text": "1871", "char_spans": [span("1871")]}]
    second = {"qid": "m2", "question": "When did she die?", "detected_answers": detected}
    return {"context": CONTEXT, "context_tokens": [], "qas": [first | changes, second]}


def spans(*found):
    return passage(detected_answers=[{"char_spans": list(found)}])


@pytest.mark.parametrize("name", ["bridges.jsonl", "bridges.jsonl.gz"])
@pytest.mark.parametrize("header", [[HEADER], []])
def test_mrqa_is_read(save_lines, name, header):
    path = save_lines([*header, passage(), b"\n"], name)
    dataset = load_mrqa(path)
    first, second = dataset
    golds = [("Ada Quill", 25), ("Ada  Quill", 45), ("Quill", 29), ("Quill", 76)]
    assert [(a.text, a.start) for a in first.answers] == golds
    assert (first.id, first.question, first.context) == ("m1", "Who built it?", CONTEXT)
    assert first.answer_texts == ["ada quill", "Quill", "Lady Quill"]
    assert second.answers == (Answer("1871", span("1871")[0]),)
    assert second.answer_texts == ["1871"]
    assert first.answerable
    assert second.answerable
    assert dataset.name == "bridges"
    assert dataset.raw_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_mrqa(path, "mine").name == "mine"


def test_line_separators_inside_a_passage_end_no_line(save_lines):
    context = "one\u2028two\x85three\r\nfour"
    detected = [{"char_spans": [[len(context) - 4, len(context) - 1]]}]
    entry = {
        "context": context,
        "qas": [{"qid": "x", "question": "?", "detected_answers": detected}],
    }
    path = save_lines([json.dumps(entry, ensure_ascii=False).encode() + b"\r\n"])
    assert load_mrqa(path).examples[0].answers == (Answer("four", len(context) - 4),)


@pytest.mark.parametrize("kept", [0, 1, 5, 19, 60, -9, -5, -1])
def test_truncated_gzip_is_named(save_lines, kept):
    path = save_lines([HEADER, passage()], "cut.jsonl.gz")
    path.write_bytes(path.read_bytes()[:kept])
    message = error_of(load_mrqa, path)
    assert str(path) in message
    assert "fetch" in message


def test_damaged_gzip_is_named(save_lines):
    path = save_lines([HEADER, passage()], "bad.jsonl.gz")
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(raw)
    assert "damaged or cut short after line" in error_of(load_mrqa, path)


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        (b'{"context": "a", "qas": [\n', ["line 3, column", "not valid JSON", "cut short"]),
        (b"\xff\xfe\n", ["line 3", "UTF-8"]),
        (b"[" * 100_000 + b"\n", ["line 3"]),
        (b'{"context": ' + b"9" * 5000 + b"}\n", ["line 3"]),
        ([], ["line 3", "JSON object", "list"]),
        (HEADER, ["line 3", "'context'", "missing"]),
        ({"context": 1, "qas": []}, ["line 3", "'context' must be of type str", "int"]),
        ({"context": "a"}, ["line 3", "'qas'"]),
        (passage(qid=7), ["line 3, question 0", "'qid' must be of type str"]),
        (passage(qid="m2"), ["'m2'", "twice"]),
        (passage(question=" "), ["line 3, question 0 (id m1)", "question is empty"]),
        (passage(detected_answers=[]), ["id m1", "no answer span"]),
        (passage(detected_answers=["Ada"]), ["id m1", "JSON object", "str"]),
        (passage(detected_answers=[{}]), ["id m1", "'char_spans'"]),
        (spans([0]), ["id m1", "two whole numbers", "[0]"]),
        (spans([0, True]), ["two whole numbers"]),
        (spans([0, 1.5]), ["two whole numbers"]),
        (spans([5, 4]), ["[5, 4]", "outside"]),
        (spans([-1, 4]), ["[-1, 4]", "outside"]),
        (spans([0, len(CONTEXT)]), [f"[0, {len(CONTEXT)}]", f"{len(CONTEXT)} characters"]),
        (passage() | {"context": " " * len(CONTEXT)}, ["line 3", "context is empty"]),
        (passage(answers="Ada"), ["id m1", "'answers' must be a list of texts"]),
        (passage(answers=[1]), ["id m1", "'answers' must be a list of texts"]),
    ],
)
def test_bad_mrqa_lines_are_named(save_lines, line, parts):
    path = save_lines([HEADER, b"\n", line])
    message = error_of(load_mrqa, path)
    assert [words for words in [str(path), *parts] if words not in message] == []


def test_mrqa_files_without_questions_are_refused(save_lines, tmp_path):
    assert "no question" in error_of(load_mrqa, save_lines([HEADER]))
    assert "no question" in error_of(load_mrqa, save_lines([]))
    assert "cannot be read" in error_of(load_mrqa, tmp_path / "absent.jsonl")
    assert "cannot be read" in error_of(load_mrqa, tmp_path)


passages = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@settings(max_examples=50)
@given(context=passages, data=st.data())
def test_spans_of_any_script_come_back(context, data, tmp_path_factory):
    first = data.draw(st.integers(0, len(context) - 1))
    last = data.draw(st.integers(first, len(context) - 1))
    detected = [{"text": "anything", "char_spans": [[first, last]]}]
    qas = [{"qid": "x", "question": "?", "detected_answers": detected, "answers": ["y"]}]
    entry = {"context": context, "qas": qas}
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text(json.dumps(entry, ensure_ascii=False), encoding="utf-8", newline="")
    [example] = load_mrqa(path)
    assert example.context == context
    assert example.answers == (Answer(context[first : last + 1], first),)
    assert example.answer_texts == ["y"]


# ----------------------------------------------------------------------- rows of a datasets table

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
    unanswerable = ROW | {"id": "r2", "title": None, "answers": {"text": [], "answer_start": []}}
    dataset = from_rows(iter([ROW, unanswerable]), "rows")
    assert dataset.examples[0] == EXAMPLE
    assert dataset.examples[1] == Example("r2", EXAMPLE.question, EXAMPLE.context)
    assert (dataset.name, dataset.path, dataset.raw_sha256) == ("rows", "", "")


def test_a_table_of_the_datasets_library_is_read(tmp_path):
    import datasets

    datasets.Dataset.from_list([ROW]).to_parquet(tmp_path / "0000.parquet")
    table = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "0000.parquet"), split="train", cache_dir=str(tmp_path)
    )
    assert from_rows(table, "x").examples == (EXAMPLE,)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"id": 5}, ["'id' must be of type str", "int"]),
        ({"id": "r0"}, ["'r0'", "twice"]),
        ({"question": None}, ["row 1 (id 'r1')", "'question'", "NoneType"]),
        ({"context": "\n"}, ["row 1 (id 'r1')", "context is empty"]),
        ({"context": None}, ["row 1", "'context'"]),
        ({"answers": None}, ["row 1", "'answers' must be of type dict"]),
        ({"answers": {"text": ["Ada"]}}, ["row 1", "'answer_start'", "missing"]),
        ({"answers": {"text": ["Ada"], "answer_start": []}}, ["1 answer texts but 0 offsets"]),
        ({"answers": {"text": [None], "answer_start": [4]}}, ["row 1 (id 'r1')", "type str"]),
        ({"answers": {"text": ["Ada"], "answer_start": [4.0]}}, ["must be of type int"]),
        ({"answers": {"text": ["Ada"], "answer_start": [5]}}, ["answer_start 5", "occurs at 4"]),
    ],
)
def test_bad_rows_are_named(changes, parts):
    message = error_of(from_rows, [ROW | {"id": "r0"}, ROW | changes], "rows")
    assert [words for words in ["rows", *parts] if words not in message] == []


# ------------------------------------------------------------------------------------ any format


def test_the_right_reader_is_chosen(save, save_lines, tmp_path):
    squad = save(TREE, "a.json")
    assert load_any(squad).examples == load_squad(squad).examples
    assert load_any(squad, "mine").name == "mine"
    assert load_any(save(TREE, "b.txt")).examples[0].id == "q1"
    assert len(load_any(save_lines([HEADER, passage()], "c.jsonl"))) == 2
    assert len(load_any(save_lines([passage()], "d.jsonl"))) == 2
    assert len(load_any(save_lines([HEADER, passage()], "e.jsonl.gz"))) == 2
    assert len(load_any(save_lines([HEADER, passage()], "f.json"))) == 2
    packed = save_lines([HEADER, passage()], "g.jsonl.gz").rename(tmp_path / "g.data")
    assert len(load_any(packed)) == 2


def test_errors_are_those_of_the_reader(save_lines, tmp_path):
    assert "no such file" in error_of(load_any, tmp_path / "absent.json")
    assert "cannot be read" in error_of(load_any, tmp_path)
    assert "line 1" in error_of(load_any, save_lines([], "empty.json"))
    assert "no question" in error_of(load_any, save_lines([], "empty.jsonl"))
