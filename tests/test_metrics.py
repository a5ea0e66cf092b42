"""Metrics against slow literal references, enumerated resamples and real data."""

import gzip
import itertools
import json
import math
import re
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from squad_files import write_squad

from qalib import metrics
from qalib.data.formats import load_file
from qalib.data.schema import Answer, Dataset, Example, make_dataset
from qalib.errors import DataWarning, QalibError

pytestmark = pytest.mark.filterwarnings("ignore::qalib.errors.DataWarning")

WORDS = ["a", "The", "an", "dog", "Dog", "dog's", "théâtre", "the-sea", "1,914", "--", "", "_a_"]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=5).map(" ".join) | st.text(max_size=12)
GOLDS = st.lists(TEXTS, min_size=1, max_size=4)
RULES = st.sampled_from(["1.1", "2.0"])


def dataset_of(golds: dict[str, list[str]]) -> Dataset:
    """One question per id; the passage is its gold texts in a row."""
    examples = []
    for key, texts in golds.items():
        starts = itertools.accumulate([0, *(len(text) + 1 for text in texts)])
        answers = tuple(Answer(text, at) for text, at in zip(texts, starts, strict=False))
        examples.append(Example(key, "Which?", " ".join(texts) + " .", answers))
    return make_dataset("tiny", examples)


# --- A slow literal reference: the published rules, one character and one word at a time.


def plain_words(text: str) -> list[str]:
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    runs = ["".join(run) for _, run in itertools.groupby(kept, lambda c: c.isalnum() or c == "_")]
    return "".join(" " if run in ("a", "an", "the") else run for run in runs).split()


def plain_pair(prediction: str, gold: str, rule: str) -> tuple[float, float]:
    predicted, left = plain_words(prediction), plain_words(gold)
    em, n_said, n_gold = float(predicted == left), len(predicted), len(left)
    if rule == "2.0" and (not n_said or not n_gold):
        return em, em
    same = 0
    for word in predicted:
        if word in left:
            left.remove(word)
            same += 1
    if not same:
        return em, 0.0
    precision, recall = 1.0 * same / n_said, 1.0 * same / n_gold
    return em, (2 * precision * recall) / (precision + recall)


def plain_best(prediction: str, golds: list[str], rule: str) -> tuple[float, float]:
    if rule == "2.0":
        golds = [gold for gold in golds if plain_words(gold)] or [""]
    pairs = [plain_pair(prediction, gold, rule) for gold in golds]
    return max(em for em, _ in pairs), max(f1 for _, f1 in pairs)


def plain_percent(scores: list[float]) -> float:
    total = 0.0
    for score in scores:
        total += score
    return 100.0 * total / len(scores)


def plain_scores(dataset, predictions, rule) -> list[tuple[float, float]]:
    return [
        plain_best(predictions[e.id], e.answer_texts, rule) if e.id in predictions else (0.0, 0.0)
        for e in dataset
    ]


def plain_squad1(dataset, predictions) -> dict:
    em, f1 = zip(*plain_scores(dataset, predictions, "1.1"), strict=True)
    return {"exact_match": plain_percent(em), "f1": plain_percent(f1)}


def plain_squad2(dataset, predictions) -> dict:
    scores = plain_scores(dataset, predictions, "2.0")
    result = {}
    for prefix, wanted in (("", (True, False)), ("HasAns_", (True,)), ("NoAns_", (False,))):
        part = [s for s, e in zip(scores, dataset, strict=True) if bool(e.answers) in wanted]
        if part:
            result[prefix + "exact"] = plain_percent([em for em, _ in part])
            result[prefix + "f1"] = plain_percent([f1 for _, f1 in part])
            result[prefix + "total"] = len(part)
    return result


