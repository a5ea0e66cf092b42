"""One objective for all readers: knowledge moves through characters, and the parts are told."""

import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_distill import DATA, WordReader, WordRows, answers, chance, toy_places

from qalib.data.byte_batches import QuestionRows
from qalib.data.byte_features import ByteConfig, passage_features
from qalib.distill.characters import (
    Place,
    byte_places,
    carry,
    carry_places,
    ends_at,
    match_rows,
    span_positions,
    starts_at,
    tokenizer_hash,
    window_places,
    word_places,
)
from qalib.distill.distractors import Mined, Miner, MiningConfig, random_distractors
from qalib.distill.lessons import Lessons
from qalib.distill.losses import (
    DistillConfig,
    hops_loss,
    kd_loss,
    margin_loss,
    teacher_probabilities,
    total_loss,
)
from qalib.distill.objective import Distillation, gradient_norms
from qalib.distill.schedule import Schedule
from qalib.distill.teachers import TeacherCache
from qalib.errors import QalibError
from qalib.losses import span_loss
from qalib.train import Task, TrainConfig, train

ROWS = WordRows(DATA)
HOPS = ("align 1", "align 2")
PAPER, ANSWERS = DistillConfig(), DistillConfig(delta=0.0)


def lessons_of(folder, places=ROWS.places, seeds=(1, 2), hops=HOPS, length=15):
    cache = TeacherCache.create(folder, places, "data", "words", hops)
    miner = Miner(DATA, MiningConfig(max_length=length))
    for seed in seeds:
        cache.write(f"t{seed}", answers(places, seed, hops=hops), miner, {"seed": seed})
    return Lessons(cache, [f"t{seed}" for seed in seeds])


@pytest.fixture(scope="module")
def lessons(tmp_path_factory):
    return lessons_of(tmp_path_factory.mktemp("words"))


def distillation(lessons, config=PAPER, **changes):
    known = {"collate": ROWS.collate, "places": ROWS.places, "tokenizer": "words", **changes}
    return Distillation(lessons=lessons, config=config, **known)


# Through characters


def place_of(cuts, first=0, skip=()):
    """Tokens between neighbouring cuts, some left out, as spaces are."""
    pairs = [pair for n, pair in enumerate(pairwise(cuts)) if n not in skip]
    return Place("q", np.array(pairs, dtype=np.int32).reshape(-1, 2), first)


def slow_carry(mass, offsets, student, length, end):
    """Every token's mass, by looking at every token of the student."""
    carried = [0.0] * length
    view = (student.offsets[0, 0], student.offsets[-1, 1])
    for share, (a, b) in zip(mass, offsets.tolist(), strict=True):
        if b <= view[0] or a >= view[1]:
            continue
        tokens = list(enumerate(student.offsets.tolist()))
        if end:
            token = [n for n, (s, _) in tokens if s < b][-1]
        else:
            token = next(n for n, (_, e) in tokens if e > a)
        carried[student.first + token] += share
    return carried


cutting = st.lists(st.integers(0, 30), min_size=2, max_size=12, unique=True).map(sorted)


@given(
    teacher=cutting, student=cutting, skip=st.sets(st.integers(1, 10), max_size=3), data=st.data()
)
def test_carrying_is_its_rule_and_conserves_what_is_seen(teacher, student, skip, data):
    taught = place_of(teacher)
    learner = place_of(student, data.draw(st.integers(0, 3)), skip - {len(student) - 2})
    mass = data.draw(
        st.lists(st.floats(0, 1), min_size=len(taught.offsets), max_size=len(taught.offsets))
    )
    length = learner.first + len(learner.offsets) + 2
    where = carry_places([taught.offsets], [learner], len(mass) + 1)
    padded = torch.tensor([[*mass, 0.5]])  # what stands in padding goes nowhere
    for side, there in enumerate(where):
        found = carry(padded, there, length)
        meant = slow_carry(mass, taught.offsets, learner, length, end=side == 1)
        assert found[0].tolist() == pytest.approx(meant, abs=1e-5)
        view = (learner.offsets[0, 0], learner.offsets[-1, 1])
        seen = sum(
            m for m, (a, b) in zip(mass, taught.offsets, strict=True) if b > view[0] and a < view[1]
        )
        assert found.sum().item() == pytest.approx(seen, abs=1e-4)


