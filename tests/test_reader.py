"""The skimming reader: typed output, training modes, answering, and operating points."""

from dataclasses import replace

import pytest
import torch
from tiny import examples, tiny_reader

from qalib.data.batching import collate
from qalib.data.schema import Example
from qalib.data.windows import WindowConfig, make_windows
from qalib.errors import QalibError
from qalib.inference import AnswerConfig, QuestionAnswerer
from qalib.skim.blocks import batch_block_ids, sentence_blocks
from qalib.skim.calibration import OperatingPointTarget, load_calibration
from qalib.skim.predictors import PredictorConfig
from qalib.skim.reader import BF16_MIN_TOKENS, SkimReader, load_skim_answerer
from qalib.skim.skimmer import SkimConfig, Skimmer, SkimOutput
from qalib.skim.storage import DEFAULT_SKIMMER, load_skimmer, save_skimmer

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
    skimmer = Skimmer.from_encoder(encoder_reader.encoder, config)
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


def test_given_blocks_replace_even_ones(reader):
    data = [Example("1", "Who?", "The baker sold bread. He was old. " * 2)]
    windows = make_windows(data, reader.tokenizer, WINDOWS)
    batch = collate(windows, 0)
    given = [sentence_blocks(w, data[w.example].context, 8) for w in windows]
    batch.inputs["block_ids"] = batch_block_ids(given, windows, batch.mask.shape[1])
    blocks = reader.run(batch).blocks
    assert blocks.block_ids[0][blocks.passage[0]].tolist() == given[0].tolist()


def test_without_pruning_answers_are_those_of_the_encoder(encoder_reader, reader):
    plain = QuestionAnswerer(encoder_reader, CONFIG).predict(QUESTIONS)
    skimmed = QuestionAnswerer(reader, CONFIG).predict(QUESTIONS)
    for one, other in zip(plain, skimmed, strict=True):
        assert (other.token_fraction, other.dropped) == (1.0, 0)
        assert one.windows == other.windows > 5
        assert [c.text for c in one.candidates] == [c.text for c in other.candidates]
        assert one.candidates[0].score == pytest.approx(other.candidates[0].score, abs=1e-4)


def test_of_a_passage_the_best_window_is_never_dropped(reader):
    assert not reader.drops_windows
    reader.skimmer.set_options(window_threshold=1.0)
    assert reader.drops_windows
    answerer = QuestionAnswerer(reader, CONFIG)
    windows = answerer.make_windows(QUESTIONS)
    scored = answerer._score(windows, range(len(windows)), QUESTIONS)
    for number, prediction in enumerate(answerer.predict(QUESTIONS)):
        mine = [i for i, window in enumerate(windows) if window.example == number]
        best = max(mine, key=lambda i: scored[i].max_block_score)
        begin, end = int(windows[best].offsets[0, 0]), int(windows[best].offsets[-1, 1])
        assert (prediction.windows, prediction.dropped) == (len(mine), len(mine) - 1)
        assert prediction.candidates[0].score == pytest.approx(scored[best].scores[0], abs=1e-4)
        assert all(begin <= c.start < c.end <= end for c in prediction.candidates)
        assert prediction.token_fraction < 0.2


@pytest.mark.parametrize("window_threshold", [0.5, 1.0])
def test_dropping_does_not_depend_on_the_batch(reader, window_threshold):
    reader.skimmer.set_options(window_threshold=window_threshold, thresholds=(0.4,))
    one = QuestionAnswerer(reader, CONFIG).predict(QUESTIONS)
    small = QuestionAnswerer(reader, replace(CONFIG, tokens_per_batch=1))
    few = small.predict(QUESTIONS[::-1])[::-1]
    for a, b in zip(one, few, strict=True):
        assert a.dropped == b.dropped
        assert a.token_fraction == pytest.approx(b.token_fraction)
        assert [x.text for x in a.candidates] == [x.text for x in b.candidates]


# --- the published skimmer ---


@pytest.fixture(scope="module")
def calibration():
    return load_calibration(DEFAULT_SKIMMER)


@pytest.mark.parametrize(
    ("precision", "recall", "min_tokens"),
    [("fp32", None, 96), ("bf16", None, BF16_MIN_TOKENS), ("bf16", 0.95, 96)],
)
def test_short_inputs_are_not_pruned_in_bf16_unless_a_target_is_set(precision, recall, min_tokens):
    if torch.cuda.is_available():
        pytest.skip("this is about processors")
    target = None if recall is None else OperatingPointTarget(min_recall=recall)
    answerer = load_skim_answerer(config=AnswerConfig(precision=precision), target=target)
    assert answerer.reader.skimmer.config.min_tokens == min_tokens


def test_a_target_selects_an_operating_point(calibration):
    target = OperatingPointTarget(min_recall=0.97)
    point = calibration.select(target)
    answerer = load_skim_answerer(target=target, window_threshold=point.threshold / 2)
    config = answerer.reader.skimmer.config
    assert (config.prune_layers, config.thresholds) == ((point.layer,), (point.threshold,))
    assert config.window_threshold == point.threshold / 2
    assert answerer.reader.operating_point == calibration.describe(point)
    question = Example("1", "Who built the bridge?", "Anna Smith built the bridge in 1901. " * 9)
    assert answerer.predict([question])[0].candidates[0].text == "Anna Smith"


def test_a_window_threshold_must_not_exceed_that_of_the_operating_point(calibration):
    target = OperatingPointTarget(min_recall=0.99)
    above = calibration.select(target).threshold + 0.01
    with pytest.raises(QalibError, match=r"window threshold of .* would drop more"):
        load_skim_answerer(target=target, window_threshold=above)


def test_a_skimmer_of_another_reader_is_refused(tmp_path):
    save_skimmer(tmp_path, load_skimmer(DEFAULT_SKIMMER), reader_hash="another")
    with pytest.raises(QalibError, match="trained with another reader"):
        load_skim_answerer(skimmer=tmp_path)
    with pytest.raises(QalibError, match="no skimmer here"):
        load_skim_answerer(skimmer=tmp_path / "none")
