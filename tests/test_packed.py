"""The packed pass against the padded one, attention entries against the whole map."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_encoders import CONFIGS, keep_blocks, tiny_encoder, tiny_skimmer, windows
from torch import nn

from qalib.skim import packed
from qalib.skim.activations import FullAttention
from qalib.skim.adapters import LayerAdapter
from qalib.skim.blocks import make_blocks
from qalib.skim.packed import (
    MIN_LOGIT,
    ForwardPass,
    attention_with_lse,
    equal_length_groups,
    fused_attention,
    one_group,
)
from qalib.skim.predictors import PredictorConfig
from qalib.skim.skimmer import SkimConfig, Skimmer

CLOSE = {"atol": 3e-5, "rtol": 1e-4}
MIXED = ((3, 21), (5, 8), (2, 30), (1, 0), (4, 17), (3, 17), (5, 2))


def logits(output) -> torch.Tensor:
    """Start and end logits in one.  (2, B, L)"""
    return torch.stack([output.start_logits, output.end_logits])


def both(skimmer, model, inputs, **how):
    """The same pass padded, which gradients select, and packed."""
    with torch.enable_grad():
        padded = skimmer.run(model, **inputs, **how)
    with torch.inference_mode():
        return padded, skimmer.run(model, **inputs, **how)


def assert_same(one, other, real, **tolerance):
    """Logits, scores, decisions, counts: all that a pass tells. Logits of padding mean nothing."""
    tolerance = tolerance or CLOSE
    torch.testing.assert_close(logits(one)[:, real], logits(other)[:, real], **tolerance)
    assert torch.equal(one.tokens, other.tokens)
    assert torch.equal(one.blocks.block_ids, other.blocks.block_ids)
    for name in ("kept", "scored", "scores"):
        assert getattr(one, name).keys() == getattr(other, name).keys()
    for layer, scores in one.scores.items():
        assert torch.equal(one.scored[layer], other.scored[layer])
        torch.testing.assert_close(scores, other.scores[layer], atol=1e-4, rtol=1e-3)
    for layer, kept in one.kept.items():
        assert torch.equal(kept, other.kept[layer])


def halfway(skimmer, model, inputs) -> tuple[float, ...]:
    """Thresholds that about half the blocks pass, far from every score."""
    with torch.no_grad():
        output = skimmer.run(model, **inputs, skim=False)
    found = []
    for layer in skimmer.config.prune_layers:
        scores = output.scores[layer][output.blocks.real].sigmoid().sort().values
        gaps = scores[1:] - scores[:-1]
        middle = gaps[len(gaps) // 4 : -len(gaps) // 4]  # the widest gap in the middle half
        place = int(middle.argmax()) + len(gaps) // 4
        found.append(float(scores[place] + scores[place + 1]) / 2)
    return tuple(found)


@pytest.mark.parametrize("pruned_logits", ["mask", "forward"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_packed_rows_are_the_padded_ones(kind, pruned_logits):
    """A cascade; pruned tokens without an answer, or with the output of their last layer."""
    model, inputs = tiny_encoder(kind), windows(kind, rows=MIXED)
    skimmer = tiny_skimmer(model, prune_layers=(1, 2), pruned_logits=pruned_logits)
    skimmer.set_options(thresholds=halfway(skimmer, model, inputs))
    padded, got = both(skimmer, model, inputs)
    assert_same(padded, got, inputs["attention_mask"].bool())
    counts = got.tokens.sum(dim=0).tolist()
    assert counts[0] > counts[1] > counts[2]
    watched = both(skimmer, model, inputs, skim=False)
    assert_same(*watched, inputs["attention_mask"].bool())


PREDICTORS = (
    "cnn",
    "cnn-eq3",
    "question",
    "handcrafted",
    "lexical",
    "late_interaction",
    "combined",
)


@pytest.mark.parametrize("kind", ["bert", "mpnet", "deberta-v2"])
def test_the_kits_predictors_see_the_same(kind):
    """From entries of the map and packed states as from the whole map and padded ones."""
    model, inputs = tiny_encoder(kind), windows(kind, rows=MIXED)
    real = inputs["attention_mask"].bool()
    for name in PREDICTORS:
        torch.manual_seed(0)
        config = SkimConfig(PredictorConfig(name, 4), (1, 3), (1, 3), (0.5, 0.5))
        skimmer = Skimmer.beside(model, config).eval()
        skimmer.set_options(thresholds=halfway(skimmer, model, inputs))
        assert_same(*both(skimmer, model, inputs), real)


ROW = st.tuples(st.integers(0, 5), st.integers(0, 26))


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(ROW, min_size=1, max_size=5),
    keep=st.lists(st.integers(0, 2**7 - 1), min_size=10, max_size=10),
    given=st.booleans(),
    min_blocks=st.integers(0, 2),
    neighbours=st.integers(0, 1),
    min_pruned_fraction=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    min_tokens=st.sampled_from([0, 15, 25]),
)
def test_any_rows_and_any_choice(
    rows,
    keep,
    given,
    min_blocks,
    neighbours,
    min_pruned_fraction,
    min_tokens,
):
    """Empty passages, rows within a block, one row, an oracle's choice; all rules at once."""
    model, inputs = tiny_encoder("mpnet"), windows("mpnet", rows=tuple(rows))
    skimmer = tiny_skimmer(
        model,
        prune_layers=(1, 3),
        thresholds=(0.5, 0.5),
        min_blocks=min_blocks,
        neighbours=neighbours,
        min_pruned_fraction=min_pruned_fraction,
        min_tokens=min_tokens,
    )
    if given:
        count = -(-max(passage for _, passage in rows) // 4)
        bits = [[[bool(k >> b & 1) for b in range(count)] for k in half] for half in halves(keep)]
        keep = {
            layer: torch.tensor(half[: len(rows)], dtype=torch.bool).view(len(rows), count)
            for layer, half in zip((1, 3), bits, strict=True)
        }
        keep_blocks(skimmer, keep)
    assert_same(*both(skimmer, model, inputs), inputs["attention_mask"].bool())


def halves(values):
    """A list in two."""
    return values[: len(values) // 2], values[len(values) // 2 :]


@pytest.mark.parametrize("kind", ["bert", "mpnet", "deberta-v2"])
@torch.inference_mode()
def test_a_batch_is_its_members_in_any_order(kind):
    model, inputs = tiny_encoder(kind), windows(kind, rows=MIXED)
    skimmer = tiny_skimmer(model, prune_layers=(1, 2), pruned_logits="forward")
    skimmer.set_options(thresholds=halfway(skimmer, model, inputs))
    together = skimmer.run(model, **inputs)
    order = torch.tensor([4, 2, 0, 6, 5, 1, 3])
    shuffled = skimmer.run(model, **{name: x[order] for name, x in inputs.items()})
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(
        logits(shuffled)[:, real[order]], logits(together)[:, order][:, real[order]], **CLOSE
    )
    assert torch.equal(shuffled.tokens, together.tokens[order])
    for row in range(len(MIXED)):
        count = int(real[row].sum())
        alone = skimmer.run(model, **{n: x[row : row + 1, :count] for n, x in inputs.items()})
        torch.testing.assert_close(logits(alone)[:, 0], logits(together)[:, row, :count], **CLOSE)
        for layer, kept in alone.kept.items():
            assert torch.equal(kept[0], together.kept[layer][row, : kept.shape[1]])


@pytest.mark.parametrize("kind", ["bert", "mpnet", "deberta-v2"])
def test_rows_side_by_side_with_padding_are_the_same(kind, monkeypatch):
    """As it is done on a GPU: one stack of all rows, padding hidden by the mask."""

    def together(lengths):
        longest = max(1, *lengths)
        return [one_group(torch.arange(longest) < torch.tensor(lengths)[:, None])]

    monkeypatch.setattr(packed, "equal_length_groups", together)
    model, inputs = tiny_encoder(kind), windows(kind, rows=MIXED)
    skimmer = tiny_skimmer(model, prune_layers=(1, 2))
    skimmer.set_options(thresholds=halfway(skimmer, model, inputs))
    assert_same(*both(skimmer, model, inputs), inputs["attention_mask"].bool())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=6))