# --- Normalising and single pairs.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat,\tan\u00a0owl & a dog!", "cat owl dog"),
        ("a-b", "ab"),  # the hyphen goes first, so there is no article left to drop
        ("the-sea", "thesea"),
        ("U.S.A.", "usa"),
        ("A.", ""),
        (
            "Théâtre\u2019s \u2013 end",
            "théâtre\u2019s \u2013 end",
        ),  # punctuation beyond ASCII stays
        ("an apple a day", "apple day"),
        ("theory another", "theory another"),
        ("sea\u2013the\u2013dog", "sea\u2013 \u2013dog"),  # an article leaves a gap
        ("the\u2019a", "\u2019"),  # a word boundary, though not a space
        ("", ""),
    ],
)
def test_normalising_by_example(text, expected):
    assert metrics.normalize_answer(text) == expected


@given(TEXTS)
def test_normalising_equals_the_reference(text):
    assert metrics.normalize_answer(text) == " ".join(plain_words(text))


@given(TEXTS, GOLDS, RULES)
def test_pairs_equal_the_reference(prediction, golds, rule):
    em, f1 = plain_best(prediction, golds, rule)
    assert metrics.exact_match(prediction, golds, rule) == em
    assert metrics.f1(prediction, golds, rule) == f1


@given(TEXTS, TEXTS, RULES)
def test_f1_is_symmetric(one, other, rule):
    assert metrics.f1(one, [other], rule) == metrics.f1(other, [one], rule)


@given(TEXTS, GOLDS, RULES, st.randoms(use_true_random=False))
def test_the_order_of_golds_does_not_matter(prediction, golds, rule, random):
    shuffled = random.sample(golds, len(golds))
    for metric in (metrics.exact_match, metrics.f1):
        assert metric(prediction, golds, rule) == metric(prediction, shuffled, rule)


@given(TEXTS, GOLDS, RULES)
def test_em_is_at_most_f1_except_for_two_empty_texts_in_v1(prediction, golds, rule):
    em, f1 = metrics.exact_match(prediction, golds, rule), metrics.f1(prediction, golds, rule)
    assert 0 <= f1 <= 1
    if rule == "1.1" and not metrics.normalize_answer(prediction):
        assert f1 == 0
    else:
        assert em <= f1


@pytest.mark.parametrize(
    ("prediction", "golds", "rule", "em", "f1"),
    [
        ("the", ["A!"], "1.1", 1, 0),
        ("the", ["A!"], "2.0", 1, 1),
        ("", ["dog"], "1.1", 0, 0),
        ("", [], "2.0", 1, 1),
        ("dog", [], "2.0", 0, 0),
        ("the", ["a", "dog"], "1.1", 1, 0),
        ("the", ["a", "dog"], "2.0", 0, 0),  # the empty gold is dropped, and dog remains
        ("dog dog cat", ["dog"], "1.1", 0, 0.5),
        ("red dog", "red dog", "1.1", 1, 1),  # a bare text is one gold answer
    ],
)
def test_the_two_rules_by_example(prediction, golds, rule, em, f1):
    assert metrics.exact_match(prediction, golds, rule) == em
    assert metrics.f1(prediction, golds, rule) == f1


def test_em_and_f1_take_their_maxima_over_golds_separately():
    golds = ["the", "blue dog"]
    assert metrics.exact_match("a", golds) == 1
    assert metrics.f1("blue cat", golds) == 0.5


def test_questions_that_no_rule_can_score_are_named():
    with pytest.raises(QalibError, match=r"2\.0"):
        metrics.f1("dog", [])
    with pytest.raises(QalibError, match=r"'v2'; choose '1\.1' or '2\.0'"):
        metrics.f1("dog", ["dog"], "v2")


# --- Whole datasets.

ANSWERABLE = {"q1": ["red dog", "dog"], "q2": ["1,914", "the year 1914"], "q3": ["A."]}
PREDICTED = {"q1": "a red dog", "q2": "1914 or so", "q3": "the", "other": "ignored"}


@st.composite
def tasks(draw, min_golds: int):
    golds = draw(st.lists(st.lists(TEXTS.filter(bool), min_size=min_golds, max_size=3), min_size=1))
    dataset = dataset_of({f"q{i}": texts for i, texts in enumerate(golds)})
    predicted = draw(st.lists(st.none() | TEXTS, min_size=len(golds), max_size=len(golds)))
    predictions = {f"q{i}": text for i, text in enumerate(predicted) if text is not None}
    return dataset, predictions or {"q0": "dog"}


