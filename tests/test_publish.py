"""Publishing the skimmer: its card, and the published files are sound."""

from types import SimpleNamespace

from qalib.data.corpus import CorpusConfig, build_corpus
from qalib.inference import QuestionAnswerer
from qalib.skim.reader import load_skim_answerer
from qalib.skim.storage import DEFAULT_SKIMMER, load_calibration
from qalib.study import publish


def test_the_card_tells_what_was_trained(tmp_path):
    metrics = {"skim_parameters": 1234, "questions": 50, "precision": "bf16", "steps": 7}
    env = {"git": {"commit": None}}
    run = SimpleNamespace(metrics=metrics, env=env, short="train-skim-abc")
    data = build_corpus(CorpusConfig(questions=2))
    facts = {
        "seed": 3,
        "layers": "2, 3",
        "size": 32,
        "parameters": 1234,
        "min_tokens": 96,
        "least": 10.0,
    }
    publish.write_card(tmp_path, "skimmer", run, data, **facts)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    for text in ("layers 2, 3", "1,234", "fewer than 96 tokens", "less than 10 %", "abc"):
        assert text in card


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
    assert sum(prediction.token_fraction for prediction in pruned) < 0.6 * len(asked)
    texts = [[found.candidates[0].text for found in both] for both in (full, pruned)]
    assert sum(a == b for a, b in zip(*texts, strict=True)) >= 12