@given(teacher=cutting, student=cutting, seed=st.integers(0, 99))
def test_a_student_of_the_whole_passage_gets_all_of_the_mass(teacher, student, seed):
    teacher, student = (sorted({0, 30, *cuts}) for cuts in (teacher, student))
    taught, learner = place_of(teacher), place_of(student, 1)
    q = torch.from_numpy(np.random.default_rng(seed).dirichlet(np.ones(len(taught.offsets))))[None]
    for there in carry_places([taught.offsets], [learner], len(taught.offsets)):
        assert carry(q, there, 40).sum().item() == pytest.approx(1.0)


@given(cuts=cutting, first=st.integers(0, 4), skip=st.sets(st.integers(0, 10), max_size=3))
def test_tokenizers_that_agree_change_nothing(cuts, first, skip):
    place = place_of(cuts, first, skip - {0})
    expected = first + np.arange(len(place.offsets))
    assert starts_at(place.offsets, place).tolist() == expected.tolist()
    assert ends_at(place.offsets, place).tolist() == expected.tolist()


def test_tokens_of_one_character_keep_their_places_too():
    """The bytes of one character have the same offsets; between equals each keeps its own."""
    place = Place("q", np.array([[0, 1], [1, 2], [1, 2], [1, 2], [2, 3]], dtype=np.int32), 1)
    assert starts_at(place.offsets, place).tolist() == [1, 2, 3, 4, 5]
    pieces = np.array([[0, 1], [1, 2], [2, 3]], dtype=np.int32)
    assert starts_at(pieces, place).tolist() == [1, 2, 5]  # its first byte
    assert ends_at(pieces, place).tolist() == [1, 4, 5]  # its last
    nothing = np.array([[0, 0], [1, 1], [2, 2]], dtype=np.int32)  # tokens without characters
    assert starts_at(nothing, place).tolist() == [1, 2, 5]
    assert ends_at(nothing, place).tolist() == [1, 4, 5]
    blind = Place("q", np.zeros((0, 2), dtype=np.int32), 3)
    assert starts_at(pieces, blind).tolist() == [-1, -1, -1]


def test_gold_answers_and_carried_answers_meet():
    """A teacher that is sure of the gold answer teaches the gold label, token by token."""
    features = passage_features(DATA.examples, ByteConfig(unit="utf-8"))
    rows = QuestionRows(features)
    students, batch = byte_places(rows, DATA.examples), rows.collate(range(len(rows)))
    teachers = toy_places(DATA.examples)
    of = match_rows(students, teachers)
    for row, student in enumerate(students):
        example, offsets = DATA.examples[rows.example(row)], teachers[of[row]].offsets
        assert (student.id, teachers[of[row]].id) == (example.id, example.id)
        for answer, gold in zip(example.answers, batch.spans[row].tolist(), strict=False):
            start = np.flatnonzero(offsets[:, 0] == answer.start)
            end = np.flatnonzero(offsets[:, 1] == answer.end)
            carried = [starts_at(offsets, student)[start], ends_at(offsets, student)[end]]
            assert [int(x[0]) for x in carried] == gold
            assert span_positions(answer.start, answer.end, student) == tuple(gold)


def test_spans_that_leave_the_view_are_dropped():
    place = place_of([5, 8, 9, 14], 2, {1})  # tokens 5-8 and 9-14
    assert span_positions(5, 8, place) == (2, 2)
    assert span_positions(6, 10, place) == (2, 3)
    assert span_positions(8, 14, place) == (3, 3)
    for outside in ((4, 8), (9, 15), (-1, -1), (8, 9)):
        assert span_positions(*outside, place) is None


