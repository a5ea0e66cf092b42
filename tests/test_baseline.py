"""Training an encoder, scoring readers of all kinds, publishing a checkpoint; on toy studies."""

import importlib
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.torch import load_file

from qalib import metrics
from qalib.data.corpus import CorpusConfig, build_corpus
from qalib.data.schema import Answer, Dataset, Example, hold_out, make_dataset
from qalib.data.windows import WindowConfig
from qalib.errors import QalibError
from qalib.inference import AnswerCandidate, AnswerConfig, Prediction, QuestionAnswerer
from qalib.models.encoder import EncoderConfig
from qalib.models.pretrained import (
    DEFAULT_CHECKPOINT,
    WEIGHTS,
    checkpoint_hash,
    windows_of,
)
from qalib.models.pretrained import load_reader as load_checkpoint
from qalib.study import publish
from qalib.study.profiles import Profile
from qalib.study.run_cache import Run, RunCache, Stage
from qalib.study.session import Study
from qalib.study.stages import baseline, readers
from qalib.study.stages.baseline import (
    AdapterTraining,
    EncoderTraining,
    Evaluation,
    evaluate,
    recorded_scores,
)
from qalib.training import TrainConfig

TINY = EncoderTraining(
    encoder=EncoderConfig(random_start=True, layers=2, width=32, heads=4),
    windows=WindowConfig(max_length=160, doc_stride=32, max_query_length=32),
    train=TrainConfig(num_train_epochs=2, tokens_per_batch=2048, learning_rate=5e-3),
)
SECTIONS = {
    "data": {"train_questions": 40, "test_questions": 20, "passage_length": 300},
    "encoder": {
        "encoder": {"random_start": True, "layers": 2, "width": 32, "heads": 4},
        "train": {"max_steps": 2, "tokens_per_batch": 2048, "learning_rate": 0.01},
    },
    "readers_data": {"train_questions": 40, "test_questions": 20, "passage_length": 300},
    "readers_squad": {"train_questions": 20, "passage_length": 300},
    "readers": {
        **dict.fromkeys(["base_rank", "small_rank"], 2),
        **{"base_rates": [1e-3, 2e-3], "small_rates": [1e-3], "held_out": 0.3},
    },
}


SECTIONS["readers"] |= dict.fromkeys(["base", "small"], SECTIONS["encoder"])


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    folder = tmp_path_factory.mktemp("runs")
    return Study("test", Profile("ci", SECTIONS), 0, RunCache(folder, None))


@pytest.fixture(scope="module")
def data() -> Dataset:
    return build_corpus(CorpusConfig(questions=40, split="train", length=300))


@pytest.fixture(scope="module")
def test_set() -> Dataset:
    return build_corpus(CorpusConfig(questions=12, split="test", length=300))


@pytest.fixture(scope="module")
def trained(study, data, test_set) -> Run:
    config = replace(TINY, held_out=0.2)
    return study.run(baseline.train_encoder, config, data=data, watch=test_set)


# --- training ----------------------------------------------------------------------------------


def test_scores_after_every_epoch_are_logged_and_the_last_ones_are_metrics(trained, data):
    rest, held = hold_out(data, 0.2)
    assert not {e.context for e in rest} & {e.context for e in held}
    assert trained.metrics["questions"] == len(rest) < len(data)
    log = trained.log()
    epochs = log[log["step"].isna()]
    assert epochs["epoch"].tolist() == [1, 2]
    for name in ("held_out_f1", "held_out_exact_match", "watch_f1", "watch_exact_match"):
        assert epochs[name].notna().all()
        assert trained.metrics[name] == epochs[name].iloc[-1]


def test_a_trained_reader_comes_back_with_its_weights(trained, data):
    held = hold_out(data, 0.2)[1]
    reader = baseline.load_encoder_reader(trained)
    config = AnswerConfig(windows=TINY.windows, precision="fp32")
    scores = metrics.score(held, QuestionAnswerer(reader, config).predictions(held.examples))
    assert scores["f1"] == pytest.approx(trained.metrics["held_out_f1"])
    saved = load_file(trained.file("weights.safetensors"))
    assert {n for n, p in reader.named_parameters() if p.requires_grad} <= set(saved)
    assert not any("word_embeddings" in name for name in saved)  # they are not trained
    assert trained.settings(EncoderTraining) == replace(
        TINY, held_out=0.2, train=replace(TINY.train, precision="fp32")
    )


