"""Probes: what they read against a literal sum, whom they are scored on, what they cannot do."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tiny import examples, tiny_reader
from transformers import AutoConfig, AutoModelForQuestionAnswering

from qalib import probes
from qalib.data.features import WindowConfig
from qalib.data.squad import Answer, Example
from qalib.errors import QalibError
from qalib.probes import ProbeConfig
from qalib.readers.encoder_reader import EncoderReader
from qalib.skim.features import SIX

WINDOWS = WindowConfig(max_length=96, stride=16, max_question=24)
SMALL = ProbeConfig(block_size=6, folds=3, tokens_per_batch=256)


@pytest.fixture(scope="module")
def reader() -> EncoderReader:
    return tiny_reader()


@pytest.fixture(scope="module")
def data(reader) -> probes.BlockData:
    return probes.collect(reader, examples(), WINDOWS, SMALL)


# --- what probes read ------------------------------------------------------------------------


@torch.inference_mode()
def literal(reader: EncoderReader, example: Example, size: int) -> np.ndarray:
    """The six numbers of every block, summed entry by entry of every map.  (K, layers, H, 6)"""
    coded = reader.tokenizer(example.question, example.context, return_tensors="pt")
    reader.encoder.eval().set_attn_implementation("eager")
    maps = torch.stack(reader.encoder(**coded, output_attentions=True).attentions)[:, 0]
    reader.encoder.set_attn_implementation("qalib")
    kinds = coded.sequence_ids(0)
    question = [i for i, kind in enumerate(kinds) if kind == 0]
    passage = [i for i, kind in enumerate(kinds) if kind == 1]
    separators = [i for i, kind in enumerate(kinds) if kind is None and i]
    rows = []
    for begin in range(0, len(passage), size):
        block = passage[begin : begin + size]
        row = []
        for tokens in (question, [0], separators):
            for one, other in ((block, tokens), (tokens, block)):
                total = sum(maps[:, :, i, j] for i in one for j in other)
                row.append(total / len(one))
        rows.append(torch.stack(row, dim=-1))
    return torch.stack(rows).numpy()


def test_features_are_the_literal_sums(reader, data):
    for n in (0, 3, 9):
        rows = data.examples == n
        expected = literal(reader, examples()[n], SMALL.block_size)
        np.testing.assert_allclose(data.features[rows], expected, atol=2e-6)
    assert data.features.dtype == np.float32
    assert data.features.shape[1:] == (2, 4, len(SIX))


def test_a_question_alone_gives_what_it_gives_in_company(reader, data):
    for n in (2, 4):
        alone = probes.collect(reader, [examples()[n]], WINDOWS, SMALL)
        rows = data.examples == n
        np.testing.assert_allclose(alone.features, data.features[rows], atol=2e-6)
        np.testing.assert_allclose(alone.plain, data.plain[rows], atol=1e-6)
        np.testing.assert_array_equal(alone.labels, data.labels[rows])
        np.testing.assert_array_equal(alone.characters, data.characters[rows])


def test_blocks_cover_the_passage_and_know_their_answers(data):
    for n, example in enumerate(examples()):
        rows = np.flatnonzero(data.examples == n)
        edges = data.characters[rows]
        assert edges[0, 0] == 0
        assert edges[-1, 1] == len(example.context)
        assert (edges[1:, 0] >= edges[:-1, 1]).all()
        for (start, end), label in zip(edges, data.labels[rows], strict=True):
            assert label == any(a.start < end and a.end > start for a in example.answers)
    assert 0 < data.labels.sum() < len(data)


def test_questions_about_a_passage_share_its_number(reader):
    one, other = examples()[:2]
    again = Example("again", "Who founded it?", one.context, one.answers)
    found = probes.collect(reader, [one, other, again], WINDOWS, SMALL)
    numbers = [set(found.passages[found.examples == n]) for n in range(3)]
    assert numbers == [{0}, {1}, {0}]


@pytest.mark.parametrize("training", [True, False])
def test_the_reader_is_left_as_it_was(reader, training):
    reader.train(training)
    usual = reader.encoder.config._attn_implementation
    before = {name: tensor.clone() for name, tensor in reader.state_dict().items()}
    probes.collect(reader, examples(3), WINDOWS, SMALL)
    broken = ProbeConfig(block_size=0, folds=3)
    with pytest.raises(QalibError, match="at least 1 token"):
        probes.collect(reader, examples(3), WINDOWS, broken)
    assert reader.training is training
    assert reader.encoder.config._attn_implementation == usual == "qalib"
    assert all(torch.equal(before[name], t) for name, t in reader.state_dict().items())


FAMILIES = {
    "bert": {},
    "roberta": {"type_vocab_size": 1, "pad_token_id": 0},
    "albert": {"embedding_size": 8},
    "distilbert": {"n_layers": 2, "dim": 16, "hidden_dim": 32, "n_heads": 2},
    "electra": {"embedding_size": 16},
    "mpnet": {"pad_token_id": 0},
    "modernbert": {"pad_token_id": 0, "global_attn_every_n_layers": 1},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_its_attention_away(reader, family):
    sizes = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 32, "vocab_size": 30522}
    config = AutoConfig.for_model(family, **sizes | FAMILIES[family])
    model = AutoModelForQuestionAnswering.from_config(config)
    found = probes.collect(EncoderReader(model, reader.tokenizer), examples(6), WINDOWS, SMALL)
    assert found.features.shape[1:] == (2, 2, 6)
    assert (found.features > 0).all()
    whole = found.features[found.examples == 2].sum(axis=0)  # all blocks of one passage
    assert (whole[..., 1::2] < 1).all()  # of what question, [CLS], [SEP] give, blocks get a part
    assert not np.allclose(found.features[:, 0], found.features[:, 1])


def test_plain_numbers_see_the_words(reader):
    context = (
        "the baker sold bread. " * 3 + "the harbour burnt down in 1712. " + "nobody came. " * 6
    )
    gold = (Answer("1712", context.index("1712")),)
    asked = [Example("q", "When did the harbour burn down?", context, gold)]
    found = probes.collect(reader, asked, WINDOWS, ProbeConfig(block_size=6))
    with_harbour = [i for i, (a, b) in enumerate(found.characters) if "harbour" in context[a:b]]
    assert found.plain.shape == (len(found), 5)
    assert with_harbour == [int(found.plain[:, 0].argmax())]


def test_what_cannot_be_probed_is_said(reader):
    bare = Example("q", "Who?", "Nobody was there.")
    with pytest.raises(QalibError, match="none of the 1 questions has a passage with its answer"):
        probes.collect(reader, [bare], WINDOWS, SMALL)
    with pytest.raises(QalibError, match="none of the 0 questions"):
        probes.collect(reader, [], WINDOWS, SMALL)


def test_select_takes_a_layer_and_parts_of_it(data):
    whole = probes.select(data.features, 2)
    assert whole.shape == (len(data), 4 * 6)
    np.testing.assert_array_equal(whole.reshape(-1, 4, 6), data.features[:, 1])
    part = probes.select(data.features, 1, heads=[3, 0], kinds=[5])
    np.testing.assert_array_equal(part, data.features[:, 0, [3, 0], 5])
    for layer in (0, 3):
        with pytest.raises(QalibError, match=f"no layer {layer}; layers count from 1 to 2"):
            probes.select(data.features, layer)


# --- fitting and scoring ---------------------------------------------------------------------


def toy(seed: int, rows: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs of very different scales, labels that follow two of them, passages of four rows."""
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(rows, 5)) * [1, 100, 1e-4, 1, 1] + [0, 5, 1, 0, 0]
    inputs[:, 4] = 7  # says nothing
    logits = inputs[:, 0] - (inputs[:, 1] - 5) / 100 - 1
    labels = random.random(rows) < 1 / (1 + np.exp(-3 * logits))
    return inputs.astype(np.float32), labels, np.arange(rows) // 4


