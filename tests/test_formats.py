"""Every form of data file gives the same examples; faults are named, counted and never silent."""

import copy
import gzip
import hashlib
import json
import warnings

import pytest
from fuzz_files import fuzz
from squad_files import write_squad

from qalib.data.formats import load_file
from qalib.data.schema import Answer, Example, content_hash
from qalib.errors import DataWarning, QalibError

CONTEXT = "The old bridge was built by Ada Quill in 1871."
ADA, YEAR = {"text": "Ada Quill", "answer_start": 28}, {"text": "1871", "answer_start": 41}
QAS = [
    {"id": "q1", "question": "Who built the bridge?", "answers": [ADA]},
    {"id": "q2", "question": "When was it built?", "answers": [YEAR]},
]
PARAGRAPH = {"context": CONTEXT, "qas": QAS}
TREE = {"version": "1.1", "data": [{"title": "Bridges", "paragraphs": [PARAGRAPH]}]}
EXAMPLES = (
    Example("q1", "Who built the bridge?", CONTEXT, (Answer("Ada Quill", 28),), "Bridges"),
    Example("q2", "When was it built?", CONTEXT, (Answer("1871", 41),), "Bridges"),
)
TABLE = [
    {
        "id": e.id,
        "title": e.title,
        "question": e.question,
        "context": e.context,
        "answers": {"text": e.answer_texts, "answer_start": [a.start for a in e.answers]},
    }
    for e in EXAMPLES
]
MRQA = PARAGRAPH | {
    "title": "Bridges",
    "qas": [
        {"qid": e.id, "question": e.question, "detected_answers": [{"char_spans": [[a, b]]}]}
        for e, a, b in zip(EXAMPLES, (28, 41), (36, 44), strict=True)
    ],
}
HEADER = {"header": {"dataset": "Bridges", "split": "dev"}}


def lines(*values) -> bytes:
    return b"".join(
        value if isinstance(value, bytes) else json.dumps(value).encode() + b"\n"
        for value in values
    )


@pytest.fixture
def save(tmp_path):
    """Write bytes, or a value as JSON."""

    def write(value, name="set.json"):
        path = tmp_path / name
        path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
        return path

    return write


def error_of(path, *arguments, **named) -> str:
    """The message of the one-line error of reading a file, which names the file."""
    with pytest.raises(QalibError) as caught:
        load_file(path, *arguments, **named)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert message.endswith(".")
    return message


def tolerated(path, purpose, **named):
    """(examples, the one warning) of reading a file with faults."""
    with pytest.warns(DataWarning) as caught:
        dataset = load_file(path, purpose, **named)
    assert len(caught) == 1
    assert str(caught[0].message).startswith(f"{path}: ")
    return dataset, str(caught[0].message)


# ---------------------------------------------------------------------------------------- forms


@pytest.mark.parametrize("purpose", ["train", "answer", "score"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize(
    "raw",
    [
        json.dumps(TREE).encode(),
        json.dumps(TREE, indent=1).encode("utf-8-sig"),
        json.dumps(TREE["data"]).encode(),
        json.dumps(TABLE, indent=1).encode(),
        json.dumps({"version": "1.1", "data": TABLE}).encode(),
        lines(*TABLE),
        b"\n" + lines(*TABLE).replace(b"\n", b"\r\n\r\n"),
        json.dumps([PARAGRAPH | {"title": "Bridges"}]).encode(),
        json.dumps(PARAGRAPH | {"title": "Bridges"}).encode(),
        lines(*(PARAGRAPH | {"title": "Bridges", "qas": [each]} for each in QAS)),
        lines(HEADER, MRQA),
        lines(MRQA),
    ],
)
def test_every_form_gives_the_same_examples(save, recwarn, raw, pack, purpose):
    path = save(pack(raw), "bridges.data")
    dataset = load_file(path, purpose)
    found = [Example(e.id, e.question, e.context, e.answers, e.title) for e in dataset]
    assert found == list(EXAMPLES)
    assert [e.answer_texts for e in dataset] == [["Ada Quill"], ["1871"]]
    assert dataset.content_sha256 == content_hash(EXAMPLES)
    assert dataset.raw_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert dataset.version == "1.1"
    assert not recwarn


def test_names_come_from_the_file(save):
    for name in ("mine.json", "mine.jsonl", "mine.jsonl.gz", "mine"):
        assert load_file(save(TREE, name)).name == "mine"
    assert load_file(save(TREE), name="yours").name == "yours"


@pytest.mark.parametrize("answers", [[], {"text": [], "answer_start": []}, [{"text": ""}]])
def test_unanswerable_questions(save, answers):
    impossible = {"is_impossible": True, "plausible_answers": [YEAR], "answers": answers}
    path = save({"data": [{"paragraphs": [PARAGRAPH | {"qas": [QAS[0], QAS[1] | impossible]}]}]})
    if answers == [{"text": ""}]:
        dataset, message = tolerated(path, "train")
        assert "faults tolerated: 1, rows left out: 0 of 2; the first: " in message
    else:
        dataset = load_file(path)
    assert [example.answerable for example in dataset] == [True, False]
    assert dataset.version == "2.0"


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        *((v, "2.0") for v in ("v2.0", "2.0", 2, 2.0, "V2", "SQuAD 2.0", "v2.0-dev", "2.0_x")),
        *(
            (v, "1.1")
            for v in ("1.1", "1.2.0", "12.03.2024", "2.3.2024", "2024", "v12.0", "", None)
        ),
        *((v, "1.1") for v in ("v20", "2.13", "AdversarialQA 2.", [2], {"a": "2.0"}, "2 March")),
    ],
)
def test_only_squad_2_is_version_2(save, version, expected):
    assert load_file(save(TREE | {"version": version})).version == expected