def test_groups_are_rows_and_back(lengths):
    rows = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    values = torch.randn(len(rows), 3)
    everything = one_group(torch.arange(max(1, *lengths)) < torch.tensor(lengths)[:, None])
    padded = everything.pad(values, 7.0)
    assert padded.shape == (len(lengths), max(1, *lengths), 3)
    for row, length in enumerate(lengths):
        assert torch.equal(padded[row, :length], values[rows == row])
        assert (padded[row, length:] == 7.0).all()
    assert torch.equal(everything.unpad(padded), values)
    parts = equal_length_groups(lengths)
    assert [x for at in parts for x in at.lengths] == [x for x in lengths if x]
    assert all(not at.padded and set(at.lengths) == {at.length} for at in parts)
    if parts:
        packed_again = torch.cat([at.unpad(at.pad(values)) for at in parts])
        assert torch.equal(packed_again, values)
    for at in parts:
        assert torch.equal(at.pad(values), padded[at.rows, : at.length])


def test_gradients_and_training_take_the_padded_way(monkeypatch):
    taken, start = [], ForwardPass.start
    spy = lambda *x, packed: taken.append(packed) or start(*x, packed)  # noqa: E731
    monkeypatch.setattr(ForwardPass, "start", spy)
    model, inputs = tiny_encoder(), windows()
    beside = tiny_skimmer(model, prune_layers=(1,))
    beside.run(model, **inputs)
    with torch.no_grad():
        beside.run(model, **inputs)
        beside.run(model, **inputs, skim=False)
        beside.run(model.train(), **inputs)
        beside.train().run(model.eval(), **inputs)
    assert taken == [False, True, True, False, False]