@pytest.mark.parametrize("balanced", [False, True])
def test_a_probe_is_the_logistic_regression_of_scikit_learn(balanced):
    inputs, labels, _ = toy(0)
    probe = probes.fit(inputs, labels, ProbeConfig(strength=0.3, balanced=balanced))
    model = LogisticRegression(C=0.3, class_weight="balanced" if balanced else None, max_iter=2000)
    model = make_pipeline(StandardScaler(), model).fit(inputs.astype(np.float64), labels)
    expected = model.predict_proba(inputs.astype(np.float64))[:, 1]
    np.testing.assert_allclose(probe.probabilities(inputs), expected, atol=1e-6)


rows = st.tuples(st.booleans(), st.sampled_from([0.0, 0.2, 0.5, 0.7, 1.0]))


@settings(max_examples=30)
@given(st.lists(rows, min_size=1, max_size=20))
def test_scores_are_those_of_scikit_learn(table):
    labels, chances = (np.array(column) for column in zip(*table, strict=True))
    found = probes.score(chances, labels, 0.5)
    said = chances >= 0.5
    expected = metrics.precision_recall_fscore_support(
        labels, said, average="binary", zero_division=0
    )
    np.testing.assert_allclose([found.precision, found.recall, found.f1], expected[:3])
    assert found.accuracy == pytest.approx(metrics.accuracy_score(labels, said))
    if labels.all() or not labels.any():
        assert np.isnan(found.auc)
    else:
        pairs = [(p > q) + (p == q) / 2 for p in chances[labels] for q in chances[~labels]]
        assert found.auc == pytest.approx(np.mean(pairs))


