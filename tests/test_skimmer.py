"""Skimming against literal references: one example at a time, layer by layer, list by list."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_encoders import CONFIGS, keep_blocks, tiny_encoder, tiny_skimmer, windows
from torch import nn

from qalib.errors import QalibError
from qalib.skim.blocks import make_blocks
from qalib.skim.packed import MIN_LOGIT
from qalib.skim.predictors import PredictorConfig
from qalib.skim.skimmer import SkimConfig, select_blocks, skip_unprofitable

CLOSE = {"atol": 3e-5, "rtol": 1e-4}


# Block selection

SCORES = st.lists(st.sampled_from([-3.0, -1.0, 0.0, 0.5, 2.0]), max_size=9)


def slow_choice(scores, real, threshold, min_blocks, neighbours):
    """The indices of the kept blocks of one row."""
    have = [k for k, there in enumerate(real) if there]
    kept = {k for k in have if 1 / (1 + math.exp(-scores[k])) >= threshold}
    kept |= set(sorted(have, key=lambda k: (-scores[k], k))[:min_blocks])
    near = {k for k in have if any(abs(k - other) <= neighbours for other in kept)}
    return sorted(near)


@given(
    rows=st.lists(SCORES, min_size=1, max_size=3),
    threshold=st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]),
    min_blocks=st.integers(0, 3),
    neighbours=st.integers(0, 3),
    holes=st.integers(0, 2**9 - 1),
)
def test_the_choice_is_its_literal_reference(rows, threshold, min_blocks, neighbours, holes):
    count = max(map(len, rows))
    scores = torch.tensor([row + [9.0] * (count - len(row)) for row in rows])
    real = [[k < len(row) and not holes >> k & 1 for k in range(count)] for row in rows]
    real = torch.tensor(real).reshape(len(rows), count).bool()
    kept = select_blocks(scores.reshape(len(rows), count), real, threshold, min_blocks, neighbours)
    for row in range(len(rows)):
        expected = slow_choice(
            scores[row].tolist(), real[row].tolist(), threshold, min_blocks, neighbours
        )
        assert kept[row].nonzero().flatten().tolist() == expected


@settings(max_examples=30, deadline=None)
@given(
    keep=st.lists(st.integers(0, 2**8 - 1), min_size=3, max_size=3),
    fraction=st.sampled_from([0.0, 0.1, 0.4, 0.75, 1.0]),
    min_tokens=st.sampled_from([0, 16, 17, 28]),
)
def test_a_row_stays_whole_by_its_own_tokens(keep, fraction, min_tokens):
    inputs = windows()
    real = inputs["attention_mask"].bool()
    blocks = make_blocks(inputs["input_ids"], real, inputs["passage"], size=4)
    kept = torch.tensor([[bool(k >> b & 1) for b in range(8)] for k in keep]) & blocks.real
    got = skip_unprofitable(kept, blocks, fraction, min_tokens)
    for row, tokens in enumerate((27, 16, 35)):
        gone = sum(b >= 0 and not kept[row, b] for b in blocks.block_ids[row].tolist())
        stays = tokens < min_tokens or gone < fraction * tokens
        assert torch.equal(got[row], (blocks.real if stays else kept)[row])


# The whole pass


def logits(output) -> torch.Tensor:
    """Start and end logits in one.  (2, B, L)"""
    return torch.stack([output.start_logits, output.end_logits])


def plain(model, inputs) -> torch.Tensor:
    """The logits of the model itself."""
    return logits(model(**{name: x for name, x in inputs.items() if name != "passage"}))


def row_of(inputs, row: int):
    """One example by itself, without padding."""
    count = max(1, int(inputs["attention_mask"][row].sum()))
    return {name: x[row : row + 1, :count] for name, x in inputs.items()}


def middle(skimmer, model, inputs, layer: int) -> float:
    """A threshold that about half the blocks pass, far from every score."""
    with torch.no_grad():
        output = skimmer.run(model, **inputs, skim=False)
    scores = output.scores[layer][output.blocks.real].sigmoid().sort().values
    half = len(scores) // 2
    return float(scores[half - 1] + scores[half]) / 2


def slow_probabilities(inner, hidden):
    """The map of a BERT layer, head by head.  (1, L, D) -> (1, H, L, L)"""
    maps = []
    for head in range(4):
        part = slice(4 * head, 4 * head + 4)
        q, k = inner.query(hidden)[0, :, part], inner.key(hidden)[0, :, part]
        maps.append((q @ k.T / 4**0.5).softmax(dim=-1))
    return torch.stack(maps)[None]


def slow_score(predictor, tokens, maps, states, block, question):
    """``Mass`` of one block from lists of tokens; maps and states by layer, of those tokens."""
    total = 0.0
    for number in predictor.layers:
        here, state = maps[number][0], states[number][0]
        ask = [tokens.index(t) for t in question]
        for place in (tokens.index(t) for t in block):
            for head in range(4):
                got = sum(here[head, place, q] for q in ask)
                given = sum(here[head, q, place] for q in ask) / len(ask)
                mass = predictor.heads[0, head] * got + predictor.heads[1, head] * given
                total += mass / len(block)
            total += state[place] @ predictor.hidden / len(block)
    return float(total)


def slow_skim(model, skimmer, example):
    """Skim one unpadded example with a BERT model: the logits by position, and the kept blocks.

    The model's own layers, called on the tokens that are still in the list.
    """
    size, config = skimmer.config.predictor.block_size, skimmer.config
    passage = example["passage"][0].nonzero().flatten().tolist()
    question = list(range(1, passage[0] - 1))
    blocks = {k: passage[at : at + size] for k, at in enumerate(range(0, len(passage), size))}
    tokens = list(range(example["input_ids"].shape[1]))
    types = example["token_type_ids"]
    hidden = model.bert.embeddings(input_ids=example["input_ids"], token_type_ids=types)
    left, maps, states, history = {}, {}, {}, []
    for number, layer in enumerate(model.bert.encoder.layer, 1):
        maps[number], states[number] = slow_probabilities(layer.attention.self, hidden), hidden
        context, _ = layer.attention.self(hidden)
        if number in config.prune_layers:
            predictor = skimmer.predictors[str(number)]
            scores = {
                k: slow_score(predictor, tokens, maps, states, block, question)
                for k, block in blocks.items()
            }
            best = max(scores, key=scores.get)
            threshold = config.thresholds[config.prune_layers.index(number)]
            kept = [k for k, s in scores.items() if 1 / (1 + 2.718281828**-s) >= threshold]
            blocks = {k: blocks[k] for k in kept or [best]}
            history.append(list(blocks))
            goes_on = [
                t for t in tokens if t not in passage or any(t in b for b in blocks.values())
            ]
            rows = [tokens.index(t) for t in goes_on]
            output = layer.feed_forward_chunk(layer.attention.output(context, hidden))
            for place, token in enumerate(tokens):
                left[token] = model.qa_outputs(output[0, place])
            maps = {n: m[:, :, rows][..., rows] for n, m in maps.items()}
            states = {n: s[:, rows] for n, s in states.items()}
            tokens, hidden, context = goes_on, hidden[:, rows], context[:, rows]
        hidden = layer.feed_forward_chunk(layer.attention.output(context, hidden))
    final = dict(zip(tokens, model.qa_outputs(hidden[0]), strict=True))
    if config.pruned_logits == "mask":
        left = {token: torch.full((2,), MIN_LOGIT) for token in left}
    everything = left | final
    return torch.stack([everything[t] for t in sorted(everything)], dim=1)[:, None], history


@pytest.mark.parametrize("pruned_logits", ["mask", "forward"])
@pytest.mark.parametrize("prune_layers", [(1,), (2,), (3,), (1, 3), (2, 3), (1, 2, 3)])
@torch.no_grad()
def test_skimming_is_its_literal_reference(prune_layers, pruned_logits):
    model, inputs = tiny_encoder(), windows()
    skimmer = tiny_skimmer(model, prune_layers=prune_layers, pruned_logits=pruned_logits)
    thresholds = tuple(middle(skimmer, model, inputs, layer) for layer in prune_layers)
    skimmer.set_options(thresholds=thresholds)
    dropped = 0
    for row in range(3):
        example = row_of(inputs, row)
        expected, history = slow_skim(model, skimmer, example)
        output = skimmer.run(model, **example)
        got = [output.kept[layer][0].nonzero().flatten().tolist() for layer in prune_layers]
        assert got == history
        torch.testing.assert_close(logits(output), expected, **CLOSE)
        dropped += int((~output.kept[prune_layers[-1]]).sum())
    assert dropped > 2


LAYER = ("BertLayer", "RobertaLayer", "AlbertLayer", "TransformerBlock", "ElectraLayer")
LAYER += ("XLMRobertaLayer", "CamembertLayer", "MPNetLayer", "DebertaV2Layer")


def own_forward_with_hidden_keys(model, inputs, hidden_after: dict[int, torch.Tensor]):
    """The model's own logits, where behind some layers no token sees certain others (B, L) bool."""
    calls = []

    def hide(module, args, kwargs):
        calls.append(module)
        hidden = sum(keys for layer, keys in hidden_after.items() if layer < len(calls))
        if not isinstance(hidden, torch.Tensor):
            return None
        hidden = hidden.bool()[:, None, None, :]
        mask = kwargs.pop("attention_mask") if "attention_mask" in kwargs else args[1]
        added = mask.is_floating_point()
        mask = mask.masked_fill(hidden, MIN_LOGIT) if added else mask.bool() & ~hidden
        return (args[0], mask, *args[2:]), kwargs

    layers = [m for m in model.modules() if type(m).__name__ in LAYER]
    hooks = [m.register_forward_pre_hook(hide, with_kwargs=True) for m in layers]
    expected = plain(model, inputs)
    for hook in hooks:
        hook.remove()
    assert len(calls) == 3
    return expected


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_skipped_tokens_are_as_if_hidden_from_the_layers_above(kind):
    """In every family the model's own layers say what is left, with its positions and windows."""
    model, inputs = tiny_encoder(kind), windows(kind)
    skimmer = tiny_skimmer(model, prune_layers=(1, 2))
    keep = {
        1: torch.tensor([[True, False, True, True, False, True, True, False]] * 3),
        2: torch.tensor([[True, True, False, True, True, True, False, True]] * 3),
    }
    output = keep_blocks(skimmer, keep).run(model, **inputs)
    gone = {n: output.blocks.to_positions(~kept, False).bool() for n, kept in output.kept.items()}
    expected = own_forward_with_hidden_keys(model, inputs, gone)
    stays = inputs["attention_mask"].bool() & ~gone[2]
    torch.testing.assert_close(logits(output)[:, stays], expected[:, stays], **CLOSE)
    assert (expected - plain(model, inputs))[:, stays].abs().max() > 100 * CLOSE["atol"]


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_keeping_everything_changes_nothing(kind):
    """Threshold 0 in a cascade, an oracle that keeps all, and observing: the model's own logits."""
    model, inputs = tiny_encoder(kind), windows(kind)
    real = inputs["attention_mask"].bool().expand(2, -1, -1)
    expected = plain(model, inputs)[real]
    skimmer = tiny_skimmer(model, prune_layers=(1, 2), thresholds=(0.0, 0.0))
    output = skimmer.run(model, **inputs)
    torch.testing.assert_close(logits(output)[real], expected, **CLOSE)
    torch.testing.assert_close(output.token_fraction, torch.ones(3))
    skimmer.set_options(thresholds=(1.0, 1.0))
    everything = output.blocks.real
    oracle = keep_blocks(skimmer, everything).run(model, **inputs)
    torch.testing.assert_close(logits(oracle)[real], expected, **CLOSE)
    watched = skimmer.run(model, **inputs, skim=False)
    torch.testing.assert_close(logits(watched)[real], expected, **CLOSE)
    assert not watched.kept
    assert list(watched.scores) == [1, 2, 3]


