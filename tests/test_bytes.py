"""Byte features: encodings, spans that map back to their characters, batches."""

import numpy as np
import pytest
import torch
from byte_reference import byte_vector
from hypothesis import given, settings
from hypothesis import strategies as st

from qalib.data.bytes import (
    ByteConfig,
    QuestionRows,
    code_points,
    collate_passages,
    encode,
    passage_features,
    utf8_bytes,
)
from qalib.data.formats import load_file
from qalib.data.schema import Answer, Example
from qalib.errors import QalibError

UNITS = ("characters", "utf-8")
SCRIPTS = {
    "Latin": "naïve café, Ångström",
    "Arabic": "وُلد في القاهرة عام ١٩٢١",
    "Hebrew": "תל אביב-יפו נוסדה ב-1909",
    "Chinese": "他于一九八四年出生在北京。",
    "emoji": "a 👩‍👩‍👧 family 🇨🇭 at 🏔️",
    "combining": "Vie\u0302\u0323t e\u0301te\u0301",
    "line ends": "one\r\ntwo\r\n\r\nthree\n",
    "null": "a\0b\0\0c",
    "surrogates": "x\ud83dy \udc00\ud83d\ude00 z",
    "astral": "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈",
}
# surrogates included: what a file holds is not always what a standard allows
texts = st.text(st.characters(exclude_categories=()), min_size=1, max_size=60)


@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS)
def test_code_points_are_the_pages_one_hot_rows(text):
    assert byte_vector(text).argmax(dim=0).tolist() == code_points(text).tolist()


@given(texts)
def test_utf8_is_lossless_and_maps_bytes_to_characters(text):
    ids, owner = encode(text, "utf-8")
    assert ids.tobytes().decode("utf-8", "surrogatepass") == text
    expected = [
        i for i, c in enumerate(text) for _ in range(len(c.encode("utf-8", "surrogatepass")))
    ]
    assert owner.tolist() == expected
    assert np.array_equal(ids, utf8_bytes(text))


@given(texts)
def test_code_points_keep_one_position_a_character(text):
    ids, owner = encode(text)
    assert ids.tolist() == [min(255, ord(c)) for c in text]
    assert owner.tolist() == list(range(len(text)))


@pytest.mark.parametrize("unit", UNITS)
@settings(max_examples=150)
@given(context=texts, data=st.data())
def test_gold_spans_come_back_as_the_answers(unit, context, data):
    answers = []
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(context) - 1))
        end = data.draw(st.integers(start + 1, len(context)))
        answers.append(Answer(context[start:end], start))
    example = Example("q", "?", context, tuple(answers))
    (feature,) = passage_features([example], ByteConfig(unit))
    assert feature.weights[0].sum() == pytest.approx(1)
    found = [feature.characters(*span) for span in feature.spans[0]]
    assert set(found) == {(a.start, a.end) for a in answers}
    assert len(found) == len(set(found))


def many(count: int) -> list[Example]:
    """Questions about four passages, interleaved, with one to four annotators."""
    made = []
    for n in range(count):
        context = f"Passage {n % 4} " + "long " * (7 * (n % 4)) + "ends."
        answers = tuple(Answer("ends", context.index("ends")) for _ in range(1 + n % 2))
        answers += (Answer("Passage", 0),) * (n % 3)
        made.append(Example(f"q{n}", "Who?" * (1 + n % 5), context, answers))
    return made


@pytest.mark.parametrize("unit", UNITS)
def test_passages_hold_all_their_questions_and_batches_hold_the_passages(unit):
    examples = many(22)
    features = passage_features(examples, ByteConfig(unit))
    assert len(features) == 4
    batch = collate_passages(features)
    rows = [i for feature in features for i in feature.examples]
    assert sorted(rows) == list(range(22))
    assert len(batch) == 22
    for row, index in enumerate(rows):
        example, feature = examples[index], features[batch.owner[row]]
        passage = batch.passages[batch.owner[row]][batch.mask[row]]
        assert passage.tolist() == encode(example.context, unit)[0].tolist()
        question = batch.questions[row][batch.question_real[row]]
        assert question.tolist() == encode(example.question, unit)[0].tolist()
        gold = [
            (example.context[slice(*feature.characters(s, e))], round(weight, 4))
            for (s, e), weight in zip(
                batch.answer_spans[row].tolist(), batch.answer_weights[row].tolist(), strict=True
            )
            if weight
        ]
        counts = {a: example.answer_texts.count(a) for a in example.answer_texts}
        total = len(example.answers)
        assert gold == [(text, round(count / total, 4)) for text, count in counts.items()]
    assert batch.num_tokens == sum(map(len, features)) + sum(len(e.question) for e in examples)
    assert batch.passages.shape[1] % 64 == batch.questions.shape[1] % 32 == 0
    moved = vars(batch.to(torch.device("cpu"))).values()
    assert [type(value) for value in moved] == [*[torch.Tensor] * 8, int]


