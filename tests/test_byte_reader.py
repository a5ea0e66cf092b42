"""The byte reader against literal references: one-hot convolutions, packed LSTMs, the post."""

from dataclasses import replace

import pytest
import torch
from byte_reference import LiteralReader, byte_vector
from torch import nn

from qalib.data.bytes import ByteConfig, collate_passages, passage_features
from qalib.data.schema import Answer, Example
from qalib.decoding import decode_spans, mask_logits
from qalib.errors import QalibError
from qalib.losses import gaussian_span_loss
from qalib.models.byte_reader import (
    ByteReaderConfig,
    ConvolutionLayer,
    NormReluDropout,
    RecurrentLayer,
    TextConvolution,
    build_byte_reader,
    count_parameters,
    embedding_conv,
    match_width,
    one_hot_conv,
    sinusoids,
)

KINDS = ("conv", "dense", "dilated", "lstm")
TINY = ByteReaderConfig(width=6, heads=2, head_width=4, embedding=5, dropout=0.0)
VARIANTS = {
    **{kind: replace(TINY, encoder=kind, mixer=kind) for kind in KINDS},
    "conv into lstm": replace(TINY, mixer="lstm"),
    "lstm into dense": replace(TINY, encoder="lstm", mixer="dense"),
    "embedding": replace(TINY, input="embedding"),
    "dense with waves": replace(TINY, encoder="dense", positions="sin"),
    "lstm with waves": replace(TINY, encoder="lstm", positions="sin"),
    "no norm": replace(TINY, norm=False),
    "keys of the first layer": replace(TINY, keys="first", key_init_scale=4.0),
    "dense, keys of the first layer": replace(TINY, encoder="dense", keys="first"),
    "valid": replace(TINY, convolutions="valid"),
    "dense, valid": replace(TINY, encoder="dense", mixer="dense", convolutions="valid"),
    "valid embedding": replace(TINY, input="embedding", convolutions="valid"),
}
PARALLEL = ("examples", "questions", "spans", "weights")  # of a feature, one entry a question
TEXT = "Zoë was born in Zürich; נולדה \0 in 1984, and died \U0001f600 there. " * 2


def examples() -> list[Example]:
    """Questions from 1 character on, about passages from 1 character on."""
    passages = [TEXT, "x", "Short: 7.", TEXT[9:60]]
    questions = ["?", "Who was born in Zürich?", "When did she die, and where " * 3]
    return [
        Example(f"{p}{q}", question, passage, (Answer(passage[0], 0),))
        for p, passage in enumerate(passages)
        for q, question in enumerate(questions[: 3 - p % 2])
    ]


def random_text(rows: int, length: int, lengths: list[int]):
    """Random ids, and which of them are real."""
    torch.manual_seed(0)
    return torch.randint(0, 256, (rows, length)), torch.arange(length) < torch.tensor(lengths)[
        :, None
    ]


# Layers


@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 1), (11, 1), (11, 4)])
def test_the_two_forms_of_the_text_convolution_are_the_same(kernel, dilation):
    ids, real = random_text(3, 40, [40, 17, 1])
    tables = [TextConvolution(7, kernel, dilation).table for _ in range(2)]
    tables[1].data = tables[0].data.clone()
    forms = zip((embedding_conv, one_hot_conv), tables, strict=True)
    outputs = [form(ids, real, table, dilation) for form, table in forms]
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
    for output in outputs:
        output.sin().sum().backward()
    torch.testing.assert_close(tables[0].grad, tables[1].grad, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 1), (11, 1), (11, 4)])
def test_lookup_is_the_one_hot_convolution(kernel, dilation):
    lookup = TextConvolution(7, kernel, dilation)
    conv = nn.Conv1d(256, 7, kernel, padding="same", dilation=dilation, bias=False)
    conv.weight.data = lookup.table.data.permute(2, 1, 0).contiguous()
    for text in (TEXT, "x", "\0\0", "\ud83d and ÿ"):
        (feature,) = passage_features([Example("q", "?", text)])
        batch = collate_passages([feature])
        ours = lookup(batch.passages, batch.passage_real)[0, : len(text)]
        assert torch.allclose(ours, conv(byte_vector(text)).T, atol=1e-5)
    ours.sum().backward()
    conv(byte_vector(text)).sum().backward()
    assert torch.allclose(lookup.table.grad.permute(2, 1, 0), conv.weight.grad, atol=1e-5)