@torch.no_grad()
def test_question_and_special_tokens_are_never_left_out():
    """With no block kept at all, exactly the passage is gone; position 0 can still be answered."""
    model, inputs = tiny_encoder(), windows()
    skimmer = tiny_skimmer(model, prune_layers=(1,), thresholds=(1.0,), min_blocks=0)
    output = keep_blocks(skimmer, torch.zeros(3, 8).bool()).run(model, **inputs)
    gone = inputs["passage"] | ~inputs["attention_mask"].bool()
    assert torch.equal(output.start_logits == MIN_LOGIT, gone)
    assert torch.equal(output.end_logits == MIN_LOGIT, gone)
    assert output.token_fraction.tolist() == [0.0, 0.0, 0.0]
    assert output.tokens[:, 1:].tolist() == [[6] * 3, [8] * 3, [5] * 3]
    assert (output.start_logits[:, 0] > MIN_LOGIT).all()


@torch.no_grad()
def test_tokens_count_what_each_layer_reads_to_its_end():
    model, inputs = tiny_encoder(), windows()
    skimmer = tiny_skimmer(model, prune_layers=(2,))
    keep = torch.zeros(3, 8).bool()
    keep[:, 1] = True
    output = keep_blocks(skimmer, keep).run(model, **inputs)
    assert output.tokens.tolist() == [[27, 27, 10, 10], [16, 16, 12, 12], [35, 35, 9, 9]]
    torch.testing.assert_close(output.token_fraction, torch.tensor([4 / 21, 4 / 8, 4 / 30]))