def test_a_training_that_is_repeated_in_its_folder_is_not_done_twice(tmp_path, data):
    """As after a kill between the last epoch and the end: nothing is trained, nothing lost."""
    config = replace(TINY, train=replace(TINY.train, num_train_epochs=1, precision="fp32"))
    small = make_dataset("few", data.examples[:20])
    first = baseline.train_encoder(config, tmp_path, small, watch=small)
    weights = (tmp_path / "weights.safetensors").read_bytes()
    log = (tmp_path / "log.jsonl").read_text()
    again = baseline.train_encoder(config, tmp_path, small, watch=small)
    assert (tmp_path / "weights.safetensors").read_bytes() == weights
    assert (tmp_path / "log.jsonl").read_text() == log
    for name in ("questions", "windows", "steps", "watch_f1", "watch_exact_match"):
        assert again[name] == first[name]


@pytest.mark.parametrize("wrong", [{"loss": "sum"}, {"held_out": 1.0}, {"held_out": -0.1}])
def test_training_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(QalibError, match=next(iter(wrong))):
        replace(TINY, **wrong)


# --- scoring -----------------------------------------------------------------------------------


def test_a_reader_is_scored_by_the_official_metrics(study, trained, test_set):
    settings = AnswerConfig(windows=TINY.windows)
    run = study.run(evaluate, Evaluation("tiny", settings), weights=trained, test=test_set)
    answers = QuestionAnswerer(baseline.load_encoder_reader(trained), settings)
    expected = answers.predictions(test_set.examples)
    assert json.loads(run.file("predictions.json").read_text()) == expected
    score = metrics.score(test_set, expected)
    assert {name: run.metrics[name] for name in score} == pytest.approx(score)
    assert run.metrics["questions"] == len(test_set)
    assert run.metrics["token_fraction"] == 1
    assert "p@1" not in run.metrics
    found = recorded_scores(run)
    exact, f1 = metrics.question_scores(test_set, expected)
    np.testing.assert_array_equal(found["EM"], 100 * exact)
    np.testing.assert_allclose(found["F1"], 100 * f1, rtol=1e-6)
    again = study.run(evaluate, Evaluation("tiny", settings), weights=trained, test=test_set)
    assert again.key == run.key
    other = Evaluation("tiny", replace(settings, max_answer_length=5))
    assert study.run(evaluate, other, weights=trained, test=test_set).key != run.key


def fake_answerer(monkeypatch, answers: dict[str, list[str]], fraction: float = 1.0) -> None:
    def predict(examples):
        return [
            Prediction([AnswerCandidate(text, 0, 0, 0.5, 0.0) for text in answers[e.id]], fraction)
            for e in examples
        ]

    fake = SimpleNamespace(predict=predict)
    monkeypatch.setattr(baseline, "answerer_of", lambda weights, settings: fake)


def question(id: str, gold: str) -> Example:
    return Example(id, "Which?", gold, (Answer(gold, 0),))


def test_ranks_count_different_answers_once(tmp_path, monkeypatch):
    test = make_dataset("t", [question("a", "dog"), question("b", "cat"), question("c", "hen")])
    answers = {"a": ["the Cat", "cat!", "dog"], "b": ["cat"], "c": [*"uvwxy", "hen"]}
    fake_answerer(monkeypatch, answers, fraction=0.5)
    config = Evaluation("fake", AnswerConfig(n_best_size=10))
    found = evaluate(config, tmp_path, test, weights="a run")
    assert json.loads((tmp_path / "ranks.json").read_text()) == [2, 1, 0]
    assert [found[f"p@{n}"] for n in range(1, 6)] == pytest.approx([100 / 3, 100 / 3, 0, 0, 0])
    assert found["exact_match"] == pytest.approx(found["p@1"])
    assert found["token_fraction"] == 0.5


def test_a_data_set_known_by_its_hash_is_found_and_never_computed(study, trained, test_set):
    settings = AnswerConfig(windows=TINY.windows)
    config, digest = Evaluation("tiny", settings), test_set.content_sha256
    known = study.run(evaluate, config, weights=trained, test=test_set)
    assert study.run(evaluate, config, weights=trained, test=digest).key == known.key
    with pytest.raises(QalibError, match="0123456789ab is not part of the kit"):
        study.run(evaluate, config, weights=trained, test="0123456789abcdef")