@given(tasks(min_golds=1))
def test_squad1_equals_the_reference(task):
    assert metrics.score(*task, rule="1.1") == plain_squad1(*task)


@given(tasks(min_golds=0))
def test_squad2_equals_the_reference(task):
    result = metrics.score(*task, rule="2.0")
    assert list(result.items()) == list(plain_squad2(*task).items())
    assert all(0 <= value <= 100 for key, value in result.items() if not key.endswith("total"))


def test_score_picks_the_rule_by_the_questions():
    dataset = dataset_of(ANSWERABLE)
    expected_f1 = 100 * (1 + 0.5 + 0) / 3  # "1914 or so" shares one word with each gold
    assert list(metrics.score(dataset, PREDICTED).values()) == pytest.approx([200 / 3, expected_f1])
    result = metrics.score(dataset_of({**ANSWERABLE, "q4": []}), {**PREDICTED, "q4": ""})
    assert (result["exact"], result["HasAns_f1"]) == (75.0, pytest.approx(250 / 3))
    assert [type(result[key]) for key in ("exact", "total", "NoAns_total")] == [float, int, int]


def test_a_missing_prediction_scores_zero_and_is_warned_of(recwarn):
    dataset = dataset_of({"q1": ["dog"], "q2": [], "q3": ["cat"]})
    with pytest.warns(DataWarning, match="2 of 3 questions have no prediction, the first .* 'q2'"):
        result = metrics.score(dataset, {"q1": "dog"}, rule="2.0")
    assert (result["exact"], result["total"]) == (pytest.approx(100 / 3), 3)
    assert (result["HasAns_exact"], result["NoAns_f1"]) == (50.0, 0.0)
    assert metrics.score(dataset_of(ANSWERABLE), PREDICTED, rule="1.1")["f1"] > 0
    assert not recwarn


def test_nothing_to_score_is_an_error():
    dataset = dataset_of(ANSWERABLE)
    for predictions in ({}, {"elsewhere": "dog"}):
        with pytest.raises(QalibError, match="belong to another dataset; none is for tiny"):
            metrics.score(dataset, predictions)
    with pytest.raises(QalibError, match="no question"):
        metrics.score(make_dataset("tiny", []), {"q1": "dog"})
    with pytest.raises(QalibError, match=r"rule '2\.0'"):
        metrics.score(dataset_of({"q1": []}), {"q1": ""}, rule="1.1")


# --- No-answer probabilities and characters.


def plain_thresholds(dataset, predictions, na_probs) -> dict:
    """The official 2.0 script's way: question by question, from a dictionary of scores."""
    raw = dict(zip((e.id for e in dataset), plain_scores(dataset, predictions, "2.0"), strict=True))
    result = {}
    for k, name in enumerate(("exact", "f1")):
        current = best = sum(not e.answers for e in dataset)
        threshold = 0.0
        golds = {e.id: e.answers for e in dataset}
        for key in sorted(na_probs, key=lambda key: na_probs[key]):
            if key not in raw:
                continue
            current += raw[key][k] if golds[key] else -1 if predictions[key] else 0
            if current > best:
                best, threshold = current, na_probs[key]
        kept = [float(not e.answers) if na_probs[e.id] > 1.0 else raw[e.id][k] for e in dataset]
        result[name] = plain_percent(kept)
        result |= {f"best_{name}": 100.0 * best / len(raw), f"best_{name}_thresh": threshold}
    return result