def test_an_unlabelled_file_can_be_answered_and_is_no_version_2(save, recwarn):
    bare = [{key: row[key] for key in ("id", "question", "context")} for row in TABLE]
    dataset = load_file(save(bare), "answer")
    assert [e.id for e in dataset] == ["q1", "q2"]
    assert dataset.version == "1.1"
    assert not recwarn
    for purpose in ("train", "score"):
        assert "'answers' is missing" in error_of(save(bare), purpose)


@pytest.mark.parametrize(
    "raw",
    [
        b"id,question,context,answer\nq1,Who?,Ada built it.,Ada\n",
        b"",
        b" \n",
        b"<html></html>",
        b'"text"',
        b"[]",
        b"{}",
        b"[1, null]",
        b'{"data": {}}',
        lines(HEADER),
        lines(
            {"id": 1, "data": {"text": CONTEXT}, "annotations": [{"result": []}]}
        ),  # Label Studio
        lines(
            {"context_id": "T", "context_text": "x", "qas": [{"query_id": "T1", "answers": ["x"]}]}
        ),
        lines(
            {"id": ["q1"], "question": ["Who?"], "context": [CONTEXT], "answers": [{}]}
        ),  # columns
        lines(
            {"_id": "h", "question": "Who?", "context": [["T", ["a"]]], "answer": "a"}
        ),  # HotpotQA
    ],
)
@pytest.mark.parametrize("purpose", ["train", "answer", "score"])
def test_other_forms_are_refused_with_those_that_are_read(save, raw, purpose):
    message = error_of(save(raw), purpose)
    assert "SQuAD 1.1 and 2.0, MRQA, rows with id" in message
    assert "cut short" not in message


# ------------------------------------------------------------------------------- damaged files


def test_files_that_cannot_be_read(tmp_path, save):
    assert "no such file" in error_of(tmp_path / "absent.json")
    assert "cannot be read" in error_of(tmp_path)
    assert "byte 10 is not UTF-8" in error_of(save(b'{"data": "\xff"}'))
    assert "recursion" in error_of(save(b"[" * 200_000))
    assert "line 1" in error_of(save(b'{"data": ' + b"9" * 5000 + b"}"))


@pytest.mark.parametrize("raw", [json.dumps(TREE).encode(), lines(TABLE[0], TABLE[1])])
@pytest.mark.parametrize("purpose", ["train", "answer"])
def test_a_file_that_is_cut_is_called_so_at_every_length(save, raw, purpose):
    raw = raw.rstrip()
    whole = 0 if raw.startswith(b'{"version') else raw.index(b"\n")
    for kept in range(1, len(raw)):
        if kept not in (whole, whole + 1):
            assert "cut short" in error_of(save(raw[:kept]), purpose, skip_bad=True)


def test_a_syntax_error_is_named_and_not_called_cut(save):
    for raw in (b'{"data": [}', b'{"data": [] x}', b"{'data': []}", b'{"data": []}}'):
        message = error_of(save(raw))
        assert "line 1, column" in message
        assert "cut short" not in message