def test_rows_meet_where_they_share_most_text():
    teachers = [place_of([0, 10]), place_of([8, 20]), place_of([18, 30])._replace(id="r")]
    students = [place_of([0, 9]), place_of([9, 20]), place_of([0, 30])._replace(id="r")]
    assert match_rows(students, teachers).tolist() == [0, 1, 2]
    with pytest.raises(QalibError, match="question 's': the teachers have not read it"):
        match_rows([place_of([0, 1])._replace(id="s")], teachers)


# The objective


def literal_parts(student, rows, lessons, config, length):
    """The four losses of readers of the same words, straight from the teachers."""
    places = [ROWS.places[row] for row in rows]
    batch = ROWS.collate(rows)
    teachers = [chance(places, seed, length=length, asked=9) for seed in (1, 2)]
    q = [
        teacher_probabilities(
            torch.stack([t[side] for t in teachers]), batch.mask, config.temperature
        )
        for side in (0, 1)
    ]
    mined = lessons.mined()
    confusing = [span_positions(*mined.spans[row].tolist(), ROWS.places[row]) for row in rows]
    found = torch.tensor([span is not None for span in confusing])
    spans = torch.tensor([span or (0, 0) for span in confusing])
    question = torch.nn.functional.pad(
        batch.inputs["asked"], (0, 9 - batch.inputs["asked"].shape[1])
    )
    ours = {
        h: torch.nn.functional.pad(student.attentions[h], (0, 9 - student.attentions[h].shape[2]))
        for h in HOPS
    }
    mean = {hop: torch.stack([t[3][hop] for t in teachers]).mean(dim=0) for hop in HOPS}
    return (
        span_loss(student, batch.spans, batch.weights),
        kd_loss(student, *q, config.temperature),
        margin_loss(student, batch.spans, batch.weights, spans, found),
        hops_loss(ours, mean, batch.mask, question),
    )


def test_the_parts_are_the_losses_and_the_whole_is_equation_1(lessons):
    config, reader = DistillConfig(), WordReader()
    rows, asked = [3, 0, 5, 1], distillation(lessons)
    batch = asked.collate(rows)
    assert len(batch) == 4
    output = reader(batch)
    parts = asked.parts(output, batch)
    meant = literal_parts(output, rows, lessons, config, batch.mask.shape[1])
    for name, found, value in zip(parts._fields, parts, meant, strict=True):
        assert found.shape == (4,)
        assert found.abs().max() > 0, name
        torch.testing.assert_close(found, value, atol=5e-3, rtol=5e-3, msg=name)
    total = asked(output, batch)
    torch.testing.assert_close(total, total_loss(parts, config))


def test_the_lesson_of_a_row_is_its_own(lessons):
    reader, asked = WordReader().eval(), distillation(lessons)
    whole = asked.parts(reader(asked.collate(range(6))), asked.collate(range(6)))
    for row in range(6):
        batch = asked.collate([row])
        for name, one, all_of_them in zip(
            whole._fields, asked.parts(reader(batch), batch), whole, strict=True
        ):
            torch.testing.assert_close(one[0], all_of_them[row], msg=name)


def test_what_is_told_is_the_mean_since_it_was_last_asked(lessons):
    reader, asked = WordReader(), distillation(lessons)
    assert asked.told() == {}
    sums, seen = {}, 0
    for rows in ([0, 1, 2], [4]):
        batch = asked.collate(rows)
        output = reader(batch)
        asked(output, batch)
        parts = asked.parts(output, batch)
        for name, part in zip(parts._fields, parts, strict=True):
            sums[name] = sums.get(name, 0.0) + part.sum().item()
        seen += len(rows)
    told = asked.told()
    for name, value in sums.items():
        assert told[name] == pytest.approx(value / seen, rel=1e-5)
    found = asked.found[[0, 1, 2, 4]]
    assert told["confused"] == pytest.approx(found.float().mean().item())
    assert 0 < told["kd_excess"] < told["kd"]
    assert 0 < told["att_per_word"] < told["att"]
    assert told["tied"] == 0
    assert asked.told() == {}