@torch.no_grad()
def test_the_second_pruning_layer_has_remaining_blocks_only():
    model, inputs = tiny_encoder(), windows()
    skimmer = tiny_skimmer(model, prune_layers=(1, 3), min_blocks=2)
    first = torch.zeros(3, 8).bool()
    first[:, [0, 1]] = True
    first[2, 7] = True
    output = keep_blocks(skimmer, {1: first}).run(model, **inputs)
    assert torch.equal(output.scored[1], output.blocks.real)
    assert torch.equal(output.scored[3], first & output.blocks.real)
    assert not (output.kept[3] & ~output.kept[1]).any()
    assert (output.kept[3].sum(dim=1) >= 2).all()


@torch.no_grad()
def test_bounds_of_what_can_come_in():
    """Shorter than a block, empty, one row, a row of padding, nothing but padding."""
    model = tiny_encoder()
    skimmer = tiny_skimmer(model, block_size=64, prune_layers=(1,), thresholds=(1.0,))
    short = skimmer.run(model, **windows(rows=((3, 5),)))
    assert short.kept[1].tolist() == [[True]]
    empty = windows(rows=((3, 0), (2, 0)))
    output = skimmer.run(model, **empty)
    assert output.scores[1].shape == (2, 0)
    assert output.token_fraction.tolist() == [1.0, 1.0]
    torch.testing.assert_close(logits(output)[:, 0], plain(model, empty)[:, 0], **CLOSE)
    inputs = windows(rows=((3, 21), (5, 8)))
    for rows in ([1], [0, 1]):
        inputs["attention_mask"][rows] = 0
        inputs["passage"][rows] = False
        for pruned_logits in ("mask", "forward"):
            skimmer = tiny_skimmer(
                model, prune_layers=(1, 2), thresholds=(1.0, 1.0), pruned_logits=pruned_logits
            )
            output = skimmer.run(model, **inputs)
            assert logits(output).isfinite().all()
            assert output.tokens[1].tolist() == [0] * 4


