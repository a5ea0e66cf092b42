"""SQuAD files: what is read is what was written, and every mistake is named with its place."""

import copy
import dataclasses
import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qalib.data import squad
from qalib.data.squad import (
    Answer,
    Example,
    content_hash,
    hold_out,
    load_squad,
    make_dataset,
    merge,
    write_squad,
)
from qalib.errors import QalibError

TREE = {
    "version": "1.1",
    "data": [
        {
            "title": "Bridges",
            "paragraphs": [
                {
                    "context": "The old bridge was built by Ada Quill in 1871.",
                    "qas": [
                        {
                            "id": "q1",
                            "question": "Who built the bridge?",
                            "answers": [
                                {"text": "Ada Quill", "answer_start": 28},
                                {"text": "Quill", "answer_start": 32},
                            ],
                        },
                        {
                            "id": "q2",
                            "question": "When was it built?",
                            "answers": [{"text": "1871", "answer_start": 41}],
                        },
                    ],
                }
            ],
        }
    ],
}


@pytest.fixture
def tree():
    return copy.deepcopy(TREE)


@pytest.fixture
def save(tmp_path):
    def write(value, name="set.json"):
        path = tmp_path / name
        raw = value if isinstance(value, bytes) else json.dumps(value).encode()
        path.write_bytes(raw)
        return path

    return write


def paragraph(tree):
    return tree["data"][0]["paragraphs"][0]


def question(tree):
    return paragraph(tree)["qas"][0]


def refused(path) -> str:
    """The one line that a bad file is refused with; it names the file."""
    with pytest.raises(QalibError) as caught:
        load_squad(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert message.endswith(".")
    return message


# -------------------------------------------------------------------------------------- reading


def test_every_field_is_read(save, tree):
    path = save(tree, "bridges.json")
    dataset = load_squad(path)
    first, second = dataset
    assert first == Example(
        "q1",
        "Who built the bridge?",
        "The old bridge was built by Ada Quill in 1871.",
        (Answer("Ada Quill", 28), Answer("Quill", 32)),
        "Bridges",
    )
    assert second.answer_texts == ["1871"]
    assert second.answers[0].end == 45
    assert len(dataset) == 2
    assert dataset.version == "1.1"
    assert dataset.name == "bridges"
    assert dataset.raw_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert dataset.provenance() == {
        "name": "bridges",
        "file": "bridges.json",
        "questions": 2,
        "raw_sha256": dataset.raw_sha256,
        "content_sha256": dataset.content_sha256,
    }


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


def test_the_name_can_be_given(save, tree):
    assert load_squad(save(tree), "mine").name == "mine"


# ------------------------------------------------------------------------------------- refusing


def test_missing_file_and_directory(tmp_path):
    assert "no such file" in refused(tmp_path / "absent.json")
    assert "cannot be read" in refused(tmp_path)


def test_truncated_json_names_the_line(save, tree):
    lines = json.dumps(tree, indent=1).encode().split(b"\n")
    message = refused(save(b"\n".join(lines[:20])))
    assert "line 20, column" in message
    assert "cut short" in message


@pytest.mark.parametrize("raw", [b"", b"   ", b"{", b'{"data": [}', b"data: []"])
def test_malformed_json(save, raw):
    assert "line 1" in refused(save(raw))


def test_bytes_that_are_not_utf8(save):
    assert "byte 10" in refused(save(b'{"data": "\xff"}'))


def test_nesting_without_end(save):
    assert "nested" in refused(save(b"[" * 200_000))


@pytest.mark.parametrize("tree", [[], {}, 3, "text", None, {"data": {}}, {"data": "x"}])
def test_json_that_is_no_squad_file(save, tree):
    assert "'data'" in refused(save(tree))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda t: t["data"].append("x"), ["article 1", "JSON object", "str"]),
        (lambda t: t["data"][0].pop("paragraphs"), ["article 0 (Bridges)", "'paragraphs'"]),
        (lambda t: t["data"][0].update(paragraphs={}), ["'paragraphs' must be a list", "dict"]),
        (lambda t: paragraph(t).pop("context"), ["paragraph 0", "'context'", "missing"]),
        (lambda t: paragraph(t).update(context=7), ["'context' must be a str", "int"]),
        (lambda t: paragraph(t).pop("qas"), ["paragraph 0", "'qas'"]),
        (lambda t: question(t).pop("id"), ["question 0", "'id'"]),
        (lambda t: question(t).update(id=12), ["question 0", "'id' must be a str", "int"]),
        (lambda t: question(t).pop("question"), ["id 'q1'", "'question'"]),
        (lambda t: question(t).pop("answers"), ["id 'q1'", "'answers'"]),
        (lambda t: question(t).update(answers={}), ["id 'q1'", "'answers' must be a list"]),
        (lambda t: question(t).update(answers=[]), ["id 'q1'", "no answer", "is_impossible"]),
        (lambda t: question(t).update(is_impossible=True), ["id 'q1'", "2 answers"]),
        (lambda t: question(t).update(is_impossible="false"), ["id 'q1'", "'false'"]),
        (lambda t: question(t).update(id=""), ["question 0", "id is empty"]),
        (lambda t: question(t)["answers"][0].pop("text"), ["id 'q1'", "'text'"]),
        (lambda t: question(t)["answers"][1].pop("answer_start"), ["id 'q1'", "'answer_start'"]),
        (lambda t: question(t)["answers"][0].update(answer_start="28"), ["must be a int", "str"]),
        (lambda t: question(t)["answers"][0].update(answer_start=True), ["must be a int", "bool"]),
        (lambda t: paragraph(t).update(context=" \n"), ["context is empty"]),
        (lambda t: question(t).update(question="\t "), ["id 'q1'", "question is empty"]),
        (lambda t: question(t)["answers"][0].update(text=""), ["id 'q1'", "empty string"]),
        (lambda t: question(t)["answers"][0].update(text="Eve"), ["id 'q1'", "'Eve'", "not occur"]),
        (
            lambda t: question(t)["answers"][0].update(answer_start=27),
            ["id 'q1'", "answer_start 27", "' Ada Quil'", "first occurs at 28"],
        ),
        (lambda t: question(t)["answers"][0].update(answer_start=-9), ["-9", "occurs at 28"]),
        (lambda t: question(t)["answers"][0].update(answer_start=10**9), ["1000000000", "''"]),
        (lambda t: paragraph(t)["qas"][1].update(id="q1"), ["'q1'", "twice", "unique"]),
    ],
)
def test_mistakes_are_named_with_their_place(save, tree, edit, said):
    edit(tree)
    message = refused(save(tree))
    assert [words for words in said if words not in message] == []