@pytest.mark.parametrize("grad", [False, True])
def test_short_rows_are_neither_pruned_nor_scored(grad):
    model, inputs = tiny_encoder(), windows()  # rows of 27, 16 and 35 tokens
    skimmer = tiny_skimmer(model, prune_layers=(2,), thresholds=(1.0,), min_tokens=27)
    runs = []
    skimmer.predictors["2"].register_forward_hook(lambda *_: runs.append(1))
    with torch.set_grad_enabled(grad):
        output = skimmer.run(model, **inputs)
        assert output.scored[2].any(dim=1).tolist() == [True, False, True]
        assert (output.scores[2][1] == MIN_LOGIT).all()
        assert torch.equal(output.kept[2][1], output.blocks.real[1])
        first, short, last = output.tokens[:, -1].tolist()
        assert short == 16
        best = output.scores[2].argmax(dim=1)
        sizes = output.blocks.sizes.gather(1, best[:, None]).flatten().tolist()
        assert (first, last) == (6 + sizes[0], 5 + sizes[2])
        assert len(runs) == 1
        skimmer.set_options(min_tokens=36)
        output = skimmer.run(model, **inputs)
        assert torch.equal(output.kept[2], output.blocks.real)
        assert len(runs) == 1
        assert list(skimmer.run(model, **inputs, skim=False).scores) == [1, 2, 3]
        assert len(runs) == 2  # without pruning all rows are scored


# Entries of the attention map

ROWS, LENGTH, HEADS, WIDTH = 3, 21, 2, 8
# float32: rounding of sums over a row. bf16: inputs are rounded to 8 bits, sums stay float32.
KERNEL_CLOSE = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (1e-4, 2e-2)}
BIASES = ("none", "padding", "per head", "window of a row")
LAYER = LayerAdapter(nn.Identity().eval(), None, None, 0.0)  # the bias is added as it is


def bias_of(name: str, dtype: torch.dtype) -> torch.Tensor | None:
    """Something to add to the scores, in each of the shapes that families make."""
    floor = torch.finfo(dtype).min
    place = torch.arange(LENGTH)
    if name == "none":
        return None
    if name == "padding":
        hidden = place >= torch.tensor([[LENGTH], [9], [14]])
        return torch.zeros(ROWS, 1, 1, LENGTH, dtype=dtype).masked_fill(
            hidden[:, None, None], floor
        )
    if name == "per head":
        return torch.randn(1, HEADS, LENGTH, LENGTH, generator=seeded(5)).to(dtype)
    far = (place[:, None] - place).abs() > torch.tensor([4, 6, 30])[:, None, None]
    return torch.zeros(ROWS, 1, LENGTH, LENGTH, dtype=dtype).masked_fill(far[:, None], floor)


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def query_key_value(dtype: torch.dtype = torch.float32):
    """(B, L, H, d) x 3"""
    return (2 * torch.randn(3, ROWS, LENGTH, HEADS, WIDTH, generator=seeded(0))).to(dtype)


