"""Publishing the skimmer: its card, and the published files are sound."""

from types import SimpleNamespace

from qalib.data.corpus import CorpusConfig, build_corpus
from qalib.inference import QuestionAnswerer
from qalib.skim.calibration import Calibration, Measurement, load_calibration
from qalib.skim.reader import load_skim_answerer
from qalib.skim.storage import DEFAULT_SKIMMER
from qalib.study import publish


def test_the_card_gives_what_was_measured():
    metrics = {"skim_parameters": 1234, "questions": 50, "precision": "bf16", "steps": 7}
    env = {"git": {"commit": None}}
    run = SimpleNamespace(metrics=metrics, config={"seed": 3}, env=env, short="train-skim-abc")
    scores = {"questions": 9, "exact_match": 50.0, "f1": 61.24, "token_fraction": 0.43}
    evaluated = SimpleNamespace(metrics=scores, short="evaluate-def")
    measured = (Measurement("some", 200, 199, 0.4), Measurement("news", 100, 90, 0.5))
    found = Calibration(1, 0.25, 0.99, None, measured)
    plan, data = publish.PublishedSkimmer(), build_corpus(CorpusConfig(questions=2))
    card = publish.skimmer_card(run, data, plan, found, {"pruned": evaluated})
    for text in ("0.2500 at layer 1", "1,234", "61.2", "43%", "train-skim-abc", "some: 199 of 200"):
        assert text in card
    assert "measured on news: 90 of 100 answers kept whole, 90.0 % (95 % interval 82.4 to" in card


def test_the_published_threshold_was_measured_in_and_out_of_distribution():
    """On data that neither reader nor predictors were trained on, and the card says so."""
    found = load_calibration(DEFAULT_SKIMMER)
    assert len(found.measured) >= 3
    assert not any("squadshifts" in each.data for each in found.measured)
    card = (DEFAULT_SKIMMER / "README.md").read_text(encoding="utf-8")
    assert all(str(each) in " ".join(card.split()) for each in found.measured)


def test_it_processes_a_part_of_a_passage_and_finds_the_answer():
    config = CorpusConfig(questions=16, split="test", length=1500)
    asked = build_corpus(config).examples
    full, pruned = (load().predict(asked) for load in (QuestionAnswerer.load, load_skim_answerer))
    assert {prediction.token_fraction for prediction in full} == {1.0}
    assert sum(prediction.token_fraction for prediction in pruned) < 0.5 * len(asked)
    texts = [[found.candidates[0].text for found in both] for both in (full, pruned)]
    assert sum(a == b for a, b in zip(*texts, strict=True)) >= 12