def test_cut_and_damaged_gzip_files_are_told_apart(save):
    raw = gzip.compress(json.dumps(TREE).encode())
    for kept in range(2, len(raw)):
        assert "gzip data is cut short" in error_of(save(raw[:kept], "set.jsonl.gz"))
    broken = bytearray(raw)
    broken[len(raw) // 2] ^= 0xFF
    assert "gzip data is damaged" in error_of(save(bytes(broken)))


def test_a_damaged_line_is_a_bad_row(save):
    for row in (0, 1):
        rows = [*TABLE, TABLE[0] | {"id": "q3"}]
        rows[row] = b'{"id": "q", context}\n'
        path = save(lines(*rows))
        assert f"bad rows: 1 of 3; the first: line {row + 1}, column 13: not valid" in error_of(
            path
        )
        dataset, message = tolerated(path, "answer")
        assert len(dataset) == 2
        assert "rows left out: 1 of 3" in message


# --------------------------------------------------------------------------- strict and tolerant

ANYWHERE, TOLERANT = ("train", "answer", "score"), ("answer", "score")
PLACE = "article 0 ('Bridges'), paragraph 0, question 0"


def passage(**changes):
    return lambda tree: tree["data"][0]["paragraphs"][0].update(changes)


def question(drop="", **changes):
    def edit(tree):
        tree["data"][0]["paragraphs"][0]["qas"][0].update(changes)
        tree["data"][0]["paragraphs"][0]["qas"][0].pop(drop, None)

    return edit


def answer(**changes):
    return question(answers=[ADA | changes])


@pytest.mark.parametrize(
    ("edit", "parts", "kept_by"),  # words of the error in training; who keeps both questions
    [
        (lambda t: t["data"].append("x"), ["article 1: expected a JSON object"], ANYWHERE),
        (lambda t: t["data"].append({"paragraphs": {}}), ["'paragraphs' must be"], ANYWHERE),
        (lambda t: t["data"][0]["paragraphs"].append({"id": 1}), ["1: the key 'qas'"], ANYWHERE),
        (question("id"), [f"{PLACE}: the id must be a text, found None"], ()),
        (question(id=1.5), ["the id must be a text, found 1.5"], ()),
        (question(id=True), ["found True"], ()),
        (question(id=""), ["the id must be a text, found ''"], ()),
        (question(id="q2"), ["question 1 (id 'q2'): the id appears twice"], ()),
        (question("question"), [f"{PLACE} (id 'q1'): the key 'question'"], ["score"]),
        (question(question="\t "), ["the question is empty"], ["score"]),
        (question(context=7), ["'context' must be of type str, found int"], ["score"]),
        (question(context=" \n"), ["the context is empty"], ["score"]),
        (question("answers"), ["'answers' is missing"], ["answer"]),
        (question(answers="Ada"), ["'answers' is missing, or neither"], ["answer"]),
        (question(answers=[7]), ["the key 'text'"], ["answer"]),
        (question(answers=[{"answer_start": 28}]), ["the key 'text'"], ["answer"]),
        (answer(text=None), ["'text' must be of type str"], ["answer"]),
        (question(answers={"text": [None], "answer_start": [8]}), ["'text' must be"], ["answer"]),
        (question(answers=[]), ["no answer is given", "is_impossible"], TOLERANT),
        (question(answers=[], is_impossible=None), ["no answer is given"], TOLERANT),
        (question(is_impossible=True), ["is_impossible is True and 1 answers"], TOLERANT),
        (question(is_impossible="false"), ["is_impossible is 'false'"], TOLERANT),
        (answer(text=""), ["the empty string"], TOLERANT),
        (answer(text="Eve"), ["'Eve' does not occur"], TOLERANT),
        (answer(answer_start=27), ["start 27", "' Ada Quil'", "occurs at 28"], TOLERANT),
        (answer(text="1871", answer_start=-5), ["start -5", "occurs at 41"], TOLERANT),
        (answer(answer_start=10**9), ["1000000000", "''"], TOLERANT),
        (answer(answer_start=None), ["answer_start is None, no whole number"], TOLERANT),
        (answer(answer_start=True), ["answer_start is True"], TOLERANT),
        (answer(answer_start=28.5), ["answer_start is 28.5"], TOLERANT),
        (question(answers=["Ada Quill"]), ["answer_start is None"], TOLERANT),
        (question(answers={"text": ["Ada Quill"]}), ["1 answer texts but not as"], TOLERANT),
        (question(answers={"text": ["A"], "answer_start": []}), ["but not as many"], TOLERANT),
    ],
)
def test_faults_stop_training_and_only_the_needed_ones_lose_a_row(save, edit, parts, kept_by):
    tree = copy.deepcopy(TREE)
    edit(tree)
    path = save(tree)
    message = error_of(path)
    assert [words for words in ["bad rows: 1 of ", *parts] if words not in message] == []
    dataset, message = tolerated(path, "train", skip_bad=True)
    assert len(dataset) == 1 + ("train" in kept_by)
    assert "rows left out: 1 of " in message
    for purpose in TOLERANT:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            dataset = load_file(path, purpose)
        assert [e.id for e in dataset] == ["q1", "q2"][purpose not in kept_by :]
        assert len(caught) <= 1
        if purpose not in kept_by:
            assert "rows left out: 1 of 2" in str(caught[0].message)


@pytest.mark.parametrize(
    "changes",
    [
        {"id": 262},
        {"answers": [ADA | {"answer_start": "28"}]},
        {"answers": [ADA | {"answer_start": 28.0}]},
        {"answers": {"text": ["Ada Quill"], "answer_start": [" 28"]}},
        {"answers": {"text": "Ada Quill", "answer_start": "28"}},
    ],
)
def test_another_notation_is_understood_for_every_purpose(save, changes):
    path = save([{"context": CONTEXT, "qas": [QAS[0] | changes, QAS[1]]}])
    for purpose in ANYWHERE:
        dataset, message = tolerated(path, purpose)
        assert "faults tolerated: 1, rows left out: 0 of 2; the first: row 0, quest" in message
        assert dataset.examples[0].answers == (Answer("Ada Quill", 28),)
        assert dataset.examples[0].id == str(changes.get("id", "q1"))


def test_what_is_tolerated_is_counted_and_the_first_named(save):
    rows = [*copy.deepcopy(TABLE), TABLE[0] | {"id": 3, "answers": ["Quill", "Lady Ada"]}]
    rows[0]["answers"]["answer_start"] = [27]
    path = save(lines(*rows))
    dataset, message = tolerated(path, "score")
    assert "faults tolerated: 4, rows left out: 0 of 3; the first: line 1 (id 'q1'): " in message
    assert [e.answer_texts for e in dataset] == [["Ada Quill"], ["1871"], ["Quill", "Lady Ada"]]
    message = error_of(path)
    assert "bad rows: 2 of 3; the first: line 1 (id 'q1'): answer_start 27" in message
    assert "line 3 (id '3'): answer_start is None" in message
    assert "--skip-bad" in message


def test_training_names_three_bad_rows_of_many(save):
    rows = [TABLE[0] | {"id": f"q{n}", "question": "" if n % 2 else "Who?"} for n in range(20)]
    message = error_of(save(rows))
    assert "bad rows: 10 of 20" in message
    assert message.count("the question is empty") == 3


def test_mutated_files_break_nothing_and_lose_nothing_in_silence(tmp_path):
    assert sum(fuzz(300, 0, tmp_path).values()) == 300


# ------------------------------------------------------------------------------ texts and offsets

ODD = "\r\n \r \u2028 e\u0301 👩\u200d🚀 𝔸 \ufeff \x00 \ud800 ß ﷺ अआइ 日本語 العربية"


def test_any_text_is_kept_to_the_letter(tmp_path):
    spans = [Answer(ODD[a:b], a) for a in range(len(ODD)) for b in range(a + 1, len(ODD) + 1, 7)]
    examples = [Example(f"{n}{ODD}", ODD, ODD, (spans[n],), ODD) for n in range(len(spans))]
    examples += [Example("none", "?", ODD + "x"), Example("several", "?", ODD, tuple(spans))]
    write_squad(examples, tmp_path / "odd.json", version="2.0")
    dataset = load_file(tmp_path / "odd.json")
    assert sorted(dataset, key=lambda e: e.id) == sorted(examples, key=lambda e: e.id)
    assert dataset.content_sha256 == content_hash(examples)


def test_offsets_count_code_points(save):
    context = "\U0001f469\u200d\U0001f680 e\u0301 Ada"
    row = TABLE[0] | {"context": context, "answers": {"text": ["Ada"], "answer_start": [7]}}
    assert load_file(save([row])).examples[0].answers == (Answer("Ada", 7),)
    row["answers"]["answer_start"] = [8]  # as JavaScript counts
    assert "first occurs at 7" in error_of(save([row]))


def test_real_files_are_whole(real_data):
    dev1 = load_file(real_data / "squad-dev-v1.1.json")
    assert len(dev1) == 10_570
    assert len({example.context for example in dev1}) == 2_067
    assert len({example.title for example in dev1}) == 48
    dev2 = load_file(real_data / "squad-dev-v2.0.json", "score")
    assert len(dev2) == 11_873
    assert sum(not example.answerable for example in dev2) == 5_945
    assert dev2.version == "2.0"


# ---------------------------------------------------------------------------------------- MRQA

STORY = "[TLE] Öland Bridge [PAR] Ada Quill built it; Ada  Quill died in 1871. [DOC] Quill."


def spans(*found, **changes) -> dict:
    """A line of MRQA: the spans [first, last] of its one question, both ends inside."""
    detected = [{"text": "anything", "char_spans": list(found)}]
    qas = {"qid": "m", "question": "Who?", "question_tokens": [], "detected_answers": detected}
    return {"context": STORY, "context_tokens": [], "qas": [qas | changes]}


def test_mrqa_has_spans_for_training_and_texts_for_scoring(save):
    found = [[25, 33], [45, 54], [29, 33], [76, 80], [76, 80]]
    references = ["ada quill", "Quill", "Lady Quill"]
    for purpose in ANYWHERE:
        [example] = load_file(save(lines(HEADER, spans(*found, answers=references))), purpose)
        golds = [("Ada Quill", 25), ("Ada  Quill", 45), ("Quill", 29), ("Quill", 76)]
        assert [(a.text, a.start) for a in example.answers] == golds
        assert (example.id, example.question, example.context) == ("m", "Who?", STORY)
        assert example.answer_texts == references
    [example] = load_file(save(lines(spans([29, 33]))))
    assert example.answer_texts == ["Quill"]


def test_line_separators_inside_a_passage_end_no_line(save):
    entry = spans([15, 18]) | {"context": "one\u2028two\x85three\r\nfour"}
    raw = json.dumps(entry, ensure_ascii=False).encode()
    assert load_file(save(raw + b"\r\n")).examples[0].answers == (Answer("four", 15),)


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        (spans([25, 33], qid=None), ["line 3, question 0: the id must be a text, found None"]),
        (spans(qid="x"), ["id 'x'", "no answer span"]),
        (spans([0]), ["id 'm'", "the span [0] must be two whole numbers"]),
        (spans([0, True]), ["[0, True]"]),
        (spans([0, 1.5]), ["[0, 1.5]"]),
        (spans([5, 4]), ["[5, 4]", "inside its context"]),
        (spans([-1, 4]), ["[-1, 4]"]),
        (spans([0, len(STORY)]), [f"{len(STORY)}]", f"{len(STORY)} characters"]),
        (spans([25, 33], detected_answers=["Ada"]), ["the key 'char_spans'"]),
        (spans([25, 33], answers="Ada"), ["'answers' must be of type list"]),
        (spans([25, 33], answers=[1]), ["'answers' must be a list of texts"]),
    ],
)
def test_bad_mrqa_lines_are_named(save, line, parts):
    path = save(lines(HEADER, spans([25, 33], qid="first"), line))
    message = error_of(path)
    assert [words for words in ["bad rows: 1 of 2", "line 3", *parts] if words not in message] == []
    assert len(tolerated(path, "train", skip_bad=True)[0]) == 1