def test_baselines_need_no_weights_and_readers_do(tmp_path, test_set):
    found = evaluate(Evaluation("lexical"), tmp_path, test_set)
    assert found["f1"] > 10
    with pytest.raises(QalibError, match="the reader 'mine' needs weights"):
        evaluate(Evaluation("mine"), tmp_path, test_set)


def test_the_published_reader_is_scored_by_its_hash(study, test_set):
    settings = AnswerConfig(windows=windows_of())
    checkpoint = checkpoint_hash(DEFAULT_CHECKPOINT)
    run = study.run(evaluate, Evaluation("shipped", settings), test=test_set, checkpoint=checkpoint)
    assert run.inputs == {"checkpoint": checkpoint, "test": test_set.content_sha256}
    assert run.metrics["f1"] > 15


@pytest.mark.parametrize(("stage", "answerer"), baseline.ANSWERERS.items())
def test_the_reader_of_every_training_can_be_scored(stage, answerer):
    topic, function = answerer.split(".")
    module = importlib.import_module(f"qalib.study.stages.{topic}")
    assert callable(getattr(module, function))
    stages = [getattr(value, "stage", None) for value in vars(module).values()]
    assert stage in [found.name for found in stages if isinstance(found, Stage)]


# --- publishing --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapted(study, data, test_set) -> Run:
    config = AdapterTraining(replace(TINY, held_out=0.2), rank=4)
    return study.run(baseline.train_adapter, config, data=data, watch=test_set)


def test_a_written_reader_answers_as_the_trained_one(tmp_path, adapted, test_set):
    publish.write_reader(tmp_path, adapted)
    settings = AnswerConfig(windows=TINY.windows)
    assert windows_of(tmp_path) == TINY.windows
    readers = load_checkpoint(tmp_path), baseline.load_encoder_reader(adapted)
    published, original = (
        QuestionAnswerer(reader, settings).answer_many(test_set.examples) for reader in readers
    )
    scores = [[best[0].score for best in answers] for answers in (published, original)]
    np.testing.assert_allclose(*scores, atol=1e-4)  # both are stored in half precision


def test_a_run_is_a_model_of_the_commands(adapted):
    reader = load_checkpoint(adapted.folder)
    other = baseline.load_encoder_reader(adapted)
    assert windows_of(adapted.folder) == TINY.windows
    for one, two in zip(reader.parameters(), other.parameters(), strict=True):
        assert one.equal(two)


def test_publishing_writes_weights_and_card(study, tmp_path, monkeypatch):
    for name in ("DEFAULT_CHECKPOINT", "BASE_CHECKPOINT"):
        monkeypatch.setattr(f"qalib.models.pretrained.{name}", tmp_path / name)
    for size in ("small", "base"):
        folder = publish.export_reader(study, size)
        assert (folder / WEIGHTS).stat().st_size > 1000
        card = (folder / "README.md").read_text()
        trained = (
            readers.taught_reader(study) if size == "small" else readers.best_reader(study, size)
        )
        assert trained.short in card
        assert ("as published" in card) == (size == "small")


def test_few_layers_can_be_kept(study, data):
    base = replace(TINY, train=replace(TINY.train, max_steps=1))
    run = study.run(baseline.train_adapter, AdapterTraining(base, 2, (2,)), data=data)
    assert baseline.load_encoder_reader(run).encoder.config.num_hidden_layers == 1
    assert evaluate_once(study, run, data) >= 0


def evaluate_once(study, run, data) -> float:
    config = Evaluation("few", AnswerConfig(windows=TINY.windows))
    return study.run(evaluate, config, weights=run, test=data).metrics["f1"]


def test_the_rate_is_chosen_on_held_out_passages(study):
    best = readers.best_reader(study, "base")
    tried = [readers.train_reader(study, "base", rate).metrics for rate in (1e-3, 2e-3)]
    assert best.metrics["watch_f1"] == max(metrics["watch_f1"] for metrics in tried)
    data, watch = readers.reader_data(study)
    read = hold_out(data, best.config["base"]["held_out"])[0]
    assert not {e.context for e in watch} & {e.context for e in read}


def test_the_card_of_the_published_reader_names_its_weights():
    card = (DEFAULT_CHECKPOINT / "README.md").read_text(encoding="utf-8")
    assert card.startswith(f"# {DEFAULT_CHECKPOINT.name}\n")
    assert "rank 88" in card
