"""Encoders driven layer by layer: every family gives what its own forward gives."""

import copy
from types import SimpleNamespace

import pytest
import torch
from tiny_encoders import CONFIGS, TYPED, tiny_encoder, windows
from torch import nn

from qalib.errors import QalibError
from qalib.skim.adapters import FAMILIES, adapt_encoder
from qalib.skim.packed import eager_attention, fused_attention


def driven(model, inputs, in_view: bool = False):
    """Start and end logits from the loop over the parts, with nothing skipped."""
    encoder = adapt_encoder(model)
    real = inputs["attention_mask"].bool()
    positions = torch.arange(real.shape[1])[None]
    hidden = encoder.embed(inputs["input_ids"], inputs.get("token_type_ids"))
    mask = encoder.attention_mask(positions, real, hidden.dtype)
    for layer in encoder.layers:
        projected = layer.qkv_proj(hidden)
        way = eager_attention if in_view else fused_attention
        context, _ = way(layer, *projected, mask)
        hidden = layer.feed_forward(context, hidden)
    return encoder.head(hidden)


def assert_same_where_real(some, others, inputs, **tolerance):
    """Logits of padding carry no meaning: what a token without keys attends to is left open."""
    real = inputs["attention_mask"].bool()
    for one, other in zip(some, others, strict=True):
        torch.testing.assert_close(one[real], other[real], **tolerance)


def own(model, inputs):
    """Start and end logits from the model's own forward."""
    output = model(**{name: x for name, x in inputs.items() if name != "passage"})
    return output.start_logits, output.end_logits


def test_every_family_is_tested():
    assert set(CONFIGS) == set(FAMILIES)