def test_layer_is_the_convolution_of_text_and_features_together():
    layer = ConvolutionLayer(True, 5, 7, 1, replace(TINY, norm=False))
    nn.init.normal_(layer.norm.shift)
    conv = nn.Conv1d(256 + 5, 7, 11, padding="same")
    weights = [layer.text.table.permute(2, 1, 0), layer.features.weight.squeeze(2)]
    conv.weight.data = torch.cat(weights, dim=1).detach()
    conv.bias.data = layer.norm.shift.data
    features = torch.randn(1, len(TEXT), 5)
    ids, real = byte_vector(TEXT).argmax(dim=0)[None], torch.ones(1, len(TEXT), dtype=torch.bool)
    literal = conv(torch.cat([byte_vector(TEXT)[None], features.transpose(1, 2)], dim=1)).relu()
    assert torch.allclose(layer(ids, features, real), literal.transpose(1, 2), atol=1e-4)


def norm_of(width: int, dropout: float = 0.0, normalise: bool = True) -> NormReluDropout:
    norm = NormReluDropout(width, dropout, normalise)
    nn.init.normal_(norm.scale)
    nn.init.normal_(norm.shift)
    return norm


def test_masked_instance_norm_is_the_unpadded_one():
    torch.manual_seed(0)
    norm, literal = norm_of(4), nn.InstanceNorm1d(4, affine=True)
    literal.weight.data, literal.bias.data = norm.scale.data, norm.shift.data
    x, lengths = torch.randn(3, 20, 4) * 3 + 5, [20, 13, 2]
    real = torch.arange(20) < torch.tensor(lengths)[:, None]
    ours = norm(x, real)
    for row, length in enumerate(lengths):
        expected = literal(x[row, :length].T[None])[0].T.relu()
        assert torch.allclose(ours[row, :length], expected, atol=1e-4)
        assert (ours[row, length:] == 0).all()
    one = norm(x, torch.arange(20)[None] < 1)  # nothing varies: only the shift is left
    assert torch.allclose(one[:, 0], norm.shift.relu().expand(3, 4), atol=1e-2)


def test_dropout_keeps_the_mean_and_stops_in_evaluation():
    torch.manual_seed(0)
    norm = norm_of(8, dropout=0.25)
    x, real = torch.randn(4, 500, 8), torch.ones(4, 500, dtype=torch.bool)
    plain = norm.eval()(x, real)
    dropped = norm.train()(x, real)
    kept = dropped[plain > 0] > 0
    assert abs(kept.float().mean() - 0.75) < 0.02
    assert torch.allclose(dropped[dropped > 0] * 0.75, plain[dropped > 0], atol=1e-5)


def test_reversed_rows_give_what_packed_sequences_give():
    torch.manual_seed(0)
    ours = RecurrentLayer(5, 6, 0.0)
    literal = nn.LSTM(5, 6, batch_first=True, bidirectional=True)
    for name, weight in ours.ahead.named_parameters():
        getattr(literal, name).data = weight.data
    for name, weight in ours.back.named_parameters():
        getattr(literal, f"{name}_reverse").data = weight.data
    lengths = [9, 1, 4, 12]
    x, real = torch.randn(4, 12, 5), torch.arange(12) < torch.tensor(lengths)[:, None]
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    expected, _ = nn.utils.rnn.pad_packed_sequence(literal(packed)[0], batch_first=True)
    assert torch.allclose(ours(None, x, real), expected, atol=1e-6)


def test_sinusoids_are_their_formula():
    waves = sinusoids(50, 4)
    for position in (0, 1, 49):
        for w in range(4):
            angle = torch.tensor(position / 10000 ** (w / 4))
            assert waves[position, w].item() == pytest.approx(angle.sin().item(), abs=1e-5)
            assert waves[position, 4 + w].item() == pytest.approx(angle.cos().item(), abs=1e-5)


# The blog post