@given(tasks(min_golds=0), st.data())
def test_thresholds_equal_the_official_ones(task, data):
    dataset, predictions = task
    predictions |= {e.id: predictions.get(e.id, "") for e in dataset}
    numbers = st.sampled_from([-3.5, 0, 0.5, 1.0, 1.5, 7])
    na_probs = {e.id: data.draw(numbers) for e in dataset} | {"elsewhere": -9}
    result = metrics.score(dataset, predictions, na_probs)
    expected = plain_thresholds(dataset, predictions, na_probs)
    assert {key: result[key] for key in expected} == expected
    assert list(result)[-4:] == ["best_exact", "best_exact_thresh", "best_f1", "best_f1_thresh"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "one JSON object, question id to number"),
        ('{"q1": 0.5}', "question 'q2': expected a number, found None"),
        ('{"q1": 0.5, "q2": "high"}', "question 'q2': expected a number, found 'high'"),
        ('{"q1": 0.5, "q2": true}', "found True"),
        ('{"q1": 1' + 400 * "0" + ', "q2": 1}', "question 'q1': expected a number, found 1"),
        ('{"q1": NaN, "q2": 1}', "question 'q1': expected a number, found nan"),
        ('{"q1": 0, "q2": Infinity}', "found inf"),
    ],
)
def test_bad_no_answer_scores_are_named(files, tmp_path, content, message):
    paths = files([KEPT, PLACE], {"q1": "dog", "q2": "Ely"})
    (tmp_path / "odds.json").write_text(content)
    with pytest.raises(QalibError, match=f"odds.json: .*{message}"):
        metrics.score_files(*paths, tmp_path / "odds.json")


@pytest.mark.parametrize(
    ("gold", "predicted", "words", "characters"),
    [
        ("1954년 2월 15일", "1954년 2월 15일에", 200 / 3, 2000 / 21),  # KorQuAD counts 10 of 11
        ("王小明", "王小明。", 0, 100),
        ("東京タワー", "タワー", 0, 75),
    ],
)
def test_f1_of_characters_for_scripts_without_spaces(tmp_path, gold, predicted, words, characters):
    (tmp_path / "d.json").write_text(json.dumps([{"id": "k", "answers": [{"text": gold}]}]))
    (tmp_path / "p.json").write_text(json.dumps({"k": predicted}))
    paths = tmp_path / "d.json", tmp_path / "p.json"
    with pytest.warns(DataWarning, match="most answers are Chinese, Japanese or Korean"):
        assert metrics.score_files(*paths)["f1"] == pytest.approx(words)
    with pytest.warns(DataWarning) as caught:  # of the missing offset alone
        scores = metrics.score_files(*paths, characters=True)
    assert scores["f1"] == pytest.approx(characters)
    assert len(caught) == 1


# --- Ranked answers.


def test_ranks_are_those_of_the_first_correct_answer():
    dataset = dataset_of({"q1": ["dog"], "q2": ["cat", "owl"], "q3": ["ant"], "q4": ["bee"]})
    ranked = {
        "q1": ["the dog", "Dog", "dog"],
        "q2": ["dog", "dog", "an owl", "cat"],
        "q3": ["dog", "cat", "owl", "bee", "gnu", "ant"],  # sixth: beyond n
    }
    with pytest.warns(DataWarning, match="'q4'"):
        assert metrics.correct_ranks(dataset, ranked).tolist() == [1, 3, 0, 0]
    with pytest.raises(QalibError, match="another dataset"):
        metrics.correct_ranks(dataset, {"elsewhere": ["dog"]})


# --- The bootstrap.


def test_the_bootstrap_of_paired_scores_finds_a_shift_that_unpaired_noise_would_hide():
    rng = np.random.default_rng(2)
    a = rng.random(400)
    b = a - 0.02 + rng.normal(0, 0.02, 400)
    result = metrics.bootstrap_ci(np.mean, a - b, samples=2000)
    assert result.value == pytest.approx((a - b).mean())
    spread = 1.96 * (a - b).std() / math.sqrt(400)
    assert result.low == pytest.approx(result.value - spread, abs=spread / 5)
    assert result.high == pytest.approx(result.value + spread, abs=spread / 5)
    reverse = metrics.bootstrap_ci(np.mean, b - a, samples=2000)
    assert (reverse.low, reverse.high) == pytest.approx((-result.high, -result.low))


@pytest.mark.parametrize("delta", [[1.0, 0.0, -0.4], [0.3, 0.9, -1.0, 0.1, 0.2]])
def test_the_bootstrap_has_the_distribution_of_all_resamples(delta):
    means = np.array([np.mean(drawn) for drawn in itertools.product(delta, repeat=len(delta))])
    result = metrics.bootstrap_ci(np.mean, np.array(delta), samples=20_000)
    for bound, share in ((result.low, 0.025), (result.high, 0.975)):
        assert (means < bound - 1e-9).mean() <= share + 0.005
        assert (means <= bound + 1e-9).mean() >= share - 0.005