@pytest.mark.parametrize("in_view", [False, True])
@pytest.mark.parametrize("kind", CONFIGS)
def test_driven_logits_are_the_models_own(kind, in_view):
    model, inputs = tiny_encoder(kind), windows(kind)
    with torch.no_grad():
        mine, theirs = driven(model, inputs, in_view), own(model, inputs)
        assert theirs[0].std() > 0.1
        assert_same_where_real(mine, theirs, inputs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("in_view", [False, True])
@pytest.mark.parametrize("kind", CONFIGS)
def test_gradients_in_training_are_the_models_own(kind, in_view):
    model, inputs = tiny_encoder(kind, scale=2.0).train(), windows(kind)
    weight = torch.randn(2, *inputs["input_ids"].shape) * inputs["attention_mask"]
    gradients = []
    for way in (own, lambda *both: driven(*both, in_view)):
        model.zero_grad()
        (torch.stack(way(model, inputs)) * weight).sum().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(
            gradients[1][name], gradient, atol=1e-3, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )


DEBERTA = [  # as v2, and with some of the terms only
    {"share_att_key": False, "type_vocab_size": 2, "norm_rel_ebd": "none"},
    {"share_att_key": False, "pos_att_type": ["p2c"], "position_buckets": -1},
    {"pos_att_type": ["c2p"], "max_relative_positions": 6},
    {"pos_att_type": ["c2p", "p2c"], "relative_attention": False, "position_biased_input": True},
    {"pos_att_type": []},
]


@pytest.mark.parametrize("changes", DEBERTA)
@torch.no_grad()
def test_every_form_of_disentangled_attention_is_driven(changes):
    model, inputs = tiny_encoder("deberta-v2", **changes), windows("deberta-v2")
    assert_same_where_real(driven(model, inputs), own(model, inputs), inputs, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_a_layer_may_have_fewer_heads():
    model, inputs = copy.deepcopy(tiny_encoder("bert")), windows("bert")
    layer = model.bert.encoder.layer[1].attention
    rest = slice(layer.self.attention_head_size, None)  # without its first head
    for linear in (layer.self.query, layer.self.key, layer.self.value):
        linear.weight, linear.bias = (nn.Parameter(x[rest]) for x in (linear.weight, linear.bias))
    layer.output.dense.weight = nn.Parameter(layer.output.dense.weight[:, rest])
    layer.self.num_attention_heads -= 1
    layer.self.all_head_size -= layer.self.attention_head_size
    assert_same_where_real(driven(model, inputs), own(model, inputs), inputs, atol=2e-5, rtol=1e-4)


def test_masks_are_computed_from_positions_in_the_input():
    """Rows and columns of the full mask are the mask of the positions that are left."""
    encoder = adapt_encoder(tiny_encoder("mpnet"))
    left = torch.tensor([[0, 1, 2, 9, 10, 25, 31]])
    whole = encoder.attention_mask(torch.arange(32)[None], torch.ones(1, 32).bool(), torch.float32)
    short = encoder.attention_mask(left, torch.ones(1, 7).bool(), torch.float32)
    torch.testing.assert_close(short, whole[:, :, left[0]][..., left[0]])


def test_a_row_of_padding_stays_finite():
    for kind in CONFIGS:
        model, inputs = tiny_encoder(kind), windows(kind)
        inputs["attention_mask"][1] = 0
        for in_view in (False, True):
            assert all(logits.isfinite().all() for logits in driven(model, inputs, in_view))


@pytest.mark.parametrize("kind", CONFIGS)
def test_dropout_is_the_models_own(kind):
    """Every dropout module is passed in training and none at evaluation."""
    names = CONFIGS[kind].to_dict()
    rates = {n: 0.5 for n in names if n.endswith(("dropout", "dropout_prob"))}
    rates = {n: 0.0 if "attention" in n else rate for n, rate in rates.items() if names[n] == 0}
    model, inputs = tiny_encoder(kind, **rates), windows(kind)
    called = []
    for name, module in model.named_modules():
        if type(module) is nn.Dropout and module.p:
            module.register_forward_hook(lambda *_, name=name: called.append(name))
    passes = []
    for way in (own, driven):
        called.clear()
        torch.manual_seed(0)
        way(model.train(), inputs)
        passes.append(sorted(called))
    assert passes[0] == passes[1] != []
    with torch.no_grad():
        mine, theirs = driven(model.eval(), inputs), own(model, inputs)
        assert_same_where_real(mine, theirs, inputs, atol=2e-5, rtol=1e-4)


def test_attention_dropout_zeroes_and_scales():
    model = tiny_encoder(attention_probs_dropout_prob=0.5)
    layer = adapt_encoder(model).layers[0]
    query, key = torch.randn(2, 1, 40, 4, 4)
    value = torch.ones(1, 40, 4, 4)
    for way in (fused_attention, eager_attention):
        torch.manual_seed(0)
        torch.testing.assert_close(way(layer, query, key, value, None)[0], torch.ones(1, 40, 16))
        layer.attention.train()
        dropped, _ = way(layer, query, key, value, None)
        layer.attention.eval()
        assert dropped.std() > 0.05
        assert dropped.mean().item() == pytest.approx(1.0, abs=0.1)


def test_token_types_reach_the_models_that_know_them():
    for kind in TYPED:
        model, inputs = tiny_encoder(kind), windows(kind)
        encoder = adapt_encoder(model)
        typed = encoder.embed(inputs["input_ids"], inputs["token_type_ids"])
        assert not torch.allclose(typed, encoder.embed(inputs["input_ids"]))
    types = torch.ones_like(inputs["input_ids"])
    for kind in set(CONFIGS) - set(TYPED):
        encoder = adapt_encoder(tiny_encoder(kind))
        torch.testing.assert_close(
            encoder.embed(inputs["input_ids"], types), encoder.embed(inputs["input_ids"])
        )


def test_what_cannot_be_driven_is_named():
    from transformers import AutoModel, GPT2Config

    with pytest.raises(QalibError, match=r"'gpt2'.*bert, roberta.*mpnet"):
        adapt_encoder(SimpleNamespace(config=GPT2Config()))
    with pytest.raises(QalibError, match="'Linear'"):
        adapt_encoder(nn.Linear(2, 2))
    with pytest.raises(QalibError, match="BertModel is no transformers model with a head"):
        adapt_encoder(AutoModel.from_config(CONFIGS["bert"]))
    with pytest.raises(QalibError, match="convolution"):
        adapt_encoder(tiny_encoder("deberta-v2", conv_kernel_size=3))
    with pytest.raises(QalibError, match="decoder"):
        adapt_encoder(tiny_encoder(is_decoder=True))
