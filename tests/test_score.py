"""Scoring files as the command line does: results, and one clear sentence for each mistake."""

import json
import re

import pytest

from qalib import metrics
from qalib.data.squad import Answer, Example, load_squad, write_squad
from qalib.errors import QalibError

CONTEXT = "Ada keeps a red dog and an old owl in Ely."
KEPT = Example("q1", "What does Ada keep?", CONTEXT, (Answer("red dog", 12), Answer("dog", 16)))
PLACE = Example("q2", "Where?", CONTEXT, (Answer("Ely", 38),))
NOWHERE = Example("q3", "Who is the mayor of Ely?", CONTEXT)


@pytest.fixture
def files(tmp_path):
    """Write questions and predictions; returns the two paths."""

    def write(examples, predictions, version="1.1"):
        dataset, answers = tmp_path / "dataset.json", tmp_path / "predictions.json"
        write_squad(examples, dataset, version)
        answers.write_text(predictions if isinstance(predictions, str) else json.dumps(predictions))
        return dataset, answers

    return write


def complaint(dataset, predictions) -> str:
    """The one sentence that scoring these files ends with."""
    with pytest.raises(QalibError) as caught:
        metrics.score_files(dataset, predictions)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_1_1_file_gives_exact_match_and_f1(files):
    result = metrics.score_files(*files([KEPT, PLACE], {"q1": "the red dog.", "q2": "in Ely"}))
    assert list(result) == ["exact_match", "f1"]
    assert result == {"exact_match": 50.0, "f1": pytest.approx(100 * (1 + 2 / 3) / 2)}


def test_a_2_0_file_gives_the_parts(files):
    predictions = {"q1": "", "q2": "Ely", "q3": "Ada"}
    result = metrics.score_files(*files([KEPT, PLACE, NOWHERE], predictions, "v2.0"))
    assert json.loads(json.dumps(result)) == {
        "exact": pytest.approx(100 / 3),
        "f1": pytest.approx(100 / 3),
        "total": 3,
        "HasAns_exact": 50.0,
        "HasAns_f1": 50.0,
        "HasAns_total": 2,
        "NoAns_exact": 0.0,
        "NoAns_f1": 0.0,
        "NoAns_total": 1,
    }


def test_paths_may_be_text_and_a_byte_order_mark_is_no_harm(files, tmp_path):
    dataset, predictions = files([PLACE], {"q2": "Ely"})
    predictions.write_text('{"q2": "Ely"}', encoding="utf-8-sig")
    assert metrics.score_files(str(dataset), str(predictions))["f1"] == 100.0


def test_answers_survive_any_script(files):
    predictions = {"q1": "ред 犬 🐕 e\u0301", "q2": "Ely"}
    assert metrics.score_files(*files([KEPT, PLACE], predictions))["exact_match"] == 50.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1, column 1: not valid JSON"),
        ('{"q1": "dog",\n "q2', "line 2, column 2: not valid JSON"),
        ('["dog"]', "expected one JSON object, question id to answer text"),
        ('"dog"', "expected one JSON object, question id to answer text"),
        ('{"q1": "dog", "q2": null}', "question 'q2': expected an answer text, found None"),
        ('{"q1": "dog", "q2": 1914}', "question 'q2': expected an answer text, found 1914"),
        ('{"q1": [{"text": "dog"}]}', "question 'q1': expected an answer text, found [{'text'"),
        ('{"x": "dog"}', "the predictions belong to another dataset; none is for"),
        ("{}", "the predictions belong to another dataset; none is for"),
    ],
)
def test_bad_predictions_are_named(files, text, message):
    dataset, predictions = files([KEPT, PLACE], text)
    said = complaint(dataset, predictions)
    assert said.startswith(f"{predictions}: ")
    assert message in said


def test_a_long_wrong_value_is_cut(files):
    assert len(complaint(*files([KEPT], {"q1": ["dog"] * 10_000}))) < 300


def test_a_file_that_is_not_there_is_named(files, tmp_path):
    dataset, predictions = files([KEPT], {"q1": "dog"})
    missing = tmp_path / "nowhere.json"
    assert complaint(missing, predictions).startswith(f"{missing}: no such file")
    assert complaint(dataset, missing).startswith(f"{missing}: no such file")
    assert complaint(dataset, tmp_path).startswith(f"{tmp_path}: cannot be read")


def test_bytes_that_are_not_text_are_named(files):
    dataset, predictions = files([KEPT], {"q1": "dog"})
    predictions.write_bytes(b'{"q1": "\xff"}')
    assert complaint(dataset, predictions).startswith(f"{predictions}: byte 8 is not UTF-8")


def test_files_in_the_wrong_order_are_told_apart(files):
    dataset, predictions = files([KEPT], {"q1": "dog"})
    assert complaint(predictions, dataset).startswith(f"{predictions}: not a SQuAD file")


def test_a_dataset_without_questions_is_named(files):
    dataset, predictions = files([], {"q1": "dog"})
    assert re.search(r"dataset\.json: there is no question", complaint(dataset, predictions))


def test_load_predictions_gives_back_the_file(files):
    predictions = {"q1": "dog", "q2": ""}
    assert metrics.load_predictions(files([KEPT], predictions)[1]) == predictions


def test_real_files_score_as_their_questions_do(real_data, tmp_path):
    path, predictions = real_data / "squad-dev-v1.1.json", tmp_path / "predictions.json"
    dataset = load_squad(path)
    said = {e.id: e.context[: 10 + i % 90] for i, e in enumerate(dataset)}
    predictions.write_text(json.dumps(said))
    assert metrics.score_files(path, predictions) == metrics.score(dataset, said)


def test_a_version_2_file_is_scored_by_its_rule_even_if_all_can_be_answered(tmp_path):
    example = Example("q", "Who?", "Ada met Bo.", (Answer("Ada", 0),))
    write_squad([example], tmp_path / "data.json", version="v2.0")
    (tmp_path / "said.json").write_text('{"q": "Ada"}')
    scores = metrics.score_files(tmp_path / "data.json", tmp_path / "said.json")
    assert {"exact", "f1", "total", "HasAns_f1"} <= set(scores)