def test_a_bootstrap_interval_of_any_statistic():
    rng = np.random.default_rng(6)
    gains = rng.normal([[1.0], [2.0]], 0.5, (2, 300))

    def kept(gains):
        return 100 * gains[0].mean() / gains[1].mean()

    found = metrics.bootstrap_ci(kept, gains, samples=500)
    assert found.value == pytest.approx(kept(gains))
    spread = 1.96 * 50 * math.hypot(0.5 / 1, 0.5 / 2) / math.sqrt(300)  # of a ratio, delta method
    assert found.low == pytest.approx(found.value - spread, abs=spread / 4)
    assert found.high == pytest.approx(found.value + spread, abs=spread / 4)
    assert found == metrics.bootstrap_ci(kept, gains, samples=500)
    assert found != metrics.bootstrap_ci(kept, gains, samples=500, seed=1)


def test_arrays_are_resampled_together_and_undefined_statistics_left_out():
    a = np.arange(20.0)
    difference = metrics.bootstrap_ci(lambda a, b: (a - b).mean(), a, a + 1, samples=50)
    assert difference == pytest.approx((-1.0, -1.0, -1.0))
    rare = np.array([1.0, *[0.0] * 4])
    share = metrics.bootstrap_ci(lambda x: 1 / x.sum() if x.any() else np.nan, rare, samples=200)
    assert share.value == 1.0
    assert 0 < share.low <= share.high == 1.0
    nothing = metrics.bootstrap_ci(lambda x: np.nan, rare, samples=5)
    assert np.isnan(nothing).all()
    for arrays in ((a, a[1:]), (np.zeros((2, 0)),), (np.float64(1.0),)):
        with pytest.raises(QalibError, match="cannot be resampled together"):
            metrics.bootstrap_ci(np.mean, *arrays)


# --- Real data.


def some_predictions(dataset: Dataset) -> dict[str, str]:
    """For every question the gold text, a stretch of the passage around it, or nothing."""
    predictions = {}
    for i, e in enumerate(dataset):
        start, end = (e.answers[-1].start, e.answers[-1].end) if e.answers else (0, 9)
        predictions[e.id] = (e.context[start:end], e.context[max(0, start - 7) : end + 5], "")[
            i % 3
        ]
    return predictions


def test_gold_answers_score_100_on_real_data(real_data):
    dataset = load_file(real_data / "squad-dev-v1.1.json")
    gold = {e.id: e.answers[0].text for e in dataset}
    assert metrics.score(dataset, gold) == {"exact_match": 100.0, "f1": 100.0}
    dataset = load_file(real_data / "squad-dev-v2.0.json")
    gold = {e.id: e.answers[0].text if e.answers else "" for e in dataset}
    result = metrics.score(dataset, gold)
    totals = {key: result.pop(key) for key in ("total", "HasAns_total", "NoAns_total")}
    assert totals == {"total": 11_873, "HasAns_total": 5_928, "NoAns_total": 5_945}
    assert set(result.values()) == {100.0}


def test_squad1_equals_the_reference_on_real_data(real_data):
    dataset = load_file(real_data / "squad-dev-v1.1.json")
    predictions = some_predictions(dataset)
    result = metrics.score(dataset, predictions)
    assert result == plain_squad1(dataset, predictions)
    assert 0 < result["exact_match"] < result["f1"] < 100


def test_squad2_equals_the_reference_on_real_data(real_data):
    dataset = load_file(real_data / "squad-dev-v2.0.json")
    predictions = some_predictions(dataset)
    assert metrics.score(dataset, predictions) == plain_squad2(dataset, predictions)


# --- Files, as the command line scores them.

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


def error_of(dataset, predictions) -> str:
    """The error of scoring these files, one line."""
    with pytest.raises(QalibError) as caught:
        metrics.score_files(dataset, predictions)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_1_1_file_gives_exact_match_and_f1(files):
    result = metrics.score_files(*files([KEPT, PLACE], {"q1": "the red dog.", "q2": "in Ely"}))
    assert list(result) == ["exact_match", "f1"]
    assert result == {"exact_match": 50.0, "f1": pytest.approx(100 * (1 + 2 / 3) / 2)}


