"""The stages of answer distillation, tiny, through the run cache."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from qalib.data.corpus import CorpusConfig, build_corpus
from qalib.data.schema import make_dataset
from qalib.data.windows import WindowConfig
from qalib.distill.distractors import MiningConfig
from qalib.distill.teacher_cache import TeacherCacheConfig
from qalib.errors import QalibError
from qalib.inference import AnswerConfig
from qalib.losses import DistillConfig
from qalib.metrics import question_scores
from qalib.models.encoder import EncoderConfig
from qalib.models.mnemonic_reader import MnemonicConfig
from qalib.study.profiles import load_profile
from qalib.study.run_cache import RunCache
from qalib.study.stages import distillation
from qalib.study.stages.baseline import (
    AdapterTraining,
    EncoderTraining,
    Evaluation,
    evaluate,
    load_encoder_reader,
    recorded_scores,
    train_adapter,
    train_encoder,
)
from qalib.study.stages.distillation import (
    DistillStudy,
    StudentTraining,
    WordTraining,
    cache_teacher,
    load_word_reader,
    new_reader,
    student_task,
    teacher_targets,
    train_student,
    train_words,
    word_answerer,
    word_task,
    word_training,
)
from qalib.training import TrainConfig

DATA = build_corpus(CorpusConfig(questions=60, split="train", length=300))
PART = make_dataset("part", DATA.examples[:40])
TEST = build_corpus(CorpusConfig(questions=12, split="test", length=300))
TRAIN = TrainConfig(num_train_epochs=1, tokens_per_batch=2048, learning_rate=3e-3, precision="fp32")
BASE = WordTraining(reader=MnemonicConfig(hidden=8, width=16, characters=8), train=TRAIN)
LOSS, FOLDS = DistillConfig(), 2
CACHED = TeacherCacheConfig(MiningConfig(max_length=20))
EVERYONE = StudentTraining(BASE, LOSS)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return RunCache(tmp_path_factory.mktemp("runs"), records=None)


@pytest.fixture(scope="module")
def teachers(runs):
    return [runs.run(train_words, replace(BASE, seed=n), {"data": DATA}) for n in range(2)]


@pytest.fixture(scope="module")
def caches(runs, teachers):
    return [runs.run(cache_teacher, CACHED, {"data": DATA, "teacher": run}) for run in teachers]


@pytest.fixture(scope="module")
def student(runs, caches):
    return runs.run(train_student, EVERYONE, {"data": PART, "caches": caches})


# Word-level readers


def test_teachers_differ_by_their_seed_and_come_back_as_they_were(teachers):
    first, second = (load_word_reader(run) for run in teachers)
    assert not first.training
    changed = [
        not torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    ]
    assert any(changed)
    again = load_word_reader(teachers[0]).state_dict()
    assert all(torch.equal(again[name], x) for name, x in first.state_dict().items())
    assert word_training(teachers[1]) == replace(BASE, seed=1)
    assert teachers[0].metrics["questions"] == len(DATA)
    trained = [p.numel() for p in first.parameters() if p.requires_grad]
    assert teachers[0].metrics["parameters"] == sum(trained)


def test_held_out_passages_are_scored_and_not_trained_on(runs, monkeypatch):
    answerer, precisions = distillation.WordQuestionAnswerer, []
    monkeypatch.setattr(
        distillation,
        "WordQuestionAnswerer",
        lambda *args: precisions.append(args[1].precision) or answerer(*args),
    )
    config = replace(BASE, held_out=0.3, train=replace(TRAIN, precision="fp32"))
    run = runs.run(train_words, config, {"data": PART})
    assert set(precisions) == {"fp32"}
    assert 0 < run.metrics["questions"] < len(PART)
    assert 0 <= run.metrics["held_out_f1"] <= 100
    log = run.log()
    assert log["held_out_f1"].dropna().iloc[-1] == run.metrics["held_out_f1"]


def test_smoothed_labels_change_the_loss_alone(runs, teachers):
    reader = new_reader(BASE).eval()
    plain, spans = word_task(reader, PART, BASE)
    smoothed, _ = word_task(reader, PART, replace(BASE, smoothing=0.1))
    batch = plain.collate([0, 1])
    with torch.no_grad():
        output = reader(batch)
    assert (plain.loss(output, batch) != smoothed.loss(output, batch)).all()
    assert len(spans) == len(plain.lengths) == len(PART)
    assert [span.id for span in spans] == [example.id for example in PART]


# The teachers' outputs


def test_the_cache_has_the_targets_of_its_teachers(teachers, caches):
    targets = teacher_targets(caches)
    assert len(targets) == caches[0].metrics["windows"] == len(DATA)
    assert targets.hops == ["align 1", "align 2"]
    mined = teacher_targets(caches[:1]).distractors().confidence > 0
    assert caches[0].metrics["yield_percent"] == pytest.approx(100 * mined.mean())
    task, spans = word_task(load_word_reader(teachers[0]), DATA, BASE)
    start, end, _ = targets.logits([3, 7])
    for number, run in enumerate(teachers):
        with torch.no_grad():
            output = load_word_reader(run)(task.collate([3, 7]))
        for row, cached in enumerate((start[number], end[number])):
            for line, row_index in ((0, 3), (1, 7)):
                count = len(spans[row_index].offsets)
                expected = output[row][line, :count].log_softmax(0)
                found = cached[line, :count].log_softmax(0)
                torch.testing.assert_close(found, expected, atol=5e-2, rtol=5e-2)


def test_out_of_fold_distractors_come_from_teachers_not_trained_on_the_passage(runs, caches):
    fold = {e.id: len(e.context) % FOLDS for e in PART}
    outside = []
    for k in range(FOLDS):
        within = make_dataset(f"fold {k}", [e for e in PART if fold[e.id] == k])
        others = make_dataset("others", [e for e in PART if fold[e.id] != k])
        run = runs.run(train_words, BASE, {"data": others})
        config = replace(CACHED, attention=False)
        outside.append(runs.run(cache_teacher, config, {"data": within, "teacher": run}))
    config = replace(EVERYONE, distractors="out-of-fold")
    task = student_task(new_reader(BASE), PART, config, caches, outside)
    objective, found = task.loss.__self__, 0
    for run in outside:
        theirs = teacher_targets([run])
        for span, mined, confidence in zip(theirs.spans, *theirs.distractors(), strict=True):
            (own,) = [n for n, other in enumerate(objective.spans) if other.id == span.id]
            assert bool(objective.found[own]) == bool(confidence > 0)
            if confidence > 0:
                first, last = objective.distractors[own].tolist()
                offsets = objective.spans[own].offsets
                assert [offsets[first, 0], offsets[last, 1]] == mined.tolist()
                found += 1
    assert found


# Students


def test_a_student_has_the_initial_weights_and_the_log_has_the_parts_of_the_loss(student):
    assert word_training(student) == BASE
    lines = student.log().dropna(subset="ce").to_dict("records")
    assert lines
    for line in lines:
        parts = line["ce"] + LOSS.temperature**2 * line["kd"] + LOSS.margin_weight * line["ans"]
        assert line["loss"] == pytest.approx(parts + LOSS.attention_weight * line["att"], rel=1e-4)
    assert lines[-1]["kd_excess"] > 0


def test_a_student_may_continue_from_another(runs, caches, student):
    attention = replace(LOSS, ce_weight=0.0, kd_weight=0.0, margin_weight=0.0)
    base = replace(BASE, train=replace(TRAIN, max_steps=1))
    config = replace(EVERYONE, base=base, loss=attention)
    first = runs.run(train_student, config, {"data": PART, "caches": caches})
    assert first.metrics["steps"] == 1
    log = first.log().dropna(subset="loss")
    assert log["loss"].iloc[0] == pytest.approx(0.1 * log["att"].iloc[0], rel=1e-4)
    inputs = {"data": PART, "caches": caches, "start": first}
    second = runs.run(train_student, EVERYONE, inputs)
    assert second.key != student.key
    assert second.metrics["loss"] != student.metrics["loss"]


def test_random_distractors_take_the_places_of_mined_ones(caches):
    reader = new_reader(BASE)
    mined, random = (
        student_task(reader, PART, replace(EVERYONE, distractors=name), caches).loss.__self__
        for name in ("mined", "random")
    )
    assert random.found.any()
    assert (mined.found | ~random.found).all()
    both = random.found
    assert (mined.distractors[both] != random.distractors[both]).any(dim=1).all()


def test_impossible_students_are_refused(runs, caches):
    inputs = {"data": PART, "caches": caches}
    with pytest.raises(QalibError, match="need each other"):
        runs.run(train_student, replace(EVERYONE, distractors="out-of-fold"), inputs)
    with pytest.raises(QalibError, match="distractors is 'some'"):
        replace(EVERYONE, distractors="some")
    answers = replace(EVERYONE, loss=replace(LOSS, attention_weight=0.0))
    with pytest.raises(QalibError, match="the teachers have not read it"):
        runs.run(train_student, answers, {"data": TEST, "caches": caches})


# Encoders


def test_an_encoder_teaches_another_by_all_four_losses(runs):
    windows = WindowConfig(max_length=128, doc_stride=32, max_query_length=32)
    small = EncoderConfig(random_start=True, layers=6, width=32, heads=4)
    base = EncoderTraining(small, windows, replace(TRAIN, max_steps=1))
    teacher = runs.run(train_encoder, base, {"data": PART})
    cached = runs.run(cache_teacher, CACHED, {"data": PART, "teacher": teacher})
    targets = teacher_targets([cached])
    assert targets.hops == ["align 1", "align 2", "align 3"]
    for row in (0, 7):
        span, question = targets.spans[row], PART.examples[row].question
        pieces = load_encoder_reader(teacher).tokenizer.tokenize(question)
        table = targets.attention([row])["align 2"][0].float()
        assert table.shape == (len(span.offsets), len(pieces))
        assert torch.allclose(table.sum(dim=1), torch.ones(len(table)), atol=5e-3)
    config = AdapterTraining(base, rank=2, layers=(2, 4, 6), loss=DistillConfig())
    run = runs.run(train_adapter, config, {"data": PART, "cache": cached})
    assert {"kd", "ans", "att"} <= set(run.log())


# Scores


def test_single_readers_and_ensembles_are_evaluated_as_one_reader(runs, teachers):
    config = Evaluation("words: ensemble", AnswerConfig(precision="fp32", max_answer_length=20))
    run = runs.run(evaluate, config, {"test": TEST, "weights": teachers})
    found = word_answerer(teachers, config.settings).predictions(TEST.examples)
    assert np.allclose(recorded_scores(run)["F1"], 100 * question_scores(TEST, found)[1], atol=1e-4)
    alone = runs.run(evaluate, config, {"test": TEST, "weights": [teachers[0]]})
    single = word_answerer(teachers[0], config.settings).predictions(TEST.examples)
    assert np.allclose(recorded_scores(alone)["F1"], 100 * question_scores(TEST, single)[1])


@pytest.mark.parametrize("profile", ["ci", "laptop", "study", "paper"])
def test_every_profile_has_its_sections(profile):
    loaded = load_profile(profile)
    plan = loaded.section("distill", DistillStudy)
    assert len(plan.choices) == 1 or len({choice.held_out for choice in plan.choices}) == 1
    assert all(count > 1 and count != plan.teachers for count in plan.counts)
