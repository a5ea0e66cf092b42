"""The study of answer distillation in profile ci: every step through the store, tiny."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from qalib.data.adversary import VARIANT
from qalib.distill.losses import DistillConfig
from qalib.errors import QalibError
from qalib.metrics import (
    adversarial_question_scores,
    adversarial_score,
    paired_bootstrap,
    question_scores,
)
from qalib.readers.mnemonic_reader import MnemonicConfig
from qalib.spans import ReaderOutput
from qalib.study import (
    distill_bench,
    distill_bytes,
    distill_case,
    distill_others,
    distill_scores,
    distill_sets,
    distill_study,
    distill_views,
    marks,
)
from qalib.study import distill_stages as stages
from qalib.study.commands import stages_by_name
from qalib.study.distill_ensemble import Ensemble, average
from qalib.study.distill_settings import (
    DistillStudy,
    WordTraining,
    ablation_data,
    asked,
    training_data,
)
from qalib.study.distill_students import StudentTraining, distractors, train_student
from qalib.study.distill_tables import (
    by_seed,
    difference,
    differences,
    kept_share,
    score_table,
    type_table,
    verdict,
)
from qalib.study.distill_teaching import (
    Asking,
    ask_teachers,
    fold_of,
    lessons_of,
    outside_mined,
    words,
)
from qalib.study.marks import read_marks
from qalib.study.profiles import Profile, load_profile
from qalib.study.session import Study
from qalib.study.stages import predictions, read_log
from qalib.study.store import Store
from qalib.study.work import compute_in


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    store = Store(tmp_path_factory.mktemp("runs"), records=None)
    return Study("test", load_profile("ci"), 0, store)


@pytest.fixture(scope="module")
def sets(study):
    return distill_sets.main_sets(study)


@pytest.fixture(scope="module")
def scored(study, sets):
    return distill_scores.headline(study, sets)


@pytest.fixture
def nothing_is_computed(monkeypatch):
    """From here on every run must be in the store."""

    def refuse(*_):
        raise AssertionError("a run was computed again")

    monkeypatch.setattr("qalib.study.store.compute_in", refuse)


# An ensemble as one reader


class Told(torch.nn.Module):
    """A reader that says what it was told to."""

    vocabulary = "words"

    def __init__(self, start, end, mask):
        super().__init__()
        maps = {"align 1": start.softmax(1)[:, :, None], "question": mask[:, :1]}
        self.output = ReaderOutput(start, end, mask, maps)

    def forward(self, batch):
        return self.output


def told(seed: int, mask: torch.Tensor) -> Told:
    torch.manual_seed(seed)
    start, end = 3 * torch.randn(2, *mask.shape)
    return Told(start, end, mask)


MASK = torch.tensor([[True] * 5 + [False] * 2, [True] * 7])


def test_one_reader_is_an_ensemble_of_itself():
    reader = told(0, MASK)
    output = Ensemble([reader])(None)
    for ours, theirs in zip(output[:2], reader.output[:2], strict=True):
        assert torch.allclose(ours[MASK], theirs[MASK], atol=1e-5)


def test_an_ensemble_averages_probabilities_and_the_scale_of_its_windows():
    members = [told(seed, MASK) for seed in range(3)]
    output = Ensemble(members)(None)
    for side in (0, 1):
        for row in range(2):  # literally, one position after the other
            real = MASK[row].nonzero()[:, 0].tolist()
            logits = [m.output[side][row, real].double() for m in members]
            q = sum(x.exp() / x.exp().sum() for x in logits) / 3
            scale = sum(x.exp().sum().log() for x in logits) / 3
            assert torch.allclose(output[side][row, real].double(), q.log() + scale, atol=1e-4)
            found = output[side][row, real].softmax(0)
            assert torch.allclose(found.double(), q, atol=1e-5)
    mean = sum(m.output.attentions["align 1"] for m in members) / 3
    assert torch.allclose(output.attentions["align 1"], mean)
    assert output.attentions["question"].dtype == torch.bool


def test_an_ensemble_is_no_vote():
    """Two that lean to position 0 do not outvote one that is sure of position 1."""
    almost = torch.tensor([[0.0, -0.2, -9.0]])
    sure = torch.tensor([[-9.0, 9.0, -9.0]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    assert average([almost, almost, sure], mask).argmax() == 1


def test_an_ensemble_of_nobody_is_refused():
    with pytest.raises(QalibError, match="at least one reader"):
        Ensemble([])


# Teachers


def test_teachers_differ_by_their_seed_and_the_singles_are_among_them(study):
    runs = stages.teachers(study)
    assert [run.config["seed"] for run in runs] == [0, 1]
    assert stages.singles(study)[0].key == runs[0].key
    weights = [stages.trained_reader(run).encode.lstm.state_dict() for run in runs]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    with pytest.raises(QalibError, match="teachers 0 to 1, not 2"):
        stages.teacher(study, 2)


def test_a_trained_reader_comes_back_as_it_was(study):
    run = stages.teacher(study, 0)
    reader = stages.trained_reader(run)
    assert not reader.training
    config = stages.training_of(run)
    assert config == replace(asked(study).base, seed=0)
    saved = stages.trained_reader(run).state_dict()
    assert all(torch.equal(saved[name], x) for name, x in reader.state_dict().items())
    assert run.metrics["parameters"] == stages.size_of(reader)


def test_tuning_looks_at_held_out_training_passages_alone(study):
    ((name, run),) = stages.tuning(study).items()
    assert name == "0.003 x 1"
    assert run.config["held_out"] == asked(study).held_out
    assert 0 <= run.metrics["held_out_f1"] <= 100
    assert run.metrics["questions"] < len(ablation_data(study))
    assert "test" not in run.inputs
    (row,) = distill_views.tuning_table(study).to_dict("records")
    assert row == {
        "learning rate": 3e-3,
        "epochs": 1,
        "EM": run.metrics["held_out_exact_match"],
        "F1": run.metrics["held_out_f1"],
    }


def test_the_smoothed_control_differs_by_its_labels_alone(study):
    plain, smoothed = (distill_study.row(study, n) for n in ("no distillation", "smoothed labels"))
    assert smoothed.config == {**plain.config, "smoothing": asked(study).smoothing}
    assert smoothed.metrics["loss"] != plain.metrics["loss"]


# What teachers know


def test_knowledge_is_of_the_rows_and_teachers_meant(study):
    run = distill_study.knowledge(study)
    lessons = lessons_of(run, (0, 1))
    assert len(lessons) == run.metrics["windows"] == len(training_data(study))
    assert lessons.hops == ["align 1", "align 2"]
    assert list((run.folder / "cache").glob("mean-*"))  # students do not wait for each other
    assert run.metrics["yield_percent"] == pytest.approx(
        100 * np.mean(lessons.mined().confidence > 0)
    )
    with pytest.raises(QalibError, match="no teacher 2 in it"):
        lessons_of(run, (2,))


def test_an_interrupted_cache_goes_on_with_the_teacher_it_was_asking(study):
    teachers, data = stages.teachers(study), ablation_data(study)
    kind, loaded = words(), []

    def load(run):
        loaded.append(run.key)
        if loaded.count(teachers[1].key) == 1 and run.key == teachers[1].key:
            raise KeyboardInterrupt
        return stages.trained_reader(run)

    kind = replace(kind, load=load)
    config = Asking(attention=False)
    with pytest.raises(KeyboardInterrupt):
        ask_teachers(study.store, data, teachers, config, kind=kind)
    (partial,) = study.store.root.glob("teacher-knowledge-*.partial")
    written = partial / "cache" / "teacher-0" / "seal.json"
    before = written.stat().st_mtime_ns
    run = ask_teachers(study.store, data, teachers, config, kind=kind)
    assert (run.folder / "cache" / "teacher-0" / "seal.json").stat().st_mtime_ns == before
    assert run.metrics["teachers"] == 2


def test_out_of_fold_asks_those_who_have_not_learnt_from_a_passage(study):
    data, folds = ablation_data(study), asked(study).folds
    contexts = {e.id: e.context for e in data.examples}
    for fold in range(folds):
        learnt = distill_study.outside_teacher(study, fold)
        kept = sum(fold_of(e.context, folds) != fold for e in data.examples)
        assert learnt.metrics["questions"] == kept < len(data)
    outside = distill_study.outside_knowledge(study)
    theirs = lessons_of(outside, range(folds))
    lessons = lessons_of(distill_study.knowledge(study), (0, 1))
    mined = outside_mined(lessons, data, outside)
    rows = {place.id: row for row, place in enumerate(lessons.places)}
    seen = 0
    for row, place in enumerate(theirs.places):
        knows = fold_of(contexts[place.id], folds)  # the one teacher that has not read it
        there = rows.pop(place.id)
        assert mined.confidence[there] == theirs.confidence[knows, row]
        if mined.confidence[there]:
            assert (mined.spans[there] == theirs.spans[knows, row]).all()
            seen += 1
    assert seen
    assert not mined.confidence[list(rows.values())].any()  # of these nobody outside was asked


# Students


def test_a_student_starts_where_its_single_reader_starts(study):
    single, student = stages.teacher(study, 0), distill_study.student(study)
    assert student.config["base"] == single.config
    assert student.inputs["data"] == single.inputs["data"]
    assert student.inputs["knowledge"] == distill_study.knowledge(study).key
    assert stages.training_of(student) == stages.training_of(single)


def test_the_log_has_the_parts_of_the_loss(study):
    lines = [line for line in read_log(distill_study.student(study)) if "loss" in line]
    loss = DistillConfig()
    for line in lines:
        parts = line["ce"] + loss.temperature**2 * line["kd"] + loss.gamma * line["ans"]
        assert line["loss"] == pytest.approx(parts + loss.delta * line["att"], rel=1e-4)
    assert lines[-1]["kd_excess"] > 0


def test_every_row_is_another_student(study):
    runs = {name: runs[0] for name, runs in distill_study.row_runs(study).items()}
    assert len({run.key for run in runs.values()}) == len(runs) == 10
    assert runs["minus KD"].config["loss"]["kd"] == 0
    assert runs["minus ATT"].config["loss"]["delta"] == 0
    assert runs["minus ANS"].config["loss"]["gamma"] == 0
    assert runs["1 teacher"].config["teachers"] == [1]
    whole = {**runs["all losses"].config, "distractors": "random"}
    assert runs["random distractors"].config == whole
    assert {run.inputs["data"] for run in runs.values()} == {ablation_data(study).content_sha256}
    with pytest.raises(QalibError, match="no student is called 'minus all'"):
        distill_study.row(study, "minus all")


def test_stage_wise_takes_as_many_steps_in_all(study):
    last = distill_study.row(study, "stage-wise")
    first = study.store.get(last.inputs["start"])
    joint = distill_study.row(study, "all losses")
    assert (first.metrics["stage"], last.metrics["stage"]) == ("attention", "answers")
    assert first.metrics["steps"] + last.metrics["steps"] == joint.metrics["steps"]
    learnt = [line for line in read_log(first) if "loss" in line]
    assert learnt[0]["loss"] == pytest.approx(0.1 * learnt[0]["att"], rel=1e-4)


def test_random_distractors_stand_in_the_places_of_mined_ones(study):
    lessons = lessons_of(distill_study.knowledge(study), (0, 1))
    data, config = ablation_data(study), distill_study.rows(study)["random distractors"]
    known = {e.id for e in data.examples}
    mined, random = lessons.mined(), distractors(lessons, data, config, None)
    both = random.confidence > 0
    assert both.any()
    assert all(lessons.places[row].id in known for row in np.flatnonzero(both))
    assert (mined.confidence[both] > 0).all()
    assert (mined.spans[both] != random.spans[both]).any(axis=1).all()


def test_impossible_students_are_refused(study):
    for bad, says in (
        ({"distractors": "some"}, "distractors must be one of"),
        ({"teachers": ()}, "at least one teacher"),
        ({"base": WordTraining(smoothing=0.1)}, "loss.smoothing"),
    ):
        with pytest.raises(QalibError, match=says):
            StudentTraining(**bad)
    data, knowledge = ablation_data(study), distill_study.knowledge(study)
    for config, says in (
        (StudentTraining(distractors="out-of-fold"), "goes with distractors out-of-fold"),
        (StudentTraining(part=1), "goes with a later stage"),
    ):
        with pytest.raises(QalibError, match=says):
            train_student(study.store, data, config, knowledge)


def test_a_student_of_other_questions_is_refused(study):
    config = replace(distill_study.rows(study)["all losses"], loss=DistillConfig(delta=0.0))
    with pytest.raises(QalibError, match="the teachers have not read it"):
        train_student(study.store, study.data("test"), config, distill_study.knowledge(study))


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"seeds": 5}, "seeds must be from 1 to the 4 teachers"),
        ({"seeds": 0}, "seeds must be from 1"),
        ({"counts": (4,)}, "counts must be from 1 to below the 4 teachers"),
        ({"folds": 1}, "folds must be 0, or from 2 to 9"),
        ({"choices": ((0.0, 1),)}, "choices are pairs"),
        ({"row_seeds": 0}, "row_seeds must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(bad, says):
    with pytest.raises(QalibError, match=says):
        DistillStudy(**bad)


def test_impossible_training_is_refused(study):
    with pytest.raises(QalibError, match="smoothing must be from 0 to below 1"):
        WordTraining(smoothing=1.0)
    with pytest.raises(QalibError, match="the study's readers have the embedding"):
        WordTraining(reader=MnemonicConfig(embedding="own"))
    with pytest.raises(QalibError, match="cannot be parted with 1e-06"):
        stages.parted(ablation_data(study), 1e-6)
    with pytest.raises(QalibError, match="rounds, questions, batches and steps"):
        distill_bench.DistillBench(rounds=0)
    with pytest.raises(QalibError, match="candidates must be at least 2"):
        distill_sets.DistillTests(candidates=1)
    with pytest.raises(QalibError, match="learn no attention"):
        distill_others.OtherStudents(loss=DistillConfig())


# Scores


def test_sentences_are_added_once_and_come_back(study, sets):
    made = distill_sets.sentences_at(study)
    there = distill_sets.sentence_set(study)
    assert made.metrics["sentences"] == len(there.attempts)
    base = [e for e in there.dataset if VARIANT not in e.id]
    assert [e.id for e in base] == [e.id for e in study.data("test")]
    done = made.metrics["attempted_percent"]["all"]
    assert done == pytest.approx(100 * len(there.attempts) / len(base))
    for attempt in there.attempts:
        (variant,) = [e for e in there.dataset if e.id == attempt.id]
        assert variant.context.endswith(attempt.sentence)
    # one row each: the variant of a question that has one, else the question
    bases = [distill_sets.base_id(e.id) for e in sets[distill_sets.ADDED]]
    assert bases == [e.id for e in base]
    turned = {attempt.base for attempt in there.attempts}
    assert {e.id for e in sets[distill_sets.ADDED]} == (
        {e.id for e in base} - turned | {attempt.id for attempt in there.attempts}
    )


def test_an_adversarial_score_takes_over_what_was_not_turned(study, sets, scored):
    added, whole = sets[distill_sets.ADDED], distill_sets.sentence_set(study).dataset
    for reader, runs in scored[distill_sets.ADDED].items():
        found = predictions(runs[0])
        assert runs[0].metrics["f1"] == adversarial_score(added, found)["f1"]
        clean = predictions(scored[distill_sets.CLEAN][reader][0])
        unturned = {id: text for id, text in found.items() if VARIANT not in id}
        assert unturned
        assert unturned.items() <= clean.items()
        assert len(found) == len(added)
        # with the originals of the others the rule gives the same
        assert runs[0].metrics["f1"] == adversarial_score(whole, clean | found)["f1"]


def test_scores_by_question_are_those_of_the_runs(sets, scored):
    for name, by_reader in scored.items():
        for runs in by_reader.values():
            found = read_marks(runs[0])
            assert found["F1"].shape == (len(sets[distill_sets.CLEAN]),)
            rule = adversarial_question_scores if name == distill_sets.ADDED else question_scores
            answers = rule(sets[name], predictions(runs[0]))
            assert np.array_equal(found["EM"], 100 * answers[0])
            assert np.allclose(found["F1"], 100 * answers[1], atol=1e-4)
            assert found["F1"].mean() == pytest.approx(runs[0].metrics["f1"])
            assert found["EM"].mean() == pytest.approx(runs[0].metrics["exact_match"])


def test_a_difference_pairs_questions_and_seeds(sets, scored):
    test, by_reader = sets[distill_sets.CLEAN], scored[distill_sets.CLEAN]
    single, ensemble = (by_reader[n] for n in (distill_scores.SINGLE, distill_scores.ENSEMBLE))
    twice = [*single, *by_reader[distill_scores.STUDENT_ROW]]
    gain = difference(twice, ensemble)
    a = np.stack([question_scores(test, predictions(run))[1] for run in twice])
    b = question_scores(test, predictions(ensemble[0]))[1]
    expected = paired_bootstrap(100 * a, 100 * np.stack([b, b]))
    assert asdict(gain) == pytest.approx(asdict(expected), abs=1e-4)
    assert by_seed(twice, "EM").shape == (2, len(test))
    with pytest.raises(QalibError, match="metric must be EM or F1"):
        by_seed(twice, "f1")


def test_a_verdict_needs_an_interval_without_zero():
    rng = np.random.default_rng(0)
    base = rng.random(200)
    assert verdict(paired_bootstrap(base + 1, base)) == "better"
    assert verdict(paired_bootstrap(base - 1, base)) == "worse"
    assert verdict(paired_bootstrap(rng.permutation(base), base)) == "no difference"


def test_tables_name_every_reader_and_every_question(sets, scored):
    table = score_table(scored)
    assert list(table.index) == ["single", "ensemble", "student", "question type only"]
    assert set(table.columns) == {(name, metric) for name in sets for metric in ("EM", "F1")}
    rows = differences(scored, "single", only=["student"])
    assert list(rows["test"]) == list(sets)
    parts = [scored[distill_sets.CLEAN][n] for n in ("single", "ensemble", "student")]
    value, _, _ = kept_share(*parts, samples=20)
    single, ensemble, student = (runs[0].metrics["f1"] for runs in parts)
    assert value == pytest.approx(100 * (student - single) / (ensemble - single))
    for name, test in sets.items():
        kinds = type_table(test, scored[name]["student"], scored[name]["single"])
        assert kinds["questions"].sum() == len(sets[distill_sets.CLEAN])
        mean = (kinds["questions"] * kinds["ours"]).sum() / kinds["questions"].sum()
        assert mean == pytest.approx(scored[name]["student"][0].metrics["f1"])


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("In what year did it end?", "what"),
        ("Whose idea was it?", "who"),
        ("How many came when it began?", "how"),
        ("Name the river.", "other"),
        ("The show started WHERE?", "where"),
    ],
)
def test_the_first_question_word_is_the_type(question, kind):
    assert distill_sets.question_type(question) == kind


def test_further_sets_put_sentences_elsewhere(study):
    further = distill_sets.further_sets(study)
    front, worst = further[distill_sets.FRONT], further[distill_sets.WORST]
    small = distill_sets.small_test(study)
    assert len(small) < len(study.data("test"))
    found = {a.id: a for a in distill_sets.sentence_set(study, "front").attempts}
    for example in front:
        if VARIANT in example.id:
            assert example.context.startswith(found[example.id].sentence)
    assert len(worst) > len(front) == len(small)
    text = distill_sets.trigger(study).metrics["text"]
    triggered = [e for e in further[distill_sets.TRIGGER] if VARIANT in e.id]
    assert len(triggered) == len(small)
    assert all(e.context.endswith(text) for e in triggered)
    run = distill_scores.evaluate_words(study, stages.singles(study), worst)
    assert run.metrics["f1"] == adversarial_score(worst, predictions(run))["f1"]


def test_published_sets_are_for_readers_of_real_text(study, monkeypatch):
    monkeypatch.setattr("qalib.data.sources.find", lambda name: name == "addonesent")
    monkeypatch.setattr(
        "qalib.data.sources.load", lambda name: distill_sets.sentence_set(study).dataset
    )
    assert distill_sets.published_sets(study) == {}
    sections = {**study.profile.sections, "data": {"test": ["squad-dev-v1.1"]}}
    real = replace(study, profile=Profile("test", sections))
    ((title, found),) = distill_sets.published_sets(real).items()
    assert title == "AddOneSent, published"
    assert found.examples == distill_sets.main_sets(study)[distill_sets.ADDED].examples


# Latency, other readers, commands


def test_the_benchmark_measures_rivals_in_one_run(study):
    found = distill_bench.bench(study).metrics
    assert [(row["batch"], row["reader"]) for row in found["latency"]] == [
        (batch, reader) for batch in (1, 4) for reader in ("single", "student", "ensemble")
    ]
    assert all(min(row["reading_ms"], row["answering_ms"]) > 0 for row in found["latency"])
    assert [row["step"] for row in found["step"]] == ["plain", "taught"]
    assert found["step"][0]["ratio"] == 1


def test_cost_and_scores_stand_side_by_side(study, sets, scored):
    clock = distill_bench.bench(study)
    whole = distill_bench.side_by_side(study, clock, sets, scored).set_index("reader")
    assert list(whole.index) == ["single", "student", "ensemble"]
    for name, by_reader in scored.items():
        assert whole.loc["student", name] == by_reader["student"][0].metrics["f1"]
    assert whole.loc["single", "times"] == 1
    first = clock.metrics["latency"][0]
    assert whole.loc["single", "milliseconds"] == first["answering_ms"]


def test_turns_give_every_rival_every_round():
    order = []
    rivals = {name: (lambda n=name: order.append(n)) for name in "ab"}
    seconds = distill_bench.turns(rivals, 2)
    assert order == list("ababab")  # the first round does not count
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}


def test_other_readers_learn_from_encoders(study):
    scored = distill_bytes.other_scores(study)
    assert {name: list(rows) for name, rows in scored.items()} == {
        "shallow encoder": ["plain", "taught"],
        "bytes": ["plain", "taught"],
    }
    plain, taught = (distill_others.shallow(study, how) for how in (False, True))
    assert plain.config["base"] == taught.config["base"]
    assert plain.config["base"]["train"]["epochs"] == 2 != stages_of(study).train.epochs
    with pytest.raises(QalibError, match="epochs must be at least 0"):
        distill_others.OtherStudents(epochs=-1)
    assert (
        distill_others.shallow_reader(
            distill_others.ShallowTraining(stages_of(study), (2,))
        ).encoder.config.num_hidden_layers
        == 1
    )
    for run in (taught, distill_bytes.byte_reader(study, True)):
        assert run.inputs["knowledge"] == distill_others.encoder_knowledge(study).key
        assert "kd" in next(line for line in read_log(run) if "loss" in line)
    with pytest.raises(QalibError, match="keep names layer 9"):
        distill_others.shallow_reader(distill_others.ShallowTraining(stages_of(study), (9,)))


def stages_of(study):
    from qalib.study.skim_study import asked as skim_asked

    return skim_asked(study).base


def test_everything_is_in_the_store_the_second_time(study, scored, sets, nothing_is_computed):
    again = distill_scores.headline(study, distill_sets.main_sets(study))
    assert {
        (name, reader, run.key)
        for name, by_reader in again.items()
        for reader, runs in by_reader.items()
        for run in runs
    } == {
        (name, reader, run.key)
        for name, by_reader in scored.items()
        for reader, runs in by_reader.items()
        for run in runs
    }
    distill_study.mining(study)
    distill_study.row_runs(study)


def test_commands_train_what_the_notebooks_ask_for(study, scored, nothing_is_computed):
    """Every training has a command, with the very key that the notebooks look for."""
    known = stages_by_name(study)
    asked_for = {
        "teachers": list(distill_study.mining(study).values()),
        **{f"words: teacher {n}": [run] for n, run in enumerate(stages.teachers(study))},
        **{f"words: tuning {name}": [run] for name, run in stages.tuning(study).items()},
        **{f"student {n}": [run] for n, run in enumerate(distill_study.students(study))},
        **{f"student: {name}": runs for name, runs in distill_study.row_runs(study).items()},
    }
    for fold in range(asked(study).folds):
        asked_for[f"words: without fold {fold}"] = [distill_study.outside_teacher(study, fold)]
    mine = [name for name in known if name.startswith(("words:", "teachers", "student"))]
    assert set(mine) == set(asked_for)
    for name in mine:
        assert [run.key for run in known[name](study)] == [run.key for run in asked_for[name]]
    others = {run.key for run in known["other students"](study)}
    assert others == {run.key for run in distill_bytes.trained(study)}
    assert len(others) == 4 + len(distill_others.encoder_teachers(study)) + 1


def test_data_is_read_once_and_is_that_of_the_profile(study):
    assert training_data(study) is training_data(study)
    sections = {**study.profile.sections, "distill_data": {"train_questions": 30}}
    other = replace(study, profile=Profile("test", sections))  # as another notebook would ask
    assert len(training_data(other)) == 30 < len(training_data(study))


# Records


@pytest.fixture(scope="module")
def records(study, sets, scored, tmp_path_factory) -> Store:
    """The store of a study whose runs go to the records, as those of profile study do."""
    store = Store(study.store.root, tmp_path_factory.mktemp("records"))
    there = Study("test", Profile("study", study.profile.sections), 0, store)
    distill_scores.headline(there, distill_sets.main_sets(there))
    distill_views.ensemble_view(there)
    distill_case.cases(there)
    return store


def test_records_have_marks_and_no_answers(records):
    kept = {path.name for path in records.records.rglob("*") if path.is_file()}
    assert "marks.safetensors" in kept
    large = [p for p in records.records.rglob("*") if p.is_file() and p.stat().st_size > 100_000]
    assert {path.name for path in large} <= {"weights.safetensors"}  # the study's are left out
    # that a file is small does not bring it in: the study's answers are larger than this
    size = 10_570 * (np.float32().nbytes + 1)
    assert size < marks.LEAN < 10_570 * 40


def test_a_fresh_clone_needs_the_records_alone(records, scored, sets, tmp_path, monkeypatch):
    clone = Study("test", load_profile("ci"), 0, Store(tmp_path, records.records))
    computed = []

    def only_sentences(work, about, compute, needs):
        computed.append(about["stage"])
        assert about["stage"] == "adversarial-set"
        return compute_in(work, about, compute, needs)

    for path in records.records.rglob("*.json"):
        if path.name in ("predictions.json", distill_sets.SENTENCES):
            path.unlink()  # as if they had been as large as the study's
    for done in records.records.rglob("DONE.json"):
        listed = json.loads(done.read_text())
        for name, entry in listed["files"].items():
            entry["kept"] = entry["kept"] and (done.parent / name).exists()
        done.write_text(json.dumps(listed))
    monkeypatch.setattr("qalib.study.store.compute_in", only_sentences)
    again = distill_scores.headline(clone, distill_sets.main_sets(clone))
    assert computed == ["adversarial-set"]
    assert score_table(again).equals(score_table(scored))
    pairs = [score["student"] for score in (again[distill_sets.ADDED], again["clean"])]
    assert difference(*pairs) == difference(
        *(by["student"] for by in (scored[distill_sets.ADDED], scored["clean"]))
    )
    assert distill_case.read_case(distill_case.cases(clone)).question


def test_answers_that_are_not_kept_are_given_again(study, scored, tmp_path):
    clean = scored[distill_sets.CLEAN]["single"][0]
    assert distill_scores.told_before(clean) == predictions(clean)
    assert distill_scores.told_before(replace(clean, folder=tmp_path)) == {}
    assert distill_scores.told_before(None) == {}


# What notebook 08 looks at


def test_the_view_sums_what_teachers_say(study):
    view = distill_views.ensemble_view(study)
    data, known = training_data(study), distill_study.knowledge(study)
    lessons = lessons_of(known, (0, 1))
    examples = {e.id: e for e in data.examples}
    gold, bits, agree = [], [], 0
    for row in range(len(lessons)):  # literally, one row after the other
        place = lessons.places[row]
        first, last = distill_views.gold_span(examples[place.id], place)
        start, end, mask = lessons.logits([row])
        q1, q2 = (x[:, 0][:, mask[0]].double().softmax(1).mean(0) for x in (start, end))
        gold.append(float(q1[first] * q2[last]))
        bits.append(float(-(q1 * q1.log2()).sum() - (q2 * q2.log2()).sum()))
        best = {(int(s[0].argmax()), int(e[0].argmax())) for s, e in zip(start, end, strict=True)}
        agree += len(best) == 1
    assert view.metrics["rows"] == len(lessons)
    assert view.metrics["gold"]["all"] == pytest.approx(100 * np.mean(gold), rel=1e-4)
    assert view.metrics["entropy"]["all"] == pytest.approx(np.mean(bits), rel=1e-4)
    assert view.metrics["agree"] == pytest.approx(100 * agree / len(lessons))
    entropies = view.metrics["entropy"]
    assert entropies["one"] <= entropies["all"] + 1e-4
    assert entropies["all"] <= entropies["all, softened"] + 1e-4


def test_the_surest_mistakes_are_those_of_mining(study):
    view = distill_views.ensemble_view(study)
    mined = lessons_of(distill_study.knowledge(study), (0, 1)).mined()
    told = distill_views.mistakes(view)
    assert told["probability"].iloc[0] == pytest.approx(mined.confidence.max())
    assert (told["probability"].diff().dropna() <= 0).all()
    shown = distill_views.shown_table(view)
    assert 0 < len(shown) <= distill_views.WORDS
    assert set(shown["of"]) <= {"gold", "taken", ""}
    assert (shown[["start", "end"]] <= 1).all(axis=None)
    mining = distill_views.mining_table(distill_study.mining(study))
    assert list(mining.index) == ["in-fold", "out-of-fold"]


def test_the_case_is_what_two_readers_say(study, sets):
    run = distill_case.cases(study)
    found = distill_case.read_case(run)
    assert run.metrics["turned"] == sum(VARIANT in e.id for e in sets[distill_sets.ADDED])
    words, asks = len(found.passage), len(found.question)
    assert found.maps.shape == (2, words, asks)
    assert np.allclose(found.maps.sum(axis=2), 1, atol=1e-2)  # no padding among them
    for side in (found.start, found.end):
        assert np.allclose(side.sum(axis=1), 1, atol=1e-2)
    (example,) = [
        e
        for e in sets[distill_sets.ADDED]
        if VARIANT in e.id and e.question == found.asks and e.answers[0].text == found.gold
    ]
    single = predictions(
        distill_scores.evaluate_words(
            study, stages.singles(study), sets[distill_sets.ADDED], place=distill_sets.ADDED
        )
    )
    assert single[example.id] == found.said["single"]
    points = distill_case.points(found)
    shown = {found.passage[i] for i in range(found.gold_at[0], found.gold_at[1] + 1)}
    assert shown <= set(points["word"])


@pytest.mark.parametrize("profile", ["ci", "laptop", "study", "paper"])
def test_every_profile_has_its_sections(profile, study):
    other = Study("test", load_profile(profile), 0, study.store)
    plan = asked(other)
    assert plan.base.train.max_grad_norm == 5.0
    assert distill_study.row_names(other)[:3] == [
        "no distillation",
        "smoothed labels",
        "all losses",
    ]
    for name, kind in (
        ("distill_tests", distill_sets.DistillTests),
        ("distill_bench", distill_bench.DistillBench),
        ("distill_others", distill_others.OtherStudents),
    ):
        assert isinstance(other.section(name, kind), kind)