def test_predictions_that_are_no_texts_are_counted_and_never_lost_in_silence(files):
    predictions = {"q1": "dog", "q2": 1914, "q3": None, "q4": ["dog"], "q5": 1.5, "q6": True}
    path = files([KEPT], predictions)[1]
    with pytest.warns(
        DataWarning, match=r"no texts: 5, left out: 3; .* 'q2': .* found 1914\."
    ) as w:
        assert metrics.load_predictions(path) == {"q1": "dog", "q2": "1914", "q3": ""}
    assert len(w) == 1


def test_predictions_may_be_a_list_and_compressed(files):
    dataset, predictions = files([KEPT, PLACE], "")
    rows = [{"id": 1, "prediction_text": "x"}, {"id": "q2", "prediction_text": "Ely"}]
    predictions.write_bytes(gzip.compress(json.dumps(rows).encode()))
    assert metrics.load_predictions(predictions) == {"1": "x", "q2": "Ely"}
    with pytest.warns(DataWarning, match="1 of 2 questions have no prediction"):
        assert metrics.score_files(dataset, predictions)["f1"] == 50.0
    predictions.write_bytes(gzip.compress(json.dumps([*rows, rows[0]]).encode()))
    with pytest.raises(QalibError, match="an id appears twice"):
        metrics.load_predictions(predictions)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1, column 1: not valid JSON"),
        ('{"q1": "dog",\n "q2', "line 2, column 2: not valid JSON"),
        ('"dog"', "expected one JSON object, question id to answer text"),
        ('{"q1": [{"text": "dog"}]}', "question 'q1': expected an answer text, found [{'text'"),
        ('{"x": "dog"}', "the predictions belong to another dataset; none is for"),
        ("{}", "the predictions belong to another dataset; none is for"),
    ],
)
def test_bad_predictions_are_named(files, text, message):
    dataset, predictions = files([KEPT, PLACE], text)
    error = error_of(dataset, predictions)
    assert error.startswith(f"{predictions}: ")
    assert message in error


def test_files_in_the_wrong_order_are_told_apart(files):
    dataset, predictions = files([KEPT], {"q1": "dog"})
    assert error_of(predictions, dataset).startswith(f"{predictions}: none of 1 rows")


def test_a_dataset_without_questions_is_named(files):
    dataset, predictions = files([], {"q1": "dog"})
    assert re.search(r"dataset\.json: there is no question", error_of(dataset, predictions))


def test_a_version_2_file_is_scored_by_its_rule_even_if_all_can_be_answered(tmp_path):
    example = Example("q", "Who?", "Ada met Bo.", (Answer("Ada", 0),))
    write_squad([example], tmp_path / "data.json", version="v2.0")
    (tmp_path / "predictions.json").write_text('{"q": "Ada"}')
    scores = metrics.score_files(tmp_path / "data.json", tmp_path / "predictions.json")
    assert {"exact", "f1", "total", "HasAns_f1"} <= set(scores)


def test_the_worst_version_of_an_adversarial_question_counts():
    ids = ["a", "b", "a-high-conf-turk0", "a-high-conf-turk1", "c", "b-high-conf-turk0"]
    rome = (Answer("Rome", 0),)
    dataset = make_dataset("AddSent", [Example(id, "Where?", "Rome or Oslo", rome) for id in ids])
    em = np.array([1.0, 0.0, 1.0, 0.0, 1.0, 1.0])
    overlap = np.array([1.0, 0.5, 1.0, 0.25, 1.0, 0.75])
    worst = metrics.adversarial_scores(dataset, em, overlap)
    assert [scores.tolist() for scores in worst] == [[0.0, 1.0, 1.0], [0.25, 0.75, 1.0]]
    alone = metrics.adversarial_scores(make_dataset("plain", dataset.examples[:2]), em, overlap)
    assert [scores.tolist() for scores in alone] == [[1.0, 0.0], [1.0, 0.5]]
