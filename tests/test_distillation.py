"""The stages of answer distillation, tiny, through the run cache."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from qalib.data.corpus import CorpusConfig, build_corpus
from qalib.data.schema import make_dataset
from qalib.data.windows import WindowConfig
from qalib.distill.distractors import MiningConfig
from qalib.distill.teacher_cache import TeacherCacheConfig, TeacherTargets
from qalib.errors import QalibError
from qalib.inference import AnswerConfig
from qalib.losses import DistillConfig
from qalib.metrics import question_scores
from qalib.models.mnemonic_reader import MnemonicConfig
from qalib.study.profiles import load_profile
from qalib.study.run_cache import RunCache
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
    EnsembleCache,
    StudentTraining,
    WordTraining,
    cache_teacher,
    cache_teachers,
    ensemble_targets,
    fold_of,
    load_word_reader,
    new_reader,
    student_task,
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
CACHED = EnsembleCache(MiningConfig(max_length=20))
EVERYONE = StudentTraining(BASE, LOSS, (0, 1))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return RunCache(tmp_path_factory.mktemp("runs"), records=None)


@pytest.fixture(scope="module")
def teachers(runs):
    return [runs.run(train_words, replace(BASE, seed=n), {"data": DATA}) for n in range(2)]


@pytest.fixture(scope="module")
def cache(runs, teachers):
    return runs.run(cache_teachers, CACHED, {"data": DATA, "teachers": teachers})


@pytest.fixture(scope="module")
def student(runs, cache):
    return runs.run(train_student, EVERYONE, {"data": PART, "cache": cache})


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


def test_held_out_passages_are_scored_and_not_trained_on(runs):
    run = runs.run(train_words, replace(BASE, held_out=0.3), {"data": PART})
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


def test_the_cache_has_the_targets_of_its_teachers(teachers, cache):
    targets = ensemble_targets(cache)
    assert len(targets) == cache.metrics["windows"] == len(DATA)
    assert targets.hops == ["align 1", "align 2"]
    mined = targets.distractors().confidence > 0
    assert cache.metrics["yield_percent"] == pytest.approx(100 * mined.mean())
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
    with pytest.raises(QalibError, match=r"has teachers 0 to 1, not \(2,\)"):
        ensemble_targets(cache, (2,))


def test_out_of_fold_distractors_come_from_teachers_not_trained_on_the_passage(runs, cache):
    folds = [
        make_dataset(f"fold {k}", [e for e in PART if fold_of(e.context, FOLDS) != k])
        for k in range(FOLDS)
    ]
    assert sum(map(len, folds)) == len(PART)
    others = [runs.run(train_words, BASE, {"data": data}) for data in folds]
    config = replace(CACHED, attention=False, folds=FOLDS)
    outside = runs.run(cache_teachers, config, {"data": PART, "teachers": others})
    config = replace(EVERYONE, distractors="out-of-fold")
    task = student_task(new_reader(BASE), PART, config, cache, outside)
    objective = task.loss.__self__
    theirs, found = ensemble_targets(outside), 0
    for row, span in enumerate(theirs.spans):
        teacher = fold_of({e.id: e.context for e in PART}[span.id], FOLDS)
        expected = theirs.distractor_spans[teacher, row]
        (own,) = [n for n, other in enumerate(objective.spans) if other.id == span.id]
        assert bool(objective.found[own]) == bool(theirs.confidence[teacher, row] > 0)
        if objective.found[own]:
            first, last = objective.distractors[own].tolist()
            offsets = objective.spans[own].offsets
            assert [offsets[first, 0], offsets[last, 1]] == expected.tolist()
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


def test_a_student_may_continue_from_another(runs, cache, student):
    attention = replace(LOSS, ce_weight=0.0, kd_weight=0.0, margin_weight=0.0)
    base = replace(BASE, train=replace(TRAIN, max_steps=1))
    config = replace(EVERYONE, base=base, loss=attention)
    first = runs.run(train_student, config, {"data": PART, "cache": cache})
    assert first.metrics["steps"] == 1
    log = first.log().dropna(subset="loss")
    assert log["loss"].iloc[0] == pytest.approx(0.1 * log["att"].iloc[0], rel=1e-4)
    inputs = {"data": PART, "cache": cache, "start": first}
    second = runs.run(train_student, EVERYONE, inputs)
    assert second.key != student.key
    assert second.metrics["loss"] != student.metrics["loss"]


def test_random_distractors_take_the_places_of_mined_ones(cache):
    reader = new_reader(BASE)
    mined, random = (
        student_task(reader, PART, replace(EVERYONE, distractors=name), cache).loss.__self__
        for name in ("mined", "random")
    )
    assert random.found.any()
    assert (mined.found | ~random.found).all()
    both = random.found
    assert (mined.distractors[both] != random.distractors[both]).any(dim=1).all()


def test_impossible_students_are_refused(runs, cache):
    inputs = {"data": PART, "cache": cache}
    with pytest.raises(QalibError, match="need each other"):
        runs.run(train_student, replace(EVERYONE, distractors="out-of-fold"), inputs)
    with pytest.raises(QalibError, match="distractors is 'some'"):
        replace(EVERYONE, distractors="some")
    answers = replace(EVERYONE, loss=replace(LOSS, attention_weight=0.0))
    with pytest.raises(QalibError, match="the teachers have not read it"):
        runs.run(train_student, answers, {"data": TEST, "cache": cache})


# Encoders


def test_an_encoder_teaches_another_by_all_four_losses(runs):
    windows = WindowConfig(max_length=128, doc_stride=32, max_query_length=32)
    base = EncoderTraining(windows=windows, train=replace(TRAIN, max_steps=1))
    teacher = runs.run(train_encoder, base, {"data": PART})
    config = TeacherCacheConfig(MiningConfig(k=4))
    cached = runs.run(cache_teacher, config, {"data": PART, "teacher": teacher})
    targets = TeacherTargets([cached.file("teacher-0/start.npy").parent])
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
    assert plan.base.train.max_grad_norm == 5.0
    assert plan.seeds <= plan.teachers
    assert all(1 <= count < plan.teachers for count in plan.counts)