def test_mined_answers_may_be_others(lessons):
    miner = Miner(DATA)
    drawn = random_distractors(lessons.mined(), lessons.places, miner, seed=1)
    mined, random = distillation(lessons), distillation(lessons, mined=drawn)
    assert random.found.sum() > 0
    assert not torch.equal(random.confusing, mined.confusing)
    none = Mined(np.full((6, 2), -1), np.zeros(6))
    batch = distillation(lessons, mined=none).collate([0, 1])
    assert distillation(lessons).parts(WordReader()(batch), batch).ans.tolist() == [0.0, 0.0]
    with pytest.raises(QalibError, match="5 confusing answers for 6 rows"):
        distillation(lessons, mined=Mined(none.spans[1:], none.confidence[1:]))


def test_attention_that_is_not_wanted_is_neither_read_nor_told(lessons):
    asked = distillation(lessons, DistillConfig(delta=0.0), tokenizer="")
    batch = asked.collate([0, 1])
    assert batch.lesson.attentions == {}
    output = WordReader(hops=1)(batch)
    assert asked.parts(output, batch).att.tolist() == [0.0, 0.0]
    asked(output, batch)
    assert "att" not in asked.told()


def test_each_loss_teaches_alone(lessons):
    """Gradients of the four parts: attention does not reach the span head, the others do."""
    reader, asked = WordReader(), distillation(lessons)
    batch = asked.collate(range(6))
    parts = asked.parts(reader(batch), batch)
    norms = gradient_norms(parts, reader.parameters())
    assert list(norms) == ["ce", "kd", "ans", "att"]
    assert min(norms.values()) > 0
    parts.att.mean().backward(retain_graph=True)
    assert reader.span.weight.grad is None
    squares = [p.grad.square().sum() for p in reader.parameters() if p.grad is not None]
    assert norms["att"] == pytest.approx(float(sum(squares).sqrt()), rel=1e-5)


# What does not fit


