"""The skimming reader: typed output, training modes, answering, and operating points."""

from dataclasses import asdict, replace

import pytest
import torch
from tiny import examples, tiny_reader

from qalib.data.batching import collate
from qalib.data.schema import Example, make_dataset
from qalib.data.windows import WindowConfig, make_windows
from qalib.errors import QalibError
from qalib.inference import AnswerConfig, QuestionAnswerer
from qalib.models.pretrained import save_model
from qalib.skim.calibration import block_predictions
from qalib.skim.predictors import PredictorConfig
from qalib.skim.reader import (
    BF16_MIN_TOKENS,
    SkimReader,
    extract_sentences,
    load_skim_answerer,
)
from qalib.skim.skimmer import SkimConfig, Skimmer, SkimOutput
from qalib.skim.storage import Calibration, Measurement, save_skimmer

WINDOWS = WindowConfig(max_length=40, doc_stride=10, max_query_length=16)
CONFIG = AnswerConfig(windows=WINDOWS, precision="fp32", n_best_size=3, tokens_per_batch=400)
LONG = " ".join(
    f"In {year} the baker Ada{year} met Bo in Town{year}." for year in range(1900, 1920)
)
QUESTIONS = [
    Example(str(n), question, LONG)
    for n, question in enumerate(["Who met Bo in 1907?", "Where?", "When did Ada1921 meet Bo?"])
]


@pytest.fixture(scope="module")
def encoder_reader():
    return tiny_reader(dropout=0.0)


@pytest.fixture
def reader(encoder_reader):
    """A reader that keeps every block, with scores far from each other."""
    config = SkimConfig(PredictorConfig("question", block_size=8), (1,), (1,), (0.0,))
    torch.manual_seed(3)
    skimmer = Skimmer.beside(encoder_reader.encoder, config)
    with torch.no_grad():
        for parameter in skimmer.parameters():
            parameter.add_(torch.randn_like(parameter))
    return SkimReader(encoder_reader, skimmer.eval())


def batch_for(reader, data):
    return collate(make_windows(data, reader.tokenizer, WINDOWS), 0)


def test_the_output_is_that_of_the_skimmer(reader):
    batch = batch_for(reader, examples(4))
    with torch.no_grad():
        output, expected = reader.eval()(batch), reader.run(batch)
    assert isinstance(output.aux, SkimOutput)
    assert torch.equal(output.start_logits, expected.start_logits)
    assert torch.equal(output.mask, batch.mask)
    assert not output.attentions
    assert not output.aux.blocks.passage[:, 0].any()


def test_training_runs_all_predictors_and_prunes_only_where_asked(encoder_reader, reader):
    batch = batch_for(reader, examples(4))
    reader.skimmer.set_options(thresholds=(1.0,))
    assert reader.train()(batch).aux.kept == {}
    pruning = SkimReader(encoder_reader, reader.skimmer, skims_in_training=True).train()
    assert set(pruning(batch).aux.kept) == {1}
    assert pruning.reader.training
    encoder_reader.requires_grad_(False)
    assert not pruning.train().reader.training  # frozen: without dropout
    assert pruning.skimmer.training
    encoder_reader.requires_grad_(True)
    encoder_reader.eval()


def test_without_pruning_answers_are_those_of_the_encoder(encoder_reader, reader):
    plain = QuestionAnswerer(encoder_reader, CONFIG).predict(QUESTIONS)
    skimmed = QuestionAnswerer(reader, CONFIG).predict(QUESTIONS)
    for one, other in zip(plain, skimmed, strict=True):
        assert other.token_fraction == 1.0
        assert one.windows == other.windows > 5
        assert [c.text for c in one.candidates] == [c.text for c in other.candidates]
        assert one.candidates[0].score == pytest.approx(other.candidates[0].score, abs=1e-4)


# --- skimmers in folders ---


@pytest.fixture
def folder(reader, tmp_path):
    """A model folder with its skimmer and a calibration."""
    reader.skimmer.set_options(thresholds=(0.4,), min_tokens=10)
    save_model(tmp_path / "model", reader.reader, WINDOWS)
    measured = (Measurement("mine", 200, 198, 0.4),)
    calibration = asdict(Calibration(1, 0.4, 0.98, None, measured))
    save_skimmer(tmp_path / "model", reader.skimmer, reader.reader.encoder, calibration)
    return tmp_path / "model"


@pytest.mark.parametrize(("precision", "min_tokens"), [("fp32", 10), ("bf16", BF16_MIN_TOKENS)])
def test_a_folder_is_model_and_skimmer(folder, precision, min_tokens):
    """Short inputs are not pruned in bf16 on a CPU."""
    config = AnswerConfig(windows=WINDOWS, precision=precision)
    for names in ((folder,), ("", folder), (folder, folder)):
        answerer = load_skim_answerer(*names, config=config, device="cpu")
        options = answerer.reader.skimmer.config
        assert (options.prune_layers, options.thresholds) == ((1,), (0.4,))
        assert options.min_tokens == min_tokens
        assert "198 of 200 answers kept whole, 99.0 %" in answerer.reader.operating_point
        assert "may differ" in answerer.reader.operating_point


def test_skimmers_that_cannot_be_used_are_named(folder, reader, tmp_path):
    save_skimmer(tmp_path / "new", reader.skimmer)
    with pytest.raises(QalibError, match=r"no threshold yet.*skim calibrate"):
        load_skim_answerer(folder, tmp_path / "new")
    with pytest.raises(QalibError, match="no skimmer here"):
        load_skim_answerer(skimmer=tmp_path / "none")


# --- sentences to read ---


def test_sentences_are_those_that_blocks_of_the_threshold_touch(reader):
    answerer = QuestionAnswerer(reader, CONFIG)
    question, passage, given = QUESTIONS[0].question, LONG, reader.skimmer.config
    everything, share = extract_sentences(answerer, question, passage)  # the threshold is 0
    assert reader.skimmer.config == given
    assert [s.text for s in everything] == [f"{s}." for s in passage.rstrip(".").split(". ")]
    assert all(passage[s.start : s.end] == s.text for s in everything)
    assert share == 1.0
    scores = sorted(sentence.probability for sentence in everything)
    reader.skimmer.set_options(thresholds=(scores[-4],))
    best, share = extract_sentences(answerer, question, passage)
    assert best == [s for s in everything if s.probability >= scores[-4]]
    assert share == pytest.approx(sum(len(s.text) for s in best) / (len(passage) - 19))
    reader.skimmer.set_options(thresholds=(1.0,))
    assert {s.probability for s in extract_sentences(answerer, question, passage)[0]} == {
        scores[-1]
    }
    with pytest.raises(QalibError, match="context is empty"):
        extract_sentences(answerer, question, " ")


def test_the_null_answer_lies_in_no_block():
    reader = tiny_reader(dropout=0.0)
    config = SkimConfig(PredictorConfig("question", block_size=8), (1,))
    model = SkimReader(reader, Skimmer.beside(reader.encoder, config)).eval()
    first, second = examples(2)
    data = make_dataset("toy", [replace(first, answers=()), second])
    found = block_predictions(model, data, WindowConfig(null=True), "fp32")
    assert found.answered.tolist() == [False, True]