def test_scoring_mrqa_needs_no_spans(save):
    dataset, message = tolerated(save(lines(spans([5, 4], answers=["Ada", "Eve"]))), "score")
    assert dataset.examples[0].answer_texts == ["Ada", "Eve"]
    assert "faults tolerated: 2" in message


def test_ten_paragraphs_of_hotpotqa_become_one_passage(save):
    row = {"_id": "h1", "question": "Who built it?", "answer": "Ada", "supporting_facts": []}
    bridge = ["Bridge", ["It is old.", " Ada built it, not Adam."]]
    row["context"] = [bridge, ["Ada", ["She was born."]]]
    path = save([row, row | {"_id": "h2", "answer": "yes"}, row | {"_id": "h3", "answer": "Bo"}])
    with pytest.warns(DataWarning, match=r"rows left out: 2 of 3; .*'yes' is no span"):
        (example,) = load_file(path, skip_bad=True)
    assert example.context == "Bridge\nIt is old. Ada built it, not Adam.\nAda\nShe was born."
    assert [answer.start for answer in example.answers] == [18, 42]  # not within "Adam"
    with pytest.raises(QalibError, match="bad rows: 2 of 3"):
        load_file(path)
    damaged = {"answer": None}, {"context": [1]}, {"context": {"title": []}}, {"question": 3}
    path = save([row, *(row | {"_id": f"d{n}", **fault} for n, fault in enumerate(damaged))])
    with pytest.warns(DataWarning, match="rows left out: 4 of 5"):
        assert len(load_file(path, skip_bad=True)) == 1