@torch.no_grad()
def gradient_sums(module: nn.Module) -> dict[str, float]:
    """How much gradient each parameter got."""
    return {
        name: 0.0 if p.grad is None else float(p.grad.abs().sum())
        for name, p in module.named_parameters()
    }


@pytest.mark.parametrize("skim", [False, True])
def test_the_block_loss_reaches_the_encoder(skim):
    model, inputs = tiny_encoder().train(), windows()
    skimmer = tiny_skimmer(model, prune_layers=(2,), min_blocks=2, thresholds=(1.0,)).train()
    output = skimmer.run(model, **inputs, skim=skim)
    assert list(output.scores) == [1, 2, 3]
    loss = sum(x[output.scored[n]].sigmoid().sum() for n, x in output.scores.items())
    loss.backward()
    assert all(gradient_sums(skimmer.predictors).values())
    assert gradient_sums(model)["bert.encoder.layer.0.attention.self.query.weight"] > 0


def test_the_answer_loss_reaches_the_encoder_when_skimming():
    model, inputs = tiny_encoder().train(), windows()
    skimmer = tiny_skimmer(
        model, prune_layers=(2,), thresholds=(1.0,), pruned_logits="forward"
    ).train()
    output = skimmer.run(model, **inputs, skim=True)
    assert int(output.tokens[:, -1].sum()) < int(output.tokens[:, 0].sum())
    logits(output)[:, inputs["attention_mask"].bool()].sum().backward()
    assert all(v > 0 for n, v in gradient_sums(model).items() if "key.bias" not in n)
    assert not any(gradient_sums(skimmer).values())