def test_an_answer_at_the_wrong_end_of_the_text_is_not_wrapped_around(save, tree):
    """A negative start must not be read as Python reads negative indices."""
    context = paragraph(tree)["context"]
    question(tree)["answers"] = [{"text": "1871", "answer_start": 41 - len(context)}]
    assert context[41 - len(context) :][:4] == "1871"
    assert "answer_start -5" in refused(save(tree))


# ------------------------------------------------------------------------- text of every script

ODD = [
    "\r\n",
    "\r",
    "\u2028",
    "e\u0301",
    "\U0001f469\u200d\U0001f680",
    "\U0001d538",
    "\ufeff",
    "\x00",
    "ß",
    "ﷺ",
]
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
def test_what_is_written_is_read_again(examples, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "round-trip.json"
    write_squad(examples, path, version="2.0")
    dataset = load_squad(path)
    assert sorted(dataset, key=lambda e: e.id) == sorted(examples, key=lambda e: e.id)
    assert dataset.content_sha256 == content_hash(examples)


def test_lone_surrogates_are_kept_as_they_are(tmp_path):
    """JSON can spell them, Python can hold them; writing and hashing must not stop at them."""
    example = Example("\udfff", "\ud800?", "a \ud800 b", (Answer("\ud800 b", 2),))
    write_squad([example], tmp_path / "set.json")
    dataset = load_squad(tmp_path / "set.json")
    assert dataset.examples == (example,)
    assert dataset.content_sha256 == content_hash([example])


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
    assert "first occurs at 7" in refused(save(tree))


def test_composed_and_decomposed_letters_are_different_text(save, tree):
    paragraph(tree)["context"] = "cafe\u0301"
    question(tree)["answers"] = [{"text": "caf\u00e9", "answer_start": 0}]
    assert "does not occur" in refused(save(tree))


# --------------------------------------------------------------------------------- content hash

ONE = Example("a", "Q?", "one two one", (Answer("one", 0), Answer("two", 4)))
TWO = Example("b", "R?", "one two one", (Answer("two", 4),))


def test_content_hash_is_what_its_description_says():
    rows = [["a", "one two one", "Q?", ["one", "two"]], ["b", "one two one", "R?", ["two"]]]
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    assert content_hash([TWO, ONE]) == hashlib.sha256(lines).hexdigest()


def test_content_hash_sees_content_and_nothing_else():
    same = [
        dataclasses.replace(ONE, title="T"),
        dataclasses.replace(ONE, answers=(Answer("one", 8), Answer("two", 4))),
        dataclasses.replace(ONE, answers=ONE.answers[::-1]),
    ]
    other = [
        dataclasses.replace(ONE, id="c"),
        dataclasses.replace(ONE, question="Q"),
        dataclasses.replace(ONE, context="one two one "),
        dataclasses.replace(ONE, answers=ONE.answers[:1]),
        dataclasses.replace(ONE, answers=(*ONE.answers, Answer("one", 8))),
    ]
    expected = content_hash([ONE, TWO])
    assert all(content_hash([TWO, example]) == expected for example in same)
    hashes = {content_hash([example, TWO]) for example in other}
    assert len(hashes) == len(other)
    assert expected not in hashes


def test_a_dataset_made_by_hand_needs_different_ids():
    assert make_dataset("two", [ONE, TWO]).content_sha256 == content_hash([ONE, TWO])
    with pytest.raises(QalibError, match="two: question id 'a' appears twice"):
        make_dataset("two", [ONE, TWO, ONE])


# ------------------------------------------------------------------------- joining and splitting


def many(prefix, contexts):
    rows = [Example(f"{prefix}{i}{q}", "?", c) for i, c in enumerate(contexts) for q in "ab"]
    return make_dataset(prefix, rows)


def test_merged_datasets_keep_their_order_and_may_share_no_id():
    left, right = many("l", ["one", "two"]), many("r", ["two"])
    assert merge("both", [left, right]).examples == left.examples + right.examples
    with pytest.raises(QalibError, match="both: question id 'l0a' appears twice"):
        merge("both", [left, left])


def test_a_passage_is_held_out_whole_and_by_its_text_alone():
    left = many("l", [f"passage {i} \ud800" for i in range(400)])
    rest, held = hold_out(left, 0.25)
    assert sorted(e.id for e in [*rest, *held]) == sorted(e.id for e in left)
    inside = {e.context for e in held}
    assert inside.isdisjoint(e.context for e in rest)
    assert 60 < len(inside) < 140  # 100 expected, 4.6 standard deviations to either side
    other = many("r", [f"passage {i} \ud800" for i in range(399, -1, -2)])
    assert {e.context for e in hold_out(other, 0.25)[1]} == inside & {e.context for e in other}
    assert inside <= {e.context for e in hold_out(left, 0.5)[1]}
    assert len(hold_out(left, 0.0)[1]) == 0
    assert len(hold_out(left, 1.0)[0]) == 0


# ------------------------------------------------------------------------------------- real data


def test_real_files_are_whole(real_data):
    dev1 = load_squad(real_data / "squad-dev-v1.1.json")
    assert len(dev1) == 10_570
    assert len({example.context for example in dev1}) == 2_067
    assert len({example.title for example in dev1}) == 48
    dev2 = load_squad(real_data / "squad-dev-v2.0.json")
    assert len(dev2) == 11_873
    assert sum(not example.answerable for example in dev2) == 5_945
    assert dev1.raw_sha256 == squad.file_sha256(real_data / "squad-dev-v1.1.json")


def test_provenance_names_both_hashes_also_of_merged_data(save, tree):
    one = load_squad(save(tree))
    other = make_dataset("b", [dataclasses.replace(ONE, id="other")], "", "ff")
    told = merge("both", [one, other]).provenance()
    assert told["raw_sha256"] == f"{one.raw_sha256}+ff"
    assert told["content_sha256"] == content_hash([*one.examples, *other.examples])