def full_map(query, key, bias) -> torch.Tensor:
    """softmax of all scores, in float64.  (B, H, L, L)"""
    query, key = (x.double().transpose(1, 2) for x in (query, key))
    scores = query @ key.transpose(-1, -2) / WIDTH**0.5
    return (scores if bias is None else scores + bias.double()).softmax(dim=-1).float()


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("dtype", KERNEL_CLOSE)
def test_the_kernel_gives_the_sums_of_the_formula(dtype, bias):
    """The private kernel itself, so that a torch that lost or changed it is noticed here."""
    inputs = [x.transpose(1, 2) for x in query_key_value(dtype)]
    context, sums = packed._kernel_with_lse(*inputs, bias_of(bias, dtype))
    expected, expected_sums = packed._formula_with_lse(*inputs, bias_of(bias, dtype))
    assert sums.dtype == torch.float32
    of_sums, of_context = KERNEL_CLOSE[dtype]
    torch.testing.assert_close(sums, expected_sums, atol=of_sums, rtol=of_sums)
    torch.testing.assert_close(context, expected, atol=of_context, rtol=of_context)
    plain, _ = fused_attention(LAYER, *query_key_value(dtype), bias_of(bias, dtype))
    torch.testing.assert_close(
        plain, context.transpose(1, 2).flatten(2), atol=of_context, rtol=of_context
    )


@pytest.mark.parametrize("error", [AttributeError, NotImplementedError, RuntimeError])
def test_without_the_kernel_the_formula_answers(monkeypatch, error):
    inputs = *query_key_value(), bias_of("per head", torch.float32)
    expected, entries = attention_with_lse(LAYER, *inputs)

    def gone(*_):
        raise error("no such kernel")

    monkeypatch.setattr(packed, "_kernel_with_lse", gone)
    got, others = attention_with_lse(LAYER, *inputs)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(others.lse, entries.lse)


def question_blocks(lengths, size=4):
    """A question of 4, then passages that fill up rows of such lengths."""
    place = torch.arange(LENGTH)
    real = place < torch.tensor(lengths)[:, None]
    passage = (place >= 5) & (place < torch.tensor(lengths)[:, None] - 1)
    ids = place.expand(ROWS, -1) + 10
    return make_blocks(ids, real, passage, size)


@settings(max_examples=25, deadline=None)
@given(
    bias=st.sampled_from(BIASES),
    chosen=st.lists(st.booleans(), min_size=ROWS * LENGTH, max_size=ROWS * LENGTH),
    lengths=st.lists(st.integers(1, LENGTH), min_size=ROWS, max_size=ROWS),
    size=st.sampled_from([1, 4, 7]),
)
def test_entries_are_those_of_the_whole_map(bias, chosen, lengths, size):
    query, key, value = query_key_value()
    bias = bias_of(bias, torch.float32)
    _, few = attention_with_lse(LAYER, query, key, value, bias)
    whole = FullAttention(full_map(query, key, bias))
    chosen, blocks = torch.tensor(chosen).view(ROWS, LENGTH), question_blocks(lengths, size)
    sets = torch.stack([chosen, blocks.question], dim=1)
    close = {"atol": 1e-5, "rtol": 1e-4}
    torch.testing.assert_close(few.attention_to(sets), whole.attention_to(sets), **close)
    torch.testing.assert_close(few.attention_from(sets), whole.attention_from(sets), **close)
    got, wanted = few.squares(*blocks.positions(size)), whole.diagonal_blocks(blocks, size)
    torch.testing.assert_close(got, wanted, **close)


def test_entries_of_bf16_attention_are_float32_and_close():
    query, key, value = query_key_value(torch.bfloat16)
    _, few = attention_with_lse(LAYER, query, key, value, None)
    whole = full_map(query, key, None)
    chosen = torch.arange(LENGTH).expand(ROWS, -1) < 4
    # A score of 8 to 16 is rounded by up to 1/32 before it is an exponent.
    close = {"atol": 0.05, "rtol": 0.05}
    assert few.attention_to(chosen[:, None]).dtype == torch.float32
    torch.testing.assert_close(
        few.attention_to(chosen[:, None]), whole[..., :4].sum(-1)[:, :, None], **close
    )
    everything = torch.ones(ROWS, LENGTH).bool()
    torch.testing.assert_close(
        few.attention_to(everything[:, None]), torch.ones(ROWS, HEADS, 1, LENGTH), atol=0.05, rtol=0
    )
