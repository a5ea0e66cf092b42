"""The fused kernel's sums against the formula, and single entries of the map against all of it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_encoders import tiny_encoder, windows

from qalib.skim import fused
from qalib.skim.blocks import make_blocks
from qalib.skim.families import parts
from qalib.skim.fused import FusedAttention, attend_fused, attend_in_the_open, attend_with_sums
from qalib.skim.views import FullAttention

ROWS, LENGTH, HEADS, WIDTH = 3, 21, 2, 8
# float32: rounding of sums over a row. bf16: inputs are rounded to 8 bits, sums stay float32.
CLOSE = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (1e-4, 2e-2)}
BIASES = ("none", "padding", "per head", "window of a row")


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
        return torch.randn(1, HEADS, LENGTH, LENGTH, generator=seed(5)).to(dtype)
    far = (place[:, None] - place).abs() > torch.tensor([4, 6, 30])[:, None, None]
    return torch.zeros(ROWS, 1, LENGTH, LENGTH, dtype=dtype).masked_fill(far[:, None], floor)


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def query_key_value(dtype: torch.dtype = torch.float32):
    """(B, L, H, d) x 3"""
    return (2 * torch.randn(3, ROWS, LENGTH, HEADS, WIDTH, generator=seed(0))).to(dtype)


def full_map(query, key, bias) -> torch.Tensor:
    """softmax of all scores, in float64.  (B, H, L, L)"""
    query, key = (x.double().transpose(1, 2) for x in (query, key))
    scores = query @ key.transpose(-1, -2) / WIDTH**0.5
    return (scores if bias is None else scores + bias.double()).softmax(dim=-1).float()


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("dtype", CLOSE)
def test_the_kernel_gives_the_sums_of_the_formula(dtype, bias):
    """The private kernel itself, so that a torch that lost or changed it is noticed here."""
    inputs = [x.transpose(1, 2) for x in query_key_value(dtype)]
    context, sums = fused._kernel(*inputs, bias_of(bias, dtype))
    expected, expected_sums = attend_in_the_open(*inputs, bias_of(bias, dtype))
    assert sums.dtype == torch.float32
    of_sums, of_context = CLOSE[dtype]
    torch.testing.assert_close(sums, expected_sums, atol=of_sums, rtol=of_sums)
    torch.testing.assert_close(context, expected, atol=of_context, rtol=of_context)
    plain = attend_fused(*query_key_value(dtype), bias_of(bias, dtype))
    torch.testing.assert_close(
        plain, context.transpose(1, 2).flatten(2), atol=of_context, rtol=of_context
    )


@pytest.mark.parametrize("error", [AttributeError, NotImplementedError, RuntimeError])
def test_without_the_kernel_the_formula_answers(monkeypatch, error):
    inputs = *query_key_value(), bias_of("per head", torch.float32)
    expected = attend_with_sums(*inputs)

    def gone(*_):
        raise error("no such kernel")

    monkeypatch.setattr(fused, "_kernel", gone)
    for got, wanted in zip(attend_with_sums(*inputs), expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_queries_that_rotary_positions_widened_are_taken():
    query, key, value = query_key_value()
    context, _ = attend_with_sums(query, key, value.bfloat16(), None)
    assert context.dtype == torch.bfloat16
    expected = attend_fused(query, key, value, None)
    torch.testing.assert_close(context.float(), expected, atol=0.05, rtol=0.02)


def blocks_of(lengths, size=4):
    """A question of 3, then passages that fill up rows of such lengths."""
    place = torch.arange(LENGTH)
    real = place < torch.tensor(lengths)[:, None]
    passage = (place >= 5) & (place < torch.tensor(lengths)[:, None] - 1)
    ids = place.expand(ROWS, -1) + 10
    return make_blocks(ids, real, passage, (10, 14), size)


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
    _, sums = attend_with_sums(query, key, value, bias)
    few, whole = FusedAttention(query, key, sums, bias), FullAttention(full_map(query, key, bias))
    chosen, blocks = torch.tensor(chosen).view(ROWS, LENGTH), blocks_of(lengths, size)
    sets = torch.stack([chosen, blocks.question], dim=1)
    close = {"atol": 1e-5, "rtol": 1e-4}
    torch.testing.assert_close(few.into(sets), whole.into(sets), **close)
    torch.testing.assert_close(few.out_of(sets), whole.out_of(sets), **close)
    got, wanted = few.diagonal(blocks, size), whole.diagonal(blocks, size)
    torch.testing.assert_close(got, wanted, **close)


@pytest.mark.parametrize("ask", ["into", "out_of"])
def test_a_set_of_nothing_gets_and_gives_nothing(ask):
    query, key, value = query_key_value()
    _, sums = attend_with_sums(query, key, value, None)
    nothing = torch.zeros(ROWS, LENGTH).bool()
    assert not getattr(FusedAttention(query, key, sums), ask)(nothing[:, None]).any()


def test_entries_of_bf16_attention_are_float32_and_close():
    query, key, value = query_key_value(torch.bfloat16)
    _, sums = attend_with_sums(query, key, value, None)
    few, whole = FusedAttention(query, key, sums), full_map(query, key, None)
    chosen = torch.arange(LENGTH).expand(ROWS, -1) < 4
    # A score of 8 to 16 is rounded by up to 1/32 before it is an exponent.
    close = {"atol": 0.05, "rtol": 0.05}
    assert few.into(chosen[:, None]).dtype == torch.float32
    torch.testing.assert_close(
        few.into(chosen[:, None]), whole[..., :4].sum(-1)[:, :, None], **close
    )
    everything = torch.ones(ROWS, LENGTH).bool()
    torch.testing.assert_close(
        few.into(everything[:, None]), torch.ones(ROWS, HEADS, 1, LENGTH), atol=0.05, rtol=0
    )


@pytest.mark.parametrize("kind", ["mpnet", "modernbert"])
@torch.no_grad()
def test_biases_and_windows_of_real_layers(kind):
    """What a family adds to its scores, as the whole map has it."""
    from qalib.skim.attend import attend_in_view

    model, inputs = tiny_encoder(kind), windows(kind)
    encoder, real = parts(model), inputs["attention_mask"].bool()
    places = torch.arange(real.shape[1])[None]
    hidden = encoder.embed(inputs["input_ids"])
    masks = encoder.masks(places, real, hidden.dtype)
    for layer in encoder.layers:
        query, key, value = layer.project(hidden, places)
        bias = masks[layer.sees]
        context, whole = attend_in_view(layer, query, key, value, bias)
        mine, sums = attend_with_sums(query, key, value, bias)
        few = FusedAttention(query, key, sums, bias)
        chosen = inputs["passage"] & (places % 3 == 0)
        torch.testing.assert_close(mine[real], context[real], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            few.into(chosen[:, None])[:, :, 0].transpose(1, 2)[real],
            whole.into(chosen[:, None])[:, :, 0].transpose(1, 2)[real],
            atol=1e-5,
            rtol=1e-4,
        )
        torch.testing.assert_close(
            few.out_of(chosen[:, None]), whole.out_of(chosen[:, None]), atol=1e-5, rtol=1e-4
        )
