"""The Mnemonic Reader against literal references, independent of the batch; ensembles of it."""

from dataclasses import replace

import pytest
import torch
from whole_words import WORD, WholeWords

from qalib.checkpoints import trained_tensors
from qalib.data.batching import Batch
from qalib.data.schema import Answer, Example
from qalib.data.words import WordConfig, collate_words, word_windows
from qalib.decoding import decode_spans
from qalib.errors import QalibError
from qalib.inference import AnswerConfig, WordQuestionAnswerer
from qalib.losses import span_loss
from qalib.models.byte_reader import count_parameters
from qalib.models.ensemble import Ensemble, average_logits
from qalib.models.mnemonic_reader import (
    BiLSTM,
    Fusion,
    Hop,
    MnemonicConfig,
    MnemonicReader,
    PointerHop,
    Score,
    WordEmbeddings,
    build_mnemonic_reader,
    others,
    packaged_embeddings,
    pool,
)

TINY = MnemonicConfig(hidden=6, width=7, characters=4, dropout=0.0)
VARIANTS = {
    "plain": TINY,
    "one hop": replace(TINY, hops=1),
    "three hops": replace(TINY, hops=3),
    "scaled": replace(TINY, scale=True),
    "reattention": replace(TINY, hops=3, reattention=True),
}
PASSAGES = [
    "Zoë founded a bakery in Rome in 1984, and sold it to her brother in 1990.",
    "x",
    "Rain fell.",
]
QUESTIONS = ["When was the bakery founded?", "?", "Who bought it, and for how much, and when?"]
EXAMPLES = [
    Example(f"{p}{q}", question, passage, (Answer(passage[0], 0),))
    for p, passage in enumerate(PASSAGES)
    for q, question in enumerate(QUESTIONS)
]


def embeddings(width: int = 5) -> WordEmbeddings:
    """Random vectors of all words above."""
    words = dict.fromkeys(WORD.findall(" ".join([*PASSAGES, *QUESTIONS])))
    random = torch.Generator().manual_seed(1)
    matrix = torch.randn(len(words) + 1, width, generator=random)
    return WordEmbeddings(WholeWords({word: row for row, word in enumerate(words, 1)}), matrix)


def reader_of(config: MnemonicConfig = TINY, seed: int = 0) -> MnemonicReader:
    return build_mnemonic_reader(config, embeddings(), seed)


def batch_of(examples: list[Example] = EXAMPLES) -> Batch:
    return collate_words(word_windows(examples, embeddings().vocabulary))


# The batch


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_logits_and_alignments_do_not_depend_on_the_batch(variant):
    reader = reader_of(variant).eval()
    order = [4, 0, 8, 3, 7, 1, 6, 2, 5]
    together = reader(batch_of([EXAMPLES[n] for n in order]))
    for row, n in enumerate(order):
        alone = reader(batch_of([EXAMPLES[n]]))
        real, asked = alone.mask[0], alone.attentions["question"][0]
        assert together.mask[row].sum() == real.sum()
        for ours, single in zip(together[:2], alone[:2], strict=True):
            assert torch.allclose(ours[row][: len(real)][real], single[0][real], atol=1e-5)
        for hop in range(1, variant.hops + 1):
            alignment = together.attentions[f"align {hop}"][row]
            single = alone.attentions[f"align {hop}"][0][real][:, asked]
            assert torch.allclose(alignment[: len(single), : asked.sum()], single, atol=1e-5)
            assert (alignment[: len(single), asked.sum() :] == 0).all()
            assert torch.allclose(single.sum(dim=1), torch.ones(len(single)), atol=1e-5)