def test_long_passages_short_questions_and_cut_ones():
    long = ("\u05d0\0" * 50_000)[:-1] + "!"
    examples = [Example(f"q{n}", "?", long, (Answer("!", 99_999),)) for n in range(3)]
    examples.append(Example("one", "x" * 9000, "y", (Answer("y", 0),)))
    features = passage_features(examples, ByteConfig(room=200_000))
    assert [f.examples for f in features] == [(0, 1), (2,), (3,)]
    assert features[0].characters(*features[0].spans[0][0]) == (99_999, 100_000)
    assert len(features[2].questions[0]) == 512
    batch = collate_passages(features[2:])
    assert batch.answer_spans.tolist() == [[[0, 0]]]
    assert batch.mask.sum() == 1


@pytest.mark.parametrize(
    ("example", "message"),
    [(Example("a7", "Why?", ""), "'a7'.*passage"), (Example("b8", "", "x"), "'b8'.*question")],
)
def test_empty_text_is_named(example, message):
    with pytest.raises(QalibError, match=message):
        passage_features([Example("fine", "?", "x"), example])


def test_real_answers_survive_both_units(real_data):
    examples = load_file(real_data / "squad-dev-v1.1.json").examples[:1500]
    for unit in UNITS:
        for feature in passage_features(examples, ByteConfig(unit)):
            for index, spans in zip(feature.examples, feature.spans, strict=True):
                example = examples[index]
                found = {example.context[slice(*feature.characters(*span))] for span in spans}
                assert found == set(example.answer_texts)


# -------------------------------------------------------------------------------- training rows


def in_passages(counts: list[int], answered: bool = True) -> list[Example]:
    """Passages of growing length with so many questions each."""
    made = []
    for number, count in enumerate(counts):
        passage = f"Passage {number} says yes. " * (1 + number)
        answers = (Answer("yes", passage.index("yes")),) if answered else ()
        made += [Example(f"{number}-{q}", f"What {q}?", passage, answers) for q in range(count)]
    return made


def rows_of(counts: list[int], **config) -> QuestionRows:
    return QuestionRows(passage_features(in_passages(counts), ByteConfig(**config)))


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=20),
    st.integers(1, 16),
    st.integers(0, 5),
)
def test_every_question_is_in_one_batch_and_all_but_one_are_full(counts, size, epoch):
    rows = rows_of(counts)
    batches = rows.batches(size, 0, epoch, pool=2)
    assert sorted(row for batch in batches for row in batch) == list(range(sum(counts)))
    assert sorted(map(len, batches), reverse=True)[:-1] == [size] * (len(batches) - 1)
    assert batches == rows_of(counts).batches(size, 0, epoch, pool=2)


def test_epochs_and_seeds_differ():
    rows = rows_of([3] * 30)
    plans = [rows.batches(8, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(a != b for i, a in enumerate(plans) for b in plans[i + 1 :])


def test_a_passage_is_in_a_batch_once():
    rows = rows_of([5, 4, 7, 6] * 4)
    for chosen in rows.batches(8, 0, 0):
        batch = rows.collate(chosen)
        assert len(batch) == len(chosen)
        assert len(batch.passages) == len({rows.places[row][0] for row in chosen})
        for place, row in enumerate(chosen):
            feature = rows.feature(row)
            real = batch.passage_real[batch.owner[place]]
            assert np.array_equal(batch.passages[batch.owner[place]][real], feature.ids)
            question = batch.questions[place][batch.question_real[place]]
            assert np.array_equal(question, feature.questions[rows.places[row][1]])


def test_lengths_in_a_batch_are_similar():
    rows = rows_of([4] * 64)
    random = np.random.default_rng(0)

    def spread(batches):
        lengths = np.array(rows.lengths)
        return np.mean([np.ptp(lengths[batch]) for batch in batches])

    shuffled = random.permutation(len(rows)).reshape(-1, 16).tolist()
    assert spread(rows.batches(16, 0, 0)) < 0.3 * spread(shuffled)


def test_questions_of_one_passage_in_two_features_stay_whole():
    rows = rows_of([10, 3], max_questions=4)
    assert [rows.example(row) for row in range(len(rows))] == list(range(13))
    assert len(rows.collate(range(13))) == 13


def test_unanswerable_questions_are_left_out_of_training_alone():
    features = passage_features(in_passages([2], answered=False) + in_passages([0, 3]))
    assert len(QuestionRows(features)) == 3
    assert len(QuestionRows(features, gold_only=False)) == 5
    batch = collate_passages(features[:1])
    assert batch.answer_weights.tolist() == [[0.0], [0.0]]
    with pytest.raises(QalibError, match="no question has a gold answer"):
        QuestionRows(passage_features(in_passages([2], answered=False)))