def refused(said, make):
    with pytest.raises(QalibError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_teachers_and_students_of_other_tokens_share_no_attention(lessons):
    cut = [place._replace(offsets=place.offsets[:-1]) for place in ROWS.places]
    longer = [place._replace(question=place.question + 1) for place in ROWS.places]
    refused("student's tokenizer is not the teachers'", lambda: distillation(lessons, tokenizer=""))
    refused(r"\(pieces, not words\)", lambda: distillation(lessons, tokenizer="pieces"))
    refused("has 10 x 5 tokens .* teachers have 11 x 5", lambda: distillation(lessons, places=cut))
    refused(
        "has 11 x 6 tokens .* teachers have 11 x 5", lambda: distillation(lessons, places=longer)
    )
    for places in (cut, longer):  # knowledge of answers needs no common tokens
        distillation(lessons, DistillConfig(delta=0.0), places=places)


def test_missing_attention_of_either_is_refused(lessons, tmp_path):
    deaf = lessons_of(tmp_path, hops=())
    refused("teachers kept no attention; set delta to 0", lambda: distillation(deaf))
    asked = distillation(lessons)
    batch = asked.collate([0, 1])
    output = WordReader(hops=1)(batch)
    refused("1 hops of the student against 2", lambda: asked(output, batch))
    last = distillation(lessons, DistillConfig(hops="last"))
    assert (last.parts(output, batch).att > 0).all()
    silent = output._replace(attentions={})
    refused("does not say which question tokens", lambda: asked(silent, batch))
    question = output.attentions["question"]
    for wrong in (question[:, :-1], question.roll(1, dims=1).cumprod(dim=1).bool()):
        changed = output._replace(attentions={**output.attentions, "question": wrong})
        refused("student's questions have", lambda changed=changed: asked(changed, batch))


def test_a_question_the_teachers_have_not_read_is_named(tmp_path):
    fewer = lessons_of(tmp_path, ROWS.places[:-1])
    refused("question 'q5': the teachers have not read it", lambda: distillation(fewer))


# Every reader


def byte_distillation(lessons, config=ANSWERS):
    rows = QuestionRows(passage_features(DATA.examples, ByteConfig(unit="utf-8")))
    places = byte_places(rows, DATA.examples)
    return Distillation(rows.collate, places, lessons, config), rows


def test_a_byte_reader_learns_from_teachers_of_words(lessons):
    from qalib.readers.byte_reader import ByteReaderConfig, build_byte_reader

    asked, rows = byte_distillation(lessons)
    tiny = ByteReaderConfig(width=4, layers=1, kernel=3, heads=1, head_width=4, dropout=0.0)
    reader = build_byte_reader(tiny)
    batch = asked.collate(list(range(len(rows))))
    lesson = batch.lesson
    torch.testing.assert_close(lesson.start.sum(dim=1), torch.ones(6))
    torch.testing.assert_close(lesson.end.sum(dim=1), torch.ones(6))
    for row in range(6):
        example = DATA.examples[rows.example(row)]
        begins = {match.start() for match in re.finditer(r"\w+|[^\w\s]", example.context)}
        assert set(lesson.start[row].nonzero().flatten().tolist()) <= begins
        if lesson.found[row]:
            a, b = lesson.confusing[row].tolist()
            mined = lessons.mined().spans[asked.teacher_row[row]].tolist()
            assert [a, b + 1] == mined  # ASCII: a byte is a character
    asked(reader(batch), batch).mean().backward()
    assert all(p.grad.isfinite().all() for p in reader.parameters())
    refused("teachers'", lambda: byte_distillation(lessons, DistillConfig()))


def test_an_encoder_teaches_an_encoder_and_a_reader_of_words(tmp_path):
    from tiny import tiny_reader

    from qalib.data.batches import collate
    from qalib.data.features import WindowConfig, make_windows

    reader = tiny_reader(dropout=0.0).eval()
    settings = WindowConfig(max_length=128, stride=8, max_question=32)
    windows = make_windows(DATA.examples, reader.tokenizer, settings)
    places = window_places(windows, DATA.examples)
    pieces = tokenizer_hash(reader.tokenizer)
    cache = TeacherCache.create(tmp_path, places, DATA.content_sha256, pieces)

    def batch_of(rows):
        return collate([windows[row] for row in rows])

    with torch.no_grad():
        said = [(rows, reader(batch_of(rows))) for rows in ([0, 3], [1, 2, 5], [4])]
    cache.write("tiny", said, Miner(DATA), {})
    lessons = Lessons(TeacherCache.open(tmp_path, DATA.content_sha256), ["tiny"])
    config = DistillConfig(delta=0.0)
    same = Distillation(batch_of, places, lessons, config)
    batch = same.collate([2, 0])
    output = reader(batch)  # the same weights: there is nothing left to learn
    same(output, batch)
    assert same.told()["kd_excess"] == pytest.approx(0.0, abs=1e-4)
    words = Distillation(ROWS.collate, ROWS.places, lessons, config)
    lesson = words.collate([2, 0]).lesson
    torch.testing.assert_close(lesson.start.sum(dim=1), torch.ones(2))
    # batching truncates and pads with the tokenizer; it is still the same tokenizer
    assert tokenizer_hash(reader.tokenizer) == pieces
    refused("kept no attention", lambda: Distillation(batch_of, places, lessons, DistillConfig()))


def test_the_mnemonic_reader_has_nothing_to_learn_from_itself(tmp_path):
    """Self-distillation (one teacher) of the same weights: answers and attention agree."""
    from qalib.data.word_batches import collate_words
    from qalib.data.word_features import WORD, Words, word_windows
    from qalib.readers.mnemonic_reader import MnemonicConfig, build_mnemonic_reader
    from qalib.readers.word_vectors import WordVectors

    words = dict.fromkeys(WORD.findall(" ".join(e.context + e.question for e in DATA)))
    rows = {word: row for row, word in enumerate(words, 1)}
    vectors = WordVectors(
        Words(rows), torch.randn(len(rows) + 1, 5, generator=torch.manual_seed(0))
    )
    settings = MnemonicConfig(embedding="own", hidden=8, characters=0, dropout=0.0)

    def reader_of(seed):
        reader = build_mnemonic_reader(settings, vectors, seed).eval()
        with torch.no_grad():
            for parameter in reader.parameters():
                if parameter.requires_grad:  # the vectors of words are shared
                    parameter.mul_(4)  # so that it is sure of something
        return reader

    windows = word_windows(DATA.examples, vectors.vocabulary)
    places, teacher = word_places(windows, DATA.examples), reader_of(0)

    def batch_of(chosen):
        return collate_words([windows[row] for row in chosen])

    cache = TeacherCache.create(tmp_path, places, "data", "words", HOPS)
    with torch.no_grad():
        said = [(chosen, teacher(batch_of(chosen))) for chosen in ([5, 2], [0, 1, 3, 4])]
    cache.write("itself", said, Miner(DATA), {})
    asked = Distillation(batch_of, places, Lessons(cache, ["itself"]), PAPER, tokenizer="words")
    batch, told = asked.collate([0, 5, 3]), []
    for student in (teacher, reader_of(1)):
        asked(student(batch), batch).mean().backward()
        told.append(asked.told())
    for name in ("kd_excess", "att"):
        assert told[0][name] == pytest.approx(0.0, abs=1e-4)
        assert told[1][name] > 0.01


# Training


def test_training_with_a_lesson_learns_every_part(lessons, tmp_path):
    """What teachers of chance say is nothing but noise, and is learnt by heart."""
    reader, asked = WordReader(width=32), distillation(lessons, DistillConfig(ce=0.0, gamma=0.0))
    task = Task([len(p.offsets) for p in ROWS.places], asked.collate, asked)
    config = TrainConfig(
        epochs=60, tokens_per_batch=400, learning_rate=2e-2, precision="fp32", weight_decay=0.0
    )
    log = []
    train(
        reader,
        task,
        config,
        tmp_path,
        progress=False,
        after_epoch=lambda _: log.append(asked.told()) or {},
    )
    first, last = log[0], log[-1]
    assert last["kd_excess"] < 0.5 * first["kd_excess"]
    assert last["att"] < 0.85 * first["att"]
    assert set(first) >= {"ce", "kd", "ans", "att", "confused"}


def test_stage_wise_training_moves_attention_first(lessons, tmp_path):
    reader = WordReader()
    head = reader.span.weight.detach().clone()
    stages = Schedule("stage-wise", 0.5).stages(DistillConfig(), 4)
    for stage in stages:
        asked = distillation(lessons, stage.config)
        task = Task([1] * 6, asked.collate, asked)
        schedule = TrainConfig(epochs=9, max_steps=stage.steps, precision="fp32")
        train(reader, task, schedule, tmp_path / stage.name, progress=False)
        assert torch.equal(reader.span.weight, head) == (stage.name == "attention")


def test_a_batch_moves_to_its_device_with_its_lesson(lessons):
    batch = distillation(lessons).collate([0, 1])
    moved = batch.to(torch.device("meta"))
    assert moved.mask.device.type == moved.lesson.start.device.type == "meta"
    assert all(x.device.type == "meta" for x in moved.lesson.attentions.values())
    assert moved.tokens == batch.tokens
    assert replace(batch, batch=batch.batch).lesson is batch.lesson
    with pytest.raises(AttributeError, match="nothing"):
        _ = batch.nothing
