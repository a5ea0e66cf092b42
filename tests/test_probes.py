"""Features for probes of attention, against literal sums."""

import numpy as np
import pytest
import torch
from tiny import examples, tiny_reader
from transformers import AutoConfig, AutoModelForQuestionAnswering

from qalib.data.schema import Answer, Example
from qalib.data.windows import WindowConfig
from qalib.errors import QalibError
from qalib.models.encoder import EncoderReader
from qalib.skim.features import PAPER_FEATURES
from qalib.study.profiles import Profile
from qalib.study.run_cache import Run, RunCache
from qalib.study.session import Study
from qalib.study.stages import baseline, probes
from qalib.study.stages.probes import BlockFeatures, ProbeConfig, block_features

WINDOWS = WindowConfig(max_length=96, doc_stride=16, max_query_length=24)
SIZE = 6


@pytest.fixture(scope="module")
def reader() -> EncoderReader:
    reader = tiny_reader().eval()
    reader.encoder.set_attn_implementation("eager")  # which returns its maps
    return reader


@pytest.fixture(scope="module")
def data(reader) -> BlockFeatures:
    return block_features(reader, examples(), WINDOWS, SIZE)


# --- features ----------------------------------------------------------------------------------


@torch.inference_mode()
def literal(reader: EncoderReader, example: Example, size: int) -> np.ndarray:
    """The six features of every block, summed entry by entry of every map.  (K, layers, H, 6)"""
    coded = reader.tokenizer(example.question, example.context, return_tensors="pt")
    maps = torch.stack(reader.encoder(**coded, output_attentions=True).attentions)[:, 0]
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
        expected = literal(reader, examples()[n], SIZE)
        np.testing.assert_allclose(data.attention[data.examples == n], expected, atol=2e-6)
    assert data.attention.dtype == np.float32
    assert data.attention.shape[1:] == (2, 4, len(PAPER_FEATURES))


def test_a_question_alone_gives_what_it_gives_in_a_batch(reader, data):
    for n in (2, 4):
        alone = block_features(reader, [examples()[n]], WINDOWS, SIZE)
        rows = data.examples == n
        np.testing.assert_allclose(alone.attention, data.attention[rows], atol=2e-6)
        np.testing.assert_allclose(alone.lexical, data.lexical[rows], atol=1e-6)
        np.testing.assert_array_equal(alone.labels, data.labels[rows])
        np.testing.assert_array_equal(alone.characters, data.characters[rows])


def test_blocks_cover_the_passage_and_are_labelled_by_their_answers(data):
    for n, example in enumerate(examples()):
        rows = np.flatnonzero(data.examples == n)
        edges = data.characters[rows]
        assert edges[0, 0] == 0
        assert edges[-1, 1] == len(example.context)
        assert (edges[1:, 0] >= edges[:-1, 1]).all()
        for (start, end), label in zip(edges, data.labels[rows], strict=True):
            assert label == any(a.start < end and a.end > start for a in example.answers)
    assert 0 < data.labels.sum() < len(data.labels)


def test_questions_on_one_passage_share_its_number(reader):
    one, other = examples()[:2]
    again = Example("again", "Who founded it?", one.context, one.answers)
    found = block_features(reader, [one, other, again], WINDOWS, SIZE)
    numbers = [set(found.passages[found.examples == n]) for n in range(3)]
    assert numbers == [{0}, {1}, {0}]


FAMILIES = {
    "bert": {},
    "roberta": {"type_vocab_size": 1, "pad_token_id": 0},
    "albert": {"embedding_size": 8},
    "distilbert": {"n_layers": 2, "dim": 16, "hidden_dim": 32, "n_heads": 2},
    "electra": {"embedding_size": 16},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_returns_its_attention(reader, family):
    sizes = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 32, "vocab_size": 30522}
    config = AutoConfig.for_model(family, **sizes | FAMILIES[family])
    model = AutoModelForQuestionAnswering.from_config(config)
    found = block_features(EncoderReader(model, reader.tokenizer), examples(6), WINDOWS, SIZE)
    assert found.attention.shape[1:] == (2, 2, 6)
    assert (found.attention > 0).all()
    passage = found.attention[found.examples == 2].sum(axis=0)  # all blocks of one passage
    assert (passage[..., 1::2] < 1).all()  # question, [CLS] and [SEP] attend to more than that
    assert not np.allclose(found.attention[:, 0], found.attention[:, 1])


def test_lexical_features_find_the_words_of_the_question(reader):
    context = (
        "the baker sold bread. " * 3 + "the harbour burnt down in 1712. " + "nobody came. " * 6
    )
    gold = (Answer("1712", context.index("1712")),)
    asked = [Example("q", "When did the harbour burn down?", context, gold)]
    found = block_features(reader, asked, WINDOWS, SIZE)
    with_harbour = [i for i, (a, b) in enumerate(found.characters) if "harbour" in context[a:b]]
    assert found.lexical.shape == (len(found.labels), 5)
    assert with_harbour == [int(found.lexical[:, 0].argmax())]


@pytest.mark.parametrize("asked", [[], [Example("q", "Who?", "Nobody was there.")]])
def test_questions_without_an_answer_cannot_be_probed(reader, asked):
    with pytest.raises(QalibError, match=f"none of the {len(asked)} questions"):
        block_features(reader, asked, WINDOWS, SIZE)


# --- stages ------------------------------------------------------------------------------------

SECTIONS = {
    "data": {"train_questions": 50, "test_questions": 20, "passage_length": 300},
    "encoder": {
        "encoder": {"random_start": True, "layers": 2, "width": 32, "heads": 4},
        "train": {"max_steps": 2, "tokens_per_batch": 2048, "learning_rate": 0.01},
    },
}
CONFIG = ProbeConfig("profile", WindowConfig(), 30, 10, block_size=16, folds=3)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    folder = tmp_path_factory.mktemp("runs")
    return Study("04_attention_probes", Profile("ci", SECTIONS), 0, RunCache(folder, None))


@pytest.fixture(scope="module")
def weights(study) -> Run:
    return baseline.profile_encoder(study)


def features(study: Study, weights: Run, tuned: bool, split: str) -> BlockFeatures:
    count = CONFIG.train_questions if split == "train" else CONFIG.test_questions
    chosen = probes.evenly(study.data(split), count)
    return block_features(probes.probed_reader(weights, tuned), chosen, CONFIG.windows, 16)


def test_questions_are_taken_evenly(study):
    train = study.data("train")
    assert probes.evenly(train, 30) == [train.examples[i * 50 // 30] for i in range(30)]
    assert len(probes.evenly(train, 500)) == 50


def test_before_and_after_are_one_encoder_that_was_trained(weights):
    before, after = (probes.probed_reader(weights, tuned).state_dict() for tuned in (False, True))
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert any("attention" in name for name in changed)
    again = probes.probed_reader(weights, False).state_dict()
    assert all(torch.equal(before[name], again[name]) for name in before)


def test_the_published_reader_is_probed_by_default():
    base = probes.probed_reader(None, False).encoder
    published = probes.probed_reader(None, True).encoder
    assert base.config.num_hidden_layers == published.config.num_hidden_layers == 6
    changed = [
        not torch.equal(a, b)
        for a, b in zip(base.parameters(), published.parameters(), strict=True)
    ]
    assert not changed[0]  # word embeddings are not trained
    assert sum(changed) > 50


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train_questions": 0}, "train_questions"),
        ({"reader": "mine"}, "reader"),
        ({"folds": 1}, "folds"),
        ({"block_size": 0}, "block_size"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(QalibError, match=message):
        Profile("ci", {"probes": wrong}).section("probes", ProbeConfig)