def test_the_content_of_padding_changes_nothing():
    reader, batch = reader_of().eval(), batch_of()
    plain = reader(batch)
    for name in ("passage", "question"):
        real = batch.mask if name == "passage" else batch.inputs["question_real"]
        batch.inputs[name].masked_fill_(~real, 3)
        batch.inputs[f"{name}_features"].masked_fill_(~real[:, :, None], 7.0)
    other = reader(batch)
    for ours, theirs in zip(plain[:2], other[:2], strict=True):
        assert torch.allclose(ours[batch.mask], theirs[batch.mask], atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_every_parameter_learns_from_finite_gradients(variant):
    """One-token questions and passages and all but empty rows among them; in bfloat16, too."""
    batch = batch_of()
    for precise in (True, False):
        reader = reader_of(variant)
        with torch.autocast("cpu", torch.bfloat16, enabled=not precise):
            output = reader(batch)
        loss = span_loss(output, batch.answer_spans, batch.answer_weights)
        assert torch.isfinite(loss).all()
        loss.sum().backward()
        for name, parameter in reader.named_parameters():
            if parameter.requires_grad:
                assert torch.isfinite(parameter.grad).all(), name
                assert parameter.grad.abs().max() > 0, name
    assert "embed.table.weight" not in trained_tensors(reader)  # nor in a checkpoint


# The formulas


def literal_fuse(unit: Fusion, x, f):
    seen = [x, f, x * f, x - f] if unit.compare else [x, f]
    new, gate = (unit.new_and_gate.weight @ torch.cat(seen) + unit.new_and_gate.bias).chunk(2)
    g, r = torch.sigmoid(gate), torch.tanh(new)
    return g * r + (1 - g) * x


def literal_hop(hop: Hop, c, q, past=None):
    """One unpadded row, token by token, up to what the LSTM reads.  c (L, D), q (M, D)"""
    scores = torch.stack([torch.stack([hop.scale * (a @ b) for b in q]) for a in c])  # (L, M)
    if past is not None:
        asked, attended = past  # (L, M), (L, L)
        scores = scores + 3.0 * attended @ asked
    alpha = scores.softmax(dim=1)
    mixed = [sum(alpha[j, i] * q[i] for i in range(len(q))) for j in range(len(c))]
    aligned = [literal_fuse(hop.from_question, c[j], mixed[j]) for j in range(len(c))]
    likeness = torch.full((len(c), len(c)), -torch.inf)
    for j in range(len(c)):
        for k in range(len(c)):
            if j != k:
                likeness[j, k] = hop.scale * (aligned[j] @ aligned[k])
                if past is not None:
                    likeness[j, k] += 3.0 * (attended[j] @ attended[k])
    itself = likeness.softmax(dim=1)
    read = []
    for j in range(len(c)):
        seen = sum(itself[j, k] * aligned[k] for k in range(len(c)) if k != j)
        read.append(literal_fuse(hop.from_passage, aligned[j], seen))
    return torch.stack(read), alpha, (scores.softmax(dim=0), itself)


@pytest.mark.parametrize("name", ["plain", "scaled", "reattention"])
@torch.no_grad()
def test_hops_are_their_formulas(name):
    torch.manual_seed(0)
    hops = [Hop(VARIANTS[name], first=first).eval() for first in (True, False)]
    c, q = torch.randn(2, 7, 12), torch.randn(2, 4, 12)
    real = torch.arange(7) < torch.tensor([[7], [3]])
    question_real = torch.arange(4) < torch.tensor([[2], [4]])
    c, q = c * real[:, :, None], q * question_real[:, :, None]
    first = hops[0](c, q, real, question_real, None)
    second = hops[1](first[0], q, real, question_real, first[2])
    for row, (length, words) in enumerate(((7, 2), (3, 4))):
        here, expected, past = slice(None, length), c[row, :length], None
        everything = torch.ones(1, length, dtype=torch.bool)
        for hop, (made, alpha, _) in zip(hops, (first, second), strict=True):
            kept = past if name == "reattention" else None
            expected, ours, past = literal_hop(hop, expected, q[row, :words], kept)
            expected = hop.aggregate(expected[None], everything)[0]
            assert torch.allclose(alpha[row, here, :words], ours, atol=1e-5)
            assert torch.allclose(made[row, here], expected, atol=1e-5)


def literal_scores(score, c, z):
    made = []
    for x in c:
        hidden = torch.relu(score.inner.weight @ torch.cat([x, z, x * z]) + score.inner.bias)
        made.append(score.outer.weight[0] @ hidden)
    return torch.stack(made)


@torch.no_grad()
def test_the_pointer_is_its_formula():
    torch.manual_seed(0)
    hops = [PointerHop(TINY, last=last).eval() for last in (False, True)]
    c, memory = torch.randn(2, 6, 12), torch.randn(2, 12)
    real = torch.arange(6) < torch.tensor([[6], [2]])
    first = hops[0](c, real, memory)
    second = hops[1](c, real, first[2])
    for row, length in enumerate((6, 2)):
        x, z = c[row, :length], memory[row]
        for hop, found in zip(hops, (first, second), strict=True):
            start = literal_scores(hop.start, x, z)
            z = literal_fuse(hop.after_start, z, start.softmax(dim=0) @ x)
            end = literal_scores(hop.end, x, z)
            assert torch.allclose(found[0][row, :length], start, atol=1e-5)
            assert torch.allclose(found[1][row, :length], end, atol=1e-5)
            if hop.after_end is not None:
                z = literal_fuse(hop.after_end, z, end.softmax(dim=0) @ x)
            assert torch.allclose(found[2][row], z, atol=1e-5)


def test_the_end_depends_on_the_expected_start_and_not_vice_versa():
    reader, batch = reader_of(), batch_of()
    output = reader(batch)
    last = reader.pointer[-1]
    output.end_logits[batch.mask].sum().backward(retain_graph=True)
    assert last.start.inner.weight.grad.abs().max() > 0
    reader.zero_grad()
    output.start_logits[batch.mask].sum().backward()
    assert last.end.inner.weight.grad is None or last.end.inner.weight.grad.abs().max() == 0


def test_words_are_encoded_by_the_maximum_of_each_channel():
    embed = reader_of(replace(TINY, kernel=3)).embed
    words = torch.tensor([[*b"cat", 0, 0], [*b"z", 0, 0, 0, 0], [0] * 5])
    table = embed.letters.table  # (3, 256, channels)
    nothing = torch.zeros(table.shape[2])
    for row, word in enumerate([b"cat", b"z"]):
        places = []
        for p in range(len(word)):
            around = [(k, p + k - 1) for k in range(3) if 0 <= p + k - 1 < len(word)]
            places.append(sum(table[k, word[at]] for k, at in around).relu())
        expected = torch.stack(places).amax(dim=0)
        assert torch.allclose(embed.spell(words)[row], expected, atol=1e-6)
    assert torch.equal(embed.spell(words)[2], nothing)


def test_a_token_is_its_vector_its_features_and_its_letters():
    reader, batch = reader_of(), batch_of()
    embed, inputs = reader.embed, batch.inputs
    spelt = embed.spell(inputs["words"])
    for text, made in zip(("passage", "question"), embed(inputs), strict=True):
        for row, at in ((0, 0), (2, 1), (6, 2)):
            rest = [inputs[f"{text}_features"][row, at], spelt[inputs[f"{text}_words"][row, at]]]
            expected = embed.from_vector.weight @ embed.table.weight[inputs[text][row, at]]
            expected = expected + embed.from_rest.weight @ torch.cat(rest) + embed.from_rest.bias
            assert torch.allclose(made[row, at], expected, atol=1e-5)


def test_no_token_attends_to_itself_unless_it_is_the_only_one():
    mask = others(torch.arange(3) < torch.tensor([[3], [2], [1]]))
    assert mask[0].tolist() == [[False, True, True], [True, False, True], [True, True, False]]
    assert mask[1, :2].tolist() == [[False, True, False], [True, False, False]]
    assert mask[2, 0].tolist() == [True, False, False]


def test_pooling_is_a_masked_mean_by_softmax():
    x, logits = torch.randn(1, 3, 2), torch.tensor([[1.0, 2.0, 50.0]])
    pooled = pool(x, logits, torch.tensor([[True, True, False]]))
    weights = torch.tensor([1.0, 2.0]).softmax(dim=0)
    assert torch.allclose(pooled[0], weights @ x[0, :2])


# Sizes and settings


def test_hops_add_the_parameters_of_their_parts():
    h = TINY.hidden
    width = 2 * h
    lstm = 2 * (4 * h * (width + h) + 8 * h)
    fusion = 4 * width * 2 * width + 2 * width
    score = 3 * width * h + h + h
    aligned = 2 * fusion + lstm
    pointed = 2 * score + 2 * (2 * width * 2 * width + 2 * width)
    sizes = [count_parameters(reader_of(replace(TINY, hops=hops))) for hops in (1, 2, 3)]
    assert sizes[1] - sizes[0] == sizes[2] - sizes[1] == aligned + pointed


@pytest.mark.parametrize(
    ("field", "value"), [("hops", 0), ("hidden", 0), ("dropout", 1.0), ("kernel", 4)]
)
def test_wrong_settings_are_named(field, value):
    with pytest.raises(QalibError, match=field):
        MnemonicConfig(**{field: value})


def test_word_piece_embeddings_fit_their_vocabulary_and_are_standardised():
    embeddings = packaged_embeddings()
    (tokens,) = embeddings.vocabulary.tokenize(["Unfounded claims"])
    assert tokens.ids.max() < len(embeddings.matrix)
    assert torch.allclose(embeddings.matrix.mean(dim=0), torch.zeros(384), atol=1e-4)
    assert torch.allclose(embeddings.matrix.std(dim=0), torch.ones(384), atol=1e-2)


def test_readers_share_the_packaged_embeddings_and_do_not_train_them():
    one, two = (build_mnemonic_reader(TINY, seed=n) for n in (0, 1))
    shared = packaged_embeddings().matrix
    assert one.embed.table.weight.data_ptr() == shared.data_ptr()
    assert two.embed.table.weight.data_ptr() == shared.data_ptr()
    assert not one.embed.table.weight.requires_grad
    assert "embed.table.weight" not in trained_tensors(one)


def test_a_seed_gives_the_same_reader_and_dropout_stops_in_evaluation():
    config = replace(TINY, dropout=0.5)
    batch = batch_of()
    first, again, other = (reader_of(config, seed).eval() for seed in (0, 0, 1))
    assert torch.equal(first(batch).start_logits, again(batch).start_logits)
    assert not torch.equal(first(batch).start_logits, other(batch).start_logits)
    first.train()
    assert not torch.equal(first(batch).start_logits, first(batch).start_logits)


def test_dropout_removes_the_same_channels_at_every_position():
    torch.manual_seed(0)
    config = replace(TINY, hidden=50, dropout=0.25)
    layer, x = BiLSTM(8, config), torch.rand(20, 9, 8)
    made = layer(x, torch.ones(20, 9, dtype=torch.bool))
    gone = made == 0
    assert torch.equal(gone.any(dim=1), gone.all(dim=1))
    assert abs(gone.float().mean() - 0.25) < 0.05


# Learning and answering


def learnt_examples() -> list[Example]:
    made = []
    cities = ["Rome", "Oslo", "Lima", "Bern", "Kyiv", "Doha", "Baku", "Riga"]
    for n, (city, other) in enumerate(zip(cities, cities[3:] + cities[:3], strict=True)):
        passage = f"{city} has {30 + n} and {other} has {70 - n}."
        for asked, answer in ((city, str(30 + n)), (other, str(70 - n))):
            gold = (Answer(answer, passage.index(answer)),)
            made.append(Example(f"{n}{asked}", f"{asked}?", passage, gold))
    return made


@pytest.fixture(scope="module")
def trained() -> tuple[MnemonicReader, list[Example]]:
    examples = learnt_examples()
    reader = build_mnemonic_reader(replace(TINY, hidden=16), embeddings())
    batch = collate_words(word_windows(examples, reader.vocabulary))
    optimizer = torch.optim.Adam(reader.parameters(), lr=1e-2)
    for _ in range(60):
        loss = span_loss(reader(batch), batch.answer_spans, batch.answer_weights).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return reader.eval(), examples


def test_sixteen_examples_are_memorised(trained):
    reader, examples = trained
    predictions = WordQuestionAnswerer(reader).predictions(examples)
    assert predictions == {e.id: e.answers[0].text for e in examples}


def test_answers_are_text_of_the_passage_by_rank(trained):
    reader, examples = trained
    answerer = WordQuestionAnswerer(reader, AnswerConfig(n_best_size=5, precision="fp32"))
    found = answerer.answer("Rome?", examples[0].context)
    assert len(found) == 5
    assert found[0].text == "30"
    assert [c.score for c in found] == sorted((c.score for c in found), reverse=True)
    assert all(examples[0].context[c.start : c.end] == c.text for c in found)
    assert 0 < sum(c.probability for c in found) <= 1.0001


def test_long_passages_are_read_through_windows(trained):
    reader, examples = trained
    passage = " ".join(e.context for e in examples[::2])
    asked = [Example(str(n), e.question, passage) for n, e in enumerate(examples)]
    small = WordConfig(max_passage=12, doc_stride=6)
    windows = word_windows(asked[:1], reader.vocabulary, small)
    assert len(windows) > 5
    config = AnswerConfig(n_best_size=3, precision="fp32", tokens_per_batch=64)
    several = WordQuestionAnswerer(reader, config, small).answer_many(asked)
    alone = WordQuestionAnswerer(reader, config, small).answer_many(asked[5:6])[0]
    assert [c.text for c in several[5]] == [c.text for c in alone]
    assert several[5][0].score == pytest.approx(alone[0].score, abs=1e-4)
    read = max(decode_spans(*reader(collate_words([w]))[:3]).scores.item() for w in windows)
    assert several[0][0].score == pytest.approx(read, abs=1e-4)


def test_empty_questions_are_refused(trained):
    with pytest.raises(QalibError, match="empty"):
        WordQuestionAnswerer(trained[0]).answer(" ", "Some text.")


# Ensembles


def test_an_ensemble_is_the_mean_of_probabilities_on_the_scale_of_its_members():
    readers, batch = [reader_of(seed=seed).eval() for seed in range(3)], batch_of()
    outputs, output = [reader(batch) for reader in readers], Ensemble(readers).eval()(batch)
    mask = batch.mask
    for side in (0, 1):
        logits = torch.stack([o[side] for o in outputs]).masked_fill(~mask, -torch.inf)
        q = logits.softmax(dim=2).mean(dim=0)
        ours = output[side].masked_fill(~mask, -torch.inf)
        torch.testing.assert_close(ours.softmax(dim=1), q)
        scale = logits.logsumexp(dim=2).mean(dim=0)
        torch.testing.assert_close(ours.logsumexp(dim=1), scale)


def test_an_ensemble_of_one_reader_is_that_reader():
    output = reader_of().eval()(batch_of())
    ours = average_logits([output.start_logits], output.mask)
    torch.testing.assert_close(ours[output.mask], output.start_logits[output.mask])
    with pytest.raises(QalibError, match="at least one"):
        Ensemble([])


def test_dropout_reaches_what_an_lstm_reads_and_the_scores():
    torch.manual_seed(0)
    config, seen = replace(TINY, hidden=50, dropout=0.25), []
    layer, score = BiLSTM(80, config), Score(config)
    layer.lstm.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    score.outer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    layer(torch.ones(20, 9, 80), torch.ones(20, 9, dtype=torch.bool))
    score.inner.weight.data.abs_()
    score(torch.ones(20, 9, 100), torch.ones(20, 100))
    for given in seen:
        gone = given == 0
        assert torch.equal(gone.any(dim=1), gone.all(dim=1))
        assert abs(gone.float().mean() - 0.25) < 0.05