@pytest.mark.parametrize("kind", ["bert", "mpnet", "deberta-v2"])
@torch.no_grad()
def test_bf16_autocast_is_close(kind):
    model, inputs = tiny_encoder(kind, scale=1.0), windows(kind)
    inputs["attention_mask"][1], inputs["passage"][1] = 0, False  # nothing but padding
    skimmer = tiny_skimmer(model, prune_layers=(1, 2))
    keep = torch.tensor([[True, False] * 4] * 3)
    exact = keep_blocks(skimmer, keep).run(model, **inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = keep_blocks(skimmer, keep).run(model, **inputs)
    assert rounded.start_logits.dtype == torch.float32
    real = inputs["attention_mask"].bool()
    same = logits(exact)[:, real] == MIN_LOGIT
    assert torch.equal(logits(rounded)[:, real] == MIN_LOGIT, same)
    difference = (logits(exact) - logits(rounded))[:, real][~same]
    assert difference.abs().max() < 0.05 * logits(exact)[:, real][~same].abs().max() + 0.02
    for layer, scores in exact.scores.items():
        left = exact.scored[layer]
        torch.testing.assert_close(scores[left], rounded.scores[layer][left], atol=0.3, rtol=0.05)


def test_only_the_needed_predictors_run():
    model, inputs = tiny_encoder(), windows()
    skimmer = tiny_skimmer(model, prune_layers=(2,))
    assert list(skimmer.run(model, **inputs).scores) == [2]
    assert list(skimmer.train().run(model, **inputs, skim=True).scores) == [1, 2, 3]
    assert not skimmer.run(model, **inputs).kept
    assert tiny_skimmer(model, layers=()).run(model, **inputs).scores == {}


def test_mistakes_are_named():
    model, inputs = tiny_encoder(), windows()
    for changes, words in (
        ({"layers": (2, 1)}, "ascending layer numbers"),
        ({"layers": (1,), "prune_layers": (2,), "thresholds": (0.5,)}, "layer 2"),
        ({"layers": (1,), "prune_layers": (1,)}, "as many thresholds"),
        ({"layers": (1,), "prune_layers": (1,), "thresholds": (1.5,)}, "thresholds.0 is 1.5"),
    ):
        with pytest.raises(QalibError, match=words):
            SkimConfig(PredictorConfig(), **changes)
    with pytest.raises(QalibError, match="only 3 layers"):
        tiny_skimmer(model, layers=(4,))
    skimmer = tiny_skimmer(model, prune_layers=(1,))
    with pytest.raises(QalibError, match="'layers' cannot be changed"):
        skimmer.set_options(layers=(1,))
    with pytest.raises(QalibError, match="as many thresholds"):
        skimmer.set_options(prune_layers=(1, 2))
    with pytest.raises(QalibError, match=r"made for bert with 3 layers, 4 heads and width 16.*2"):
        skimmer.run(tiny_encoder(num_hidden_layers=2), **inputs)


@torch.no_grad()
def test_the_fraction_is_that_of_the_last_pruning_layer():
    model, inputs = tiny_encoder(), windows()
    skimmer = tiny_skimmer(model, prune_layers=(1, 2))
    first = torch.arange(8).expand(3, -1) < 2
    keep = {1: first, 2: torch.arange(8).expand(3, -1) == 1}
    output = keep_blocks(skimmer, keep).run(model, **inputs)
    torch.testing.assert_close(output.token_fraction, torch.tensor([4 / 21, 4 / 8, 4 / 30]))


@pytest.mark.parametrize(("neighbours", "fraction"), [(1, 0.0), (0, 0.4)])
@torch.no_grad()
def test_the_rules_of_the_settings_choose_the_blocks(neighbours, fraction):
    model, inputs = tiny_encoder(), windows()
    rules = {"neighbours": neighbours, "min_pruned_fraction": fraction}
    skimmer = tiny_skimmer(model, prune_layers=(2,), thresholds=(1.0,), **rules)
    output, changed = skimmer.run(model, **inputs), 0
    for row, tokens in enumerate((27, 16, 35)):
        real = output.blocks.real[row].tolist()
        scores, sizes = output.scores[2][row].tolist(), output.blocks.sizes[row].tolist()
        kept = slow_choice(scores, real, 1.0, 1, neighbours)
        gone = sum(size for block, size in enumerate(sizes) if block not in kept)
        kept = kept if gone >= fraction * tokens else [k for k, there in enumerate(real) if there]
        assert output.kept[2][row].nonzero().flatten().tolist() == kept
        changed += kept != slow_choice(scores, real, 1.0, 1, 0)
    assert changed