def page_stack(layers, x: torch.Tensor, dense: bool, norm: bool) -> torch.Tensor:
    """The post's stack, literally: valid convolutions of x (1, inputs, L), centre-cropped skips."""
    hidden = []
    for i, layer in enumerate(layers):
        seen = [x, *hidden] if dense or i == 0 else hidden[:1]
        shortest = min(each.shape[2] for each in seen)
        cut = [(each.shape[2] - shortest) // 2 for each in seen]
        seen = [each[:, :, c : c + shortest] for each, c in zip(seen, cut, strict=True)]
        weights = []
        if layer.text is not None:
            weights.append(layer.text.table.permute(2, 1, 0))
        if layer.features is not None:
            weights.append(layer.features.weight.squeeze(2))
        made = nn.functional.conv1d(torch.cat(seen, dim=1), torch.cat(weights, dim=1))
        hidden.insert(0, (nn.functional.instance_norm(made) if norm else made).relu())
    last = hidden[0].shape[2]
    crops = [h[:, :, (h.shape[2] - last) // 2 :][:, :, :last] for h in hidden]
    return torch.cat(crops, dim=1) if dense else hidden[0]


@pytest.mark.parametrize("kind", ["conv", "dense"])
@pytest.mark.parametrize("question", ["Who was born in Zürich?", "?!"])
def test_valid_convolutions_are_the_posts_between_blank_positions(kind, question):
    reader = build_byte_reader(replace(TINY, encoder=kind, mixer=kind, convolutions="valid"))
    (feature,) = passage_features([Example("q", question, TEXT)])
    output = reader(collate_passages([feature]))
    c, q = (
        page_stack(
            reader.encoder.layers,
            nn.functional.pad(byte_vector(text)[None], (blank, blank)),
            kind == "dense",
            norm=True,
        )
        for text, blank in ((TEXT, 50), (question, 25))
    )
    assert (c.shape[2], q.shape[2]) == (len(TEXT) + 50, len(question))
    c, q, parts = c[0].T, q[0].T, []
    for head in (slice(0, 4), slice(4, 8)):
        scores = (c @ reader.query.weight[head].T) @ (q @ reader.key.weight[head].T).T
        parts.append((scores / 4**0.5).softmax(dim=1) @ q)
    mixed = torch.cat([c, *parts], dim=1).T[None]
    logits = reader.span(page_stack(reader.mixer.layers, mixed, kind == "dense", norm=True)[0].T)
    for ours, literal in zip(output[:2], logits.T, strict=True):
        torch.testing.assert_close(ours[0, : len(TEXT)], literal, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["conv", "dense"])
def test_keys_of_the_first_layer_are_those_of_a_shallow_encoder(kind):
    reader = build_byte_reader(replace(TINY, encoder=kind, keys="first"))
    batch = collate_passages(passage_features(examples()))
    output, matched = reader.encode(batch.passages, batch.passage_real)
    first = reader.encoder.layers[0](batch.passages, output[:, :, :0], batch.passage_real)
    torch.testing.assert_close(matched, first)
    assert reader.key.in_features == 6


@pytest.mark.parametrize("kind", ["conv", "dense"])
def test_encoder_is_the_posts_where_valid_convolutions_reach(kind):
    """Instance norm is off: over fewer positions it has other statistics."""
    reader = build_byte_reader(replace(TINY, encoder=kind, norm=False))
    ids, real = byte_vector(TEXT).argmax(dim=0)[None], torch.ones(1, len(TEXT), dtype=torch.bool)
    ours, _ = reader.encode(ids, real)
    text = byte_vector(TEXT)[None]
    literal = page_stack(reader.encoder.layers, text, kind == "dense", norm=False).transpose(1, 2)
    assert ours.shape[1] == len(TEXT)
    assert literal.shape[1] == len(TEXT) - 50
    assert torch.allclose(ours[:, 25:-25], literal, atol=1e-5)


@pytest.mark.parametrize(("kind", "encoder", "whole"), [("conv", 51, 101), ("dilated", 311, 621)])
def test_receptive_field(kind, encoder, whole):
    """By gradient. Instance norm is off: its statistics carry a little from every position."""
    config = replace(TINY, encoder=kind, mixer=kind, input="embedding", norm=False, width=16)
    reader = build_byte_reader(config).double().eval()
    for parameter in reader.parameters():  # nothing dies in a ReLU and nothing cancels
        parameter.data.abs_()
    length = 800
    text = collate_passages(passage_features([Example("q", "Who?", "abc " * (length // 4))]))
    seen = []
    reader.embed.register_forward_hook(lambda *call: call[2].retain_grad() or seen.append(call[2]))
    reader.encode(text.passages, text.passage_real)[0][0, length // 2].sum().backward()
    reach = seen[0].grad[0].abs().sum(dim=1).nonzero()
    assert (reach.min(), reach.max()) == (400 - encoder // 2, 400 + encoder // 2)
    seen.clear()
    reader(text).start_logits[0, length // 2].backward()
    reach = seen[0].grad[0].abs().sum(dim=1).nonzero()
    assert (reach.min(), reach.max()) == (400 - whole // 2, 400 + whole // 2)


def test_instance_norm_reaches_everywhere():
    config = replace(TINY, input="embedding", width=16)
    reader = build_byte_reader(config).double().eval()
    text = collate_passages(passage_features([Example("q", "Who?", TEXT * 2)]))
    seen = []
    reader.embed.register_forward_hook(lambda *call: call[2].retain_grad() or seen.append(call[2]))
    reader.encode(text.passages, text.passage_real)[0][0, 0].sum().backward()
    assert (seen[0].grad[0].abs().sum(dim=1) > 0)[: 2 * len(TEXT)].all()


def test_logits_and_gradients_are_those_of_the_literal_reader():
    reader = build_byte_reader(TINY)
    literal = LiteralReader(reader)
    batch = collate_passages(passage_features(examples()))
    outputs = [model(batch) for model in (reader, literal)]
    for ours, theirs in zip(*(output[:2] for output in outputs), strict=True):
        torch.testing.assert_close(ours[batch.mask], theirs[batch.mask], atol=1e-4, rtol=1e-4)
    for output in outputs:
        gold = (batch.answer_spans, batch.answer_weights)
        gaussian_span_loss(output, *gold, 1.0).mean().backward()
    ours, theirs = reader.encoder.layers[0].text.table.grad, literal.encoder[0].convolution.weight
    torch.testing.assert_close(ours, theirs.grad.permute(2, 1, 0), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(reader.query.weight.grad, literal.query.weight.grad)


def test_the_literal_reader_refuses_what_it_does_not_implement():
    with pytest.raises(QalibError, match="encoder='conv' only, not 'dense'"):
        LiteralReader(build_byte_reader(VARIANTS["dense"]))


# Whole readers


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_logits_do_not_depend_on_the_batch(variant):
    reader = build_byte_reader(variant).eval()
    features = passage_features(examples(), ByteConfig("utf-8"))
    batch = collate_passages(features)
    output = reader(batch)
    assert output.start_logits.shape == output.mask.shape == batch.mask.shape
    row = 0
    for feature in features:
        for q in range(len(feature.examples)):
            alone = replace(feature, **{name: (getattr(feature, name)[q],) for name in PARALLEL})
            single = reader(collate_passages([alone]))
            here = output.mask[row]
            for together, apart in zip(output[:2], single[:2], strict=True):
                assert torch.allclose(
                    together[row][here], apart[0, : len(feature)], atol=1e-5, rtol=1e-5
                )
            asked = len(feature.questions[q])
            for h in range(variant.heads):
                attention = output.attentions[f"question_{h}"][row, : len(feature)]
                assert attention[:, asked:].abs().max() == 0 or asked == attention.shape[1]
                assert torch.allclose(attention.sum(dim=1), torch.ones(len(feature)), atol=1e-5)
                assert torch.allclose(
                    attention[:, :asked],
                    single.attentions[f"question_{h}"][0, : len(feature), :asked],
                    atol=1e-5,
                )
            row += 1


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_every_parameter_learns_and_bfloat16_runs(variant):
    reader = build_byte_reader(variant)
    batch = collate_passages(passage_features(examples()))
    with torch.autocast("cpu", torch.bfloat16):
        output = reader(batch)
    loss = gaussian_span_loss(output, batch.answer_spans, batch.answer_weights, 1.0)
    assert torch.isfinite(loss).all()
    loss.sum().backward()
    for name, parameter in reader.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_attention_is_its_formula():
    reader = build_byte_reader(TINY)
    c, q = torch.randn(2, 9, 6), torch.randn(3, 5, 6)
    real = torch.arange(5) < torch.tensor([5, 2, 1])[:, None]
    found, _ = reader.attend(c, q, q, torch.tensor([0, 1, 1]), real)
    for row, (owner, asked) in enumerate(((0, 5), (1, 2), (1, 1))):
        heads = []
        for h in range(2):
            query, key = (w.weight[4 * h : 4 * h + 4] for w in (reader.query, reader.key))
            scores = (c[owner] @ query.T) @ (q[row, :asked] @ key.T).T / 4**0.5
            heads.append(scores.softmax(dim=1) @ q[row, :asked])
        assert torch.allclose(found[row], torch.cat(heads, dim=1), atol=1e-5)


# Parameters


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "conv"])
@pytest.mark.parametrize("mixed", [False, True])
def test_widths_match_the_baseline_within_one_percent(kind, mixed):
    baseline = ByteReaderConfig(width=64)
    target = count_parameters(baseline)
    config = ByteReaderConfig(encoder=kind, mixer="conv" if mixed else kind)
    matched = match_width(config, target)
    assert abs(count_parameters(build_byte_reader(matched)) - target) <= 0.01 * target
    encoder, mixer = matched.widths()
    assert max(encoder + mixer) - min(encoder + mixer) <= 1


def test_parameters_are_counted_by_hand():
    table, text, attention = 11 * 256 * 64, 11 * 64 * 64, 2 * 64 * 128
    norms = 10 * 2 * 64
    expected = table + 4 * text + attention + 3 * text + 4 * text + norms + 2 * 64 + 2
    assert count_parameters(ByteReaderConfig(width=64)) == expected
    assert match_width(ByteReaderConfig(), expected) == ByteReaderConfig(width=64)


def test_a_count_that_no_width_has_is_an_error():
    with pytest.raises(QalibError, match="1,000 parameters"):
        match_width(ByteReaderConfig(), 1000)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("encoder", "rnn"),
        ("input", "words"),
        ("positions", "cos"),
        ("kernel", 4),
        ("dropout", 1.0),
        ("embedding", 0),
        ("waves", -1),
        ("width", float("inf")),
        ("key_init_scale", float("nan")),
    ],
)
def test_wrong_settings_are_named(field, value):
    with pytest.raises(QalibError, match=field):
        ByteReaderConfig(**{field: value})


# Learning


@pytest.mark.parametrize("kind", ["conv", "lstm"])
def test_eight_examples_are_memorised(kind):
    cities = ["Rome", "Oslo", "Lima", "Bern"]
    learnt = []
    for n, (city, other) in enumerate(zip(cities, cities[1:] + cities[:1], strict=True)):
        passage = f"{city} in {30 + n}, {other} in {70 - n}."
        for asked, answer in ((city, str(30 + n)), (other, str(70 - n))):
            gold = (Answer(answer, passage.index(answer)),)
            learnt.append(Example(f"{n}{asked}", f"{asked}?", passage, gold))
    features = passage_features(learnt)
    batch = collate_passages(features)
    config = ByteReaderConfig(encoder=kind, mixer=kind, width=16, kernel=5, layers=3, dropout=0.0)
    reader = build_byte_reader(config)
    optimizer = torch.optim.Adam(reader.parameters(), lr=1e-2)
    for _ in range(80):
        loss = gaussian_span_loss(reader(batch), batch.answer_spans, batch.answer_weights, 0).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    output = reader(batch)
    assert mask_logits(output.start_logits, output.mask).isfinite().all()
    best = decode_spans(*output[:3])
    for row, example in enumerate(learnt):
        feature = features[batch.owner[row]]
        a, b = feature.characters(best.starts[row, 0], best.ends[row, 0])
        assert example.context[a:b] == example.answers[0].text


def test_keys_may_begin_as_a_multiple_of_the_queries():
    reader = build_byte_reader(replace(TINY, key_init_scale=4.0))
    torch.testing.assert_close(reader.key.weight, 4 * reader.query.weight)
