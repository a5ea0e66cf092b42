"""The example schema: hashes of content, merged data, held-out passages."""

import dataclasses
import hashlib
import json

import pytest

from qalib.data.schema import (
    Answer,
    Example,
    content_hash,
    hold_out,
    make_dataset,
    merge,
)
from qalib.errors import QalibError

ONE = Example("a", "Q?", "one two one", (Answer("one", 0), Answer("two", 4)))
TWO = Example("b", "R?", "one two one", (Answer("two", 4),))


def test_content_hash_is_that_of_its_definition():
    rows = [["a", "one two one", "Q?", ["one", "two"]], ["b", "one two one", "R?", ["two"]]]
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    assert content_hash([TWO, ONE]) == hashlib.sha256(lines).hexdigest()


def test_content_hash_depends_on_content_alone():
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


def test_references_are_part_of_the_content():
    with_reference = Example("a", "?", "c", references=("x",))
    assert with_reference.answerable
    assert content_hash([with_reference]) != content_hash([Example("a", "?", "c")])


def test_ids_must_be_unique():
    assert make_dataset("two", [ONE, TWO]).content_sha256 == content_hash([ONE, TWO])
    with pytest.raises(QalibError, match="two: question id 'a' appears twice"):
        make_dataset("two", [ONE, TWO, ONE])


def test_a_dataset_is_shown_by_name_and_size():
    assert repr(make_dataset("two", [ONE, TWO])) == "<Dataset two: 2 questions>"


def many(prefix, contexts):
    rows = [Example(f"{prefix}{i}{q}", "?", c) for i, c in enumerate(contexts) for q in "ab"]
    return make_dataset(prefix, rows)


def test_merged_datasets_keep_their_order_and_share_no_id():
    left, right = many("l", ["one", "two"]), many("r", ["two"])
    assert merge("both", [left, right]).examples == left.examples + right.examples
    with pytest.raises(QalibError, match="both: question id 'l0a' appears twice"):
        merge("both", [left, left])


def test_provenance_names_both_hashes_of_merged_data():
    one = make_dataset("a", [ONE], "folder/a.json", "ee")
    other = make_dataset("b", [dataclasses.replace(ONE, id="other")], "", "ff")
    assert one.provenance() == {
        "name": "a",
        "file": "a.json",
        "questions": 1,
        "raw_sha256": "ee",
        "content_sha256": content_hash([ONE]),
    }
    provenance = merge("both", [one, other]).provenance()
    assert provenance["raw_sha256"] == "ee+ff"
    assert provenance["content_sha256"] == content_hash([*one.examples, *other.examples])


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
    assert [part.version for part in hold_out(dataclasses.replace(left, version="2.0"), 0.5)] == [
        "2.0"
    ] * 2