def test_no_passage_is_fitted_and_scored_in_one_fold():
    _, labels, passages = toy(1)
    parts = probes.folds(labels, passages, ProbeConfig(folds=4))
    assert len(parts) == 4
    for rest, held in parts:
        assert not set(passages[rest]) & set(passages[held])
        assert sorted([*rest, *held]) == list(range(len(labels)))
    assert sorted(np.concatenate([held for _, held in parts])) == list(range(len(labels)))


def test_a_probe_cannot_learn_passages_by_heart():
    """Every passage has an input of its own, which tells its label: worthless on other passages."""
    random = np.random.default_rng(0)
    passages = np.arange(300) // 5
    labels = (random.random(60) < 0.5)[passages]
    inputs = np.eye(60, dtype=np.float32)[passages]
    scores = probes.mean_scores(probes.cross_validate(inputs, labels, passages))
    assert scores.accuracy < 0.62
    by_heart = probes.fit(inputs, labels, ProbeConfig(strength=100))
    assert probes.score(by_heart.probabilities(inputs), labels).accuracy == 1


def test_cross_validation_finds_what_is_there_and_nothing_else():
    inputs, labels, passages = toy(2)
    found = probes.cross_validate(inputs, labels, passages)
    assert len(found) == 5
    assert probes.mean_scores(found).auc > 0.85
    nothing = probes.cross_validate(inputs[::-1].copy(), labels, passages)
    assert probes.mean_scores(nothing).auc == pytest.approx(0.5, abs=0.1)


def test_baselines_need_no_inputs():
    _, labels, passages = toy(3)
    found = {n: probes.mean_scores(s) for n, s in probes.baselines(labels, passages).items()}
    share = labels.mean()
    assert share < 0.5
    assert found["majority"].accuracy == pytest.approx(1 - share)
    assert (found["majority"].f1, found["majority"].auc) == (0, 0.5)
    assert found["every block"].recall == 1
    assert found["every block"].f1 == pytest.approx(2 * share / (1 + share), abs=0.01)
    flipped = probes.mean_scores(probes.baselines(~labels, passages)["majority"])
    assert flipped.accuracy == pytest.approx(1 - share)


def test_mistakes_are_named():
    inputs, labels, passages = toy(4)
    with pytest.raises(QalibError, match="all 400 blocks lack an answer"):
        probes.fit(inputs, np.zeros(400, dtype=bool))
    with pytest.raises(QalibError, match="all 320 blocks hold an answer"):
        probes.cross_validate(inputs, np.ones(400, dtype=bool), passages)
    with pytest.raises(QalibError, match="5 folds need as many passages, and there are 2"):
        probes.cross_validate(inputs, labels, passages % 2)
    for wrong in ({"folds": 1}, {"strength": 0.0}, {"threshold": 1.0}, {"threshold": 0.0}):
        with pytest.raises(QalibError):
            ProbeConfig(**wrong)
