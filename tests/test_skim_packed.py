"""The packed pass against the padded one, in every family, and what it must not depend on."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_encoders import CONFIGS, MassConfig, tiny_encoder, tiny_skimmer, windows

from qalib.errors import QalibError
from qalib.skim import packed, skimmer
from qalib.skim.keep import unless_whole, window_blocks
from qalib.skim.packed import PackedWalk
from qalib.skim.predictors import PredictorConfig
from qalib.skim.settings import SkimConfig
from qalib.skim.skimmer import Skimmer
from qalib.skim.stacks import runs, whole
from qalib.skim.walk import FLOOR, Walk
from qalib.skim.weights import PORTION, LaidOut, filled_up, halve, quantize

CLOSE = {"atol": 3e-5, "rtol": 1e-4}
MIXED = ((3, 21), (5, 8), (2, 30), (1, 0), (4, 17), (3, 17), (5, 2))


def logits(output) -> torch.Tensor:
    """Start and end logits in one.  (2, B, L)"""
    return torch.stack([output.start_logits, output.end_logits])


def both(skimmer, model, inputs, **how):
    """The same pass by ``Walk``, which gradients select, and packed."""
    with torch.enable_grad():
        padded = skimmer.run(model, **inputs, **how)
    with torch.inference_mode():
        return padded, skimmer.run(model, **inputs, **how)


def assert_same(one, other, real, **tolerance):
    """Logits, scores, decisions, counts: all that a pass tells. Logits of padding mean nothing."""
    tolerance = tolerance or CLOSE
    torch.testing.assert_close(logits(one)[:, real], logits(other)[:, real], **tolerance)
    assert torch.equal(one.tokens, other.tokens)
    assert torch.equal(one.blocks.of, other.blocks.of)
    assert torch.equal(one.dropped, other.dropped)
    for name in ("kept", "seen", "scores", "early"):
        assert getattr(one, name).keys() == getattr(other, name).keys()
    for layer, scores in one.scores.items():
        assert torch.equal(one.seen[layer], other.seen[layer])
        torch.testing.assert_close(scores, other.scores[layer], atol=1e-4, rtol=1e-3)
    for layer, kept in one.kept.items():
        assert torch.equal(kept, other.kept[layer])
    for layer, early in one.early.items():
        mine, theirs = (torch.stack(x)[:, real] for x in (early, other.early[layer]))
        torch.testing.assert_close(mine, theirs, **tolerance)


def halfway(skimmer, model, inputs) -> tuple[float, ...]:
    """Thresholds that about half the blocks pass, far from every score."""
    with torch.no_grad():
        output = skimmer.run(model, **inputs, skim=False)
    found = []
    for layer in skimmer.config.skim_at:
        scores = output.scores[layer][output.blocks.real].sigmoid().sort().values
        gaps = scores[1:] - scores[:-1]
        middle = gaps[len(gaps) // 4 : -len(gaps) // 4]  # the widest gap in the middle half
        place = int(middle.argmax()) + len(gaps) // 4
        found.append(float(scores[place] + scores[place + 1]) / 2)
    return tuple(found)


@pytest.mark.parametrize("restore", ["minus-infinity", "forward"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_packed_rows_are_the_padded_ones(kind, restore):
    """A cascade, with predictors that look back over what has gone, and answer heads."""
    model, inputs = tiny_encoder(kind), windows(kind, rows=MIXED)
    skimmer = tiny_skimmer(
        model, MassConfig(back=1), skim_at=(1, 2), restore=restore, answer_head=restore == "forward"
    )
    skimmer.tune(thresholds=halfway(skimmer, model, inputs))
    padded, got = both(skimmer, model, inputs)
    assert_same(padded, got, inputs["attention_mask"].bool())
    counts = got.tokens.sum(dim=0).tolist()
    assert counts[0] > counts[1] > counts[2]
    watched = both(skimmer, model, inputs, skim=False)
    assert_same(*watched, inputs["attention_mask"].bool())


@pytest.mark.parametrize("kind", CONFIGS)
@torch.inference_mode()
def test_keeping_everything_gives_the_models_own_logits(kind):
    model, inputs = tiny_encoder(kind), windows(kind, rows=MIXED)
    skimmer = tiny_skimmer(model, skim_at=(1, 2), thresholds=(0.0, 0.0))
    own = model(**{name: x for name, x in inputs.items() if name != "passage"})
    real = inputs["attention_mask"].bool()
    got = skimmer.run(model, **inputs)
    torch.testing.assert_close(logits(got)[:, real], logits(own)[:, real], **CLOSE)


PREDICTORS = ("diagonal", "equation", "question", "handcrafted", "lexical", "late", "combined")


@pytest.mark.parametrize("kind", ["bert", "mpnet", "modernbert"])
def test_the_kits_predictors_see_the_same(kind):
    """From entries of the map and packed states as from the whole map and padded ones."""
    model, inputs = tiny_encoder(kind), windows(kind, rows=MIXED)
    real = inputs["attention_mask"].bool()
    for name in PREDICTORS:
        torch.manual_seed(0)
        config = SkimConfig(PredictorConfig(name, 4), (1, 3), (1, 3), (0.5, 0.5))
        skimmer = Skimmer.beside(model, config).eval()
        skimmer.tune(thresholds=halfway(skimmer, model, inputs))
        assert_same(*both(skimmer, model, inputs), real)


ROW = st.tuples(st.integers(0, 5), st.integers(0, 26))


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(ROW, min_size=1, max_size=5),
    keep=st.lists(st.integers(0, 2**7 - 1), min_size=10, max_size=10),
    told=st.booleans(),
    min_keep=st.integers(0, 2),
    neighbours=st.integers(0, 1),
    spare=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    min_tokens=st.sampled_from([0, 15, 25]),
    drop=st.sampled_from([0.0, 0.45, 0.55, 1.0]),
)
def test_any_rows_and_any_choice(rows, keep, told, min_keep, neighbours, spare, min_tokens, drop):
    """Empty passages, rows within a block, one row, an oracle's choice; all rules at once."""
    model, inputs = tiny_encoder("mpnet"), windows("mpnet", rows=tuple(rows))
    skimmer = tiny_skimmer(
        model,
        MassConfig(back=1),
        skim_at=(1, 3),
        thresholds=(0.5, 0.5),
        min_keep=min_keep,
        neighbours=neighbours,
        spare=spare,
        min_tokens=min_tokens,
        drop=drop,
    )
    how = {"optional": torch.tensor([bool(k & 1) for k in keep[: len(rows)]])}
    if told:
        count = -(-max(passage for _, passage in rows) // 4)
        bits = [[[bool(k >> b & 1) for b in range(count)] for k in half] for half in halves(keep)]
        how["keep"] = {
            layer: torch.tensor(half[: len(rows)]).view(len(rows), count)
            for layer, half in zip((1, 3), bits, strict=True)
        }
    assert_same(*both(skimmer, model, inputs, **how), inputs["attention_mask"].bool())


def halves(values):
    """A list in two."""
    return values[: len(values) // 2], values[len(values) // 2 :]


@pytest.mark.parametrize("kind", ["bert", "mpnet", "modernbert"])
@torch.inference_mode()
def test_a_batch_is_its_members_in_any_order(kind):
    model, inputs = tiny_encoder(kind), windows(kind, rows=MIXED)
    skimmer = tiny_skimmer(model, MassConfig(back=1), skim_at=(1, 2), restore="forward")
    skimmer.tune(thresholds=halfway(skimmer, model, inputs))
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


@pytest.mark.parametrize("kind", ["bert", "mpnet", "modernbert"])
def test_padding_may_stand_anywhere(kind):
    """On the left, between tokens, in whole rows: places in the input are what counts."""
    model, inputs = tiny_encoder(kind), windows(kind, rows=((3, 21), (5, 8), (2, 30), (2, 9)))
    inputs = {name: x.clone() for name, x in inputs.items()}
    for name in inputs:
        inputs[name][1] = inputs[name][1].roll(19)  # 16 tokens, now at the end
    inputs["attention_mask"][2, [3, 9, 20]] = 0
    inputs["passage"][2, 9] = inputs["passage"][2, 20] = False
    inputs["attention_mask"][3], inputs["passage"][3] = 0, False
    skimmer = tiny_skimmer(model, MassConfig(back=1), skim_at=(1, 2), thresholds=(0.5, 0.5))
    keep = torch.tensor([[True, False, True, True, False, True, False]] * 4)
    for how in ({}, {"keep": keep}):
        padded, got = both(skimmer, model, inputs, **how)
        assert_same(padded, got, inputs["attention_mask"].bool())
        assert got.tokens[3].tolist() == [0, 0, 0, 0]


@torch.inference_mode()
def test_nothing_but_padding():
    model, inputs = tiny_encoder(), windows(rows=((3, 9), (2, 5)))
    inputs["attention_mask"][:], inputs["passage"][:] = 0, False
    for restore in ("minus-infinity", "forward"):
        skimmer = tiny_skimmer(model, skim_at=(1,), restore=restore)
        output = skimmer.run(model, **inputs)
        assert (logits(output) == FLOOR).all()
        assert not output.tokens.any()


def test_blocks_that_were_cut_elsewhere():
    """Sentences of 1 to 9 tokens, longer and shorter than the predictor's block."""
    model, inputs = tiny_encoder(), windows()
    of = torch.full_like(inputs["input_ids"], -1)
    for row, cuts in enumerate(([1, 9, 4, 7], [3, 5], [9, 9, 2, 1, 9])):
        numbers = torch.arange(len(cuts)).repeat_interleave(torch.tensor(cuts))
        of[row, inputs["passage"][row]] = numbers
    for name in ("diagonal", "combined"):
        config = SkimConfig(PredictorConfig(name, 4), (1, 2), (1, 2), (0.5, 0.5))
        skimmer = Skimmer.beside(model, config).eval()
        keep = torch.tensor([[True, False, True, True, False]] * 3)
        for how in ({}, {"keep": keep}):
            padded, got = both(skimmer, model, inputs, of=of, **how)
            assert_same(padded, got, inputs["attention_mask"].bool())
    assert got.tokens[:, -1].tolist() == [27 - 9, 16 - 5, 35 - 18]


@pytest.mark.parametrize("kind", ["bert", "mpnet", "modernbert"])
def test_rows_side_by_side_with_padding_are_the_same(kind, monkeypatch):
    """As it is done on a GPU: one stack of all rows, padding hidden by the mask."""

    def together(lengths):
        row = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
        return [whole(lengths, row)]

    monkeypatch.setattr(packed, "runs", together)
    model, inputs = tiny_encoder(kind), windows(kind, rows=MIXED)
    skimmer = tiny_skimmer(model, MassConfig(back=1), skim_at=(1, 2))
    skimmer.tune(thresholds=halfway(skimmer, model, inputs))
    assert_same(*both(skimmer, model, inputs), inputs["attention_mask"].bool())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=6))
def test_stacks_are_rows_and_back(lengths):
    rows = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    values = torch.randn(len(rows), 3)
    everything = whole(lengths, rows)
    spread = everything.spread(values, 7.0)
    assert spread.shape == (len(lengths), max(1, *lengths), 3)
    for row, length in enumerate(lengths):
        assert torch.equal(spread[row, :length], values[rows == row])
        assert (spread[row, length:] == 7.0).all()
    assert torch.equal(everything.pack(spread), values)
    places = [place for length in lengths for place in range(length)]
    assert everything.places().tolist() == places
    parts = runs(lengths)
    assert [x for at in parts for x in at.lengths] == [x for x in lengths if x]
    assert all(not at.padded and set(at.lengths) == {at.length} for at in parts)
    if parts:
        packed_again = torch.cat([at.pack(at.spread(values)) for at in parts])
        assert torch.equal(packed_again, values)
    for at in parts:
        assert torch.equal(at.spread(values), spread[at.rows, : at.length])


def test_gradients_and_training_take_the_padded_way(monkeypatch):
    taken = []
    for kind in (Walk, PackedWalk):
        begin = kind.begin
        spy = lambda *x, begin=begin, name=kind.__name__: taken.append(name) or begin(*x)  # noqa: E731
        monkeypatch.setattr(getattr(skimmer, kind.__name__), "begin", spy)
    model, inputs = tiny_encoder(), windows()
    beside = tiny_skimmer(model, skim_at=(1,))
    beside.run(model, **inputs)
    with torch.no_grad():
        beside.run(model, **inputs)
        beside.run(model, **inputs, skim=False)
        beside.run(model.train(), **inputs)
        beside.train().run(model.eval(), **inputs)
    assert taken == ["Walk", "PackedWalk", "PackedWalk", "Walk", "Walk"]


# Rows that are not worth shortening


@settings(max_examples=30, deadline=None)
@given(
    keep=st.lists(st.integers(0, 2**8 - 1), min_size=3, max_size=3),
    spare=st.sampled_from([0.0, 0.1, 0.4, 0.75, 1.0]),
    min_tokens=st.sampled_from([0, 16, 17, 28]),
)
def test_a_row_goes_on_whole_by_its_own_tokens(keep, spare, min_tokens):
    inputs = windows()
    real = inputs["attention_mask"].bool()
    blocks = window_blocks(inputs["input_ids"], real, inputs["passage"], 4)
    kept = torch.tensor([[bool(k >> b & 1) for b in range(8)] for k in keep]) & blocks.real
    got = unless_whole(kept, blocks, spare, min_tokens)
    for row, tokens in enumerate((27, 16, 35)):
        of = blocks.of[row].tolist()
        gone = sum(b >= 0 and not kept[row, b] for b in of)
        stays = tokens < min_tokens or gone < spare * tokens
        assert torch.equal(got[row], (blocks.real if stays else kept)[row])


@pytest.mark.parametrize("grad", [False, True])
def test_short_rows_are_neither_skimmed_nor_judged(grad):
    model, inputs = tiny_encoder(), windows()  # rows of 27, 16 and 35 tokens
    skimmer = tiny_skimmer(model, skim_at=(2,), thresholds=(1.0,), min_tokens=20)
    asked = []
    skimmer.predictors["2"].register_forward_hook(lambda *_: asked.append(1))
    with torch.set_grad_enabled(grad):
        output = skimmer.run(model, **inputs)
        assert output.seen[2].any(dim=1).tolist() == [True, False, True]
        assert (output.scores[2][1] == FLOOR).all()
        assert torch.equal(output.kept[2][1], output.blocks.real[1])
        first, short, last = output.tokens[:, -1].tolist()
        assert short == 16
        assert first == 6 + 4 or first == 6 + 1  # the best block, which may be the last and short
        assert last == 5 + 4 or last == 5 + 2
        assert len(asked) == 1
        skimmer.tune(min_tokens=36)
        output = skimmer.run(model, **inputs)
        assert torch.equal(output.kept[2], output.blocks.real)
        assert len(asked) == 1
        assert list(skimmer.run(model, **inputs, skim=False).scores) == [1, 2, 3]
        assert len(asked) == 2  # who only watches sees all rows


def test_a_row_that_has_become_short_is_left_alone():
    model, inputs = tiny_encoder(), windows()
    skimmer = tiny_skimmer(model, skim_at=(1, 2), thresholds=(1.0, 1.0), min_keep=3, min_tokens=20)
    skimmer.tune(min_keep=3)
    padded, got = both(skimmer, model, inputs)
    assert_same(padded, got, inputs["attention_mask"].bool())
    assert not got.seen[2][0].any()  # 27 tokens at first, 18 behind layer 1
    assert torch.equal(got.kept[2], got.kept[1])


@pytest.mark.parametrize(
    "settings", [{"spare": -0.1}, {"spare": 1.1}, {"min_tokens": -1}, {"drop": -0.1}, {"drop": 2.0}]
)
def test_rules_without_sense_are_refused(settings):
    with pytest.raises(QalibError, match=r"spare|drop is a probability"):
        SkimConfig(MassConfig(), (1,), **settings)


# Rows that need not be read


def dropping(model, inputs, restore: str = "minus-infinity", **changes):
    """A skimmer that drops the rows below the middle of three, and what it gives."""
    settings = {"skim_at": (2,), "thresholds": (0.0,), "restore": restore} | changes
    skimmer = tiny_skimmer(model, MassConfig(back=1), **settings)
    with torch.inference_mode():
        best = skimmer.run(model, **inputs).best.sigmoid().sort().values
        skimmer.tune(drop=float(best[0] + best[1]) / 2)
        return skimmer, skimmer.run(model, **inputs, optional=torch.tensor([True] * 3))


@pytest.mark.parametrize("restore", ["minus-infinity", "forward"])
@pytest.mark.parametrize("kind", ["bert", "mpnet", "modernbert"])
@torch.inference_mode()
def test_a_dropped_row_costs_and_says_nothing_more(kind, restore):
    model, inputs = tiny_encoder(kind), windows(kind)
    skimmer, got = dropping(model, inputs, restore)
    whole = skimmer.run(model, **inputs)
    (gone,) = got.dropped.nonzero().flatten().tolist()
    assert gone == int(whole.best.argmin())
    assert got.tokens[gone].tolist() == [whole.tokens[gone, 0], whole.tokens[gone, 1], 0, 0]
    assert got.read.tolist() == [float(row != gone) for row in range(3)]
    assert (logits(got)[:, gone] == FLOOR).all()
    for row in {0, 1, 2} - {gone}:
        real = inputs["attention_mask"][row].bool()
        ours, alone = (logits(x)[:, row, real] for x in (got, whole))
        torch.testing.assert_close(ours, alone, **CLOSE)


@torch.inference_mode()
def test_only_optional_rows_are_dropped_and_a_bound_of_0_drops_none():
    model, inputs = tiny_encoder(), windows()
    skimmer, _ = dropping(model, inputs)
    skimmer.tune(thresholds=(0.6,))
    everyone, nobody = torch.tensor([True] * 3), torch.tensor([False] * 3)
    skimmer.tune(drop=1.0)
    assert skimmer.run(model, **inputs, optional=everyone).dropped.all()
    one = skimmer.run(model, **inputs, optional=torch.tensor([False, True, False]))
    assert one.dropped.tolist() == [False, True, False]
    spared = skimmer.run(model, **inputs, optional=nobody)
    skimmer.tune(drop=0.0)
    plain = skimmer.run(model, **inputs)
    for output in (spared, skimmer.run(model, **inputs, optional=everyone)):
        assert not output.dropped.any()
        assert torch.equal(logits(output), logits(plain))
        assert torch.equal(output.tokens, plain.tokens)


@torch.inference_mode()
def test_rows_that_nobody_judged_are_not_dropped():
    model, inputs = tiny_encoder(), windows(rows=((3, 21), (5, 8), (2, 0)))
    skimmer = tiny_skimmer(model, skim_at=(2,), thresholds=(1.0,), min_tokens=20, drop=1.0)
    output = skimmer.run(model, **inputs, optional=torch.tensor([True] * 3))
    assert output.dropped.tolist() == [True, False, False]  # 27, 16 and 5 tokens; one is empty
    assert output.best[1:].tolist() == [FLOOR, FLOOR]


# Fewer bits


KEEP = torch.tensor([[True, False] * 4] * 3)


def difference(one, other, real) -> float:
    """The largest difference of logits, as a share of the largest logit."""
    read = real & (one.start_logits > FLOOR)
    assert torch.equal(one.start_logits[real] > FLOOR, other.start_logits[real] > FLOOR)
    gap = (logits(one) - logits(other))[:, read].abs().max()
    return float((gap / logits(one)[:, read].abs().max()).detach())


@pytest.mark.parametrize("kind", CONFIGS)
def test_bf16_and_int8_stay_close(kind):
    """Tolerances as shares of the largest logit: bf16 rounds to 1/256, int8 to 1/127, 3 layers."""
    model, inputs = tiny_encoder(kind, scale=2.0), windows(kind)
    skimmer = tiny_skimmer(model, skim_at=(1, 2))
    real = inputs["attention_mask"].bool()
    exact = both(skimmer, model, inputs, keep=KEEP)[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        padded, rounded = both(skimmer, model, inputs, keep=KEEP)
        lighter = both(skimmer, halve(model), inputs, keep=KEEP)[1]
    assert rounded.start_logits.dtype == torch.float32
    assert difference(exact, rounded, real) < 0.03
    assert difference(padded, rounded, real) < 0.03
    torch.testing.assert_close(logits(lighter), logits(rounded))
    before = {name: x.clone() for name, x in model.state_dict().items()}
    small = both(skimmer, quantize(model), inputs, keep=KEEP)[1]
    assert 0 < difference(exact, small, real) < 0.08
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_only_the_layers_are_made_smaller():
    model = tiny_encoder("electra")
    smaller = quantize(model)
    assert type(smaller.electra.embeddings_project) is torch.nn.Linear
    assert type(smaller.qa_outputs) is torch.nn.Linear
    layer = smaller.electra.encoder.layer[0]
    assert layer.intermediate.dense.weight().dtype == torch.qint8
    half = halve(model).electra
    assert half.encoder.layer[2].attention.self.query.weight.dtype == torch.bfloat16
    assert half.embeddings_project.weight.dtype == torch.float32


@pytest.mark.parametrize("rows", [(1,), (5, 7), (PORTION - 1,), (2, PORTION), (2, 3 * PORTION)])
@torch.inference_mode()
def test_weights_laid_out_multiply_as_autocast(rows):
    """Also where rows go through in portions: narrower layers never do, wider ones never do."""
    torch.manual_seed(0)
    for shape in ((640, 576), (48, 32), (576, 640)):
        linear = torch.nn.Linear(*shape)
        rounded = torch.nn.Linear(*shape, dtype=torch.bfloat16)
        rounded.load_state_dict(linear.state_dict())
        try:
            laid_out = LaidOut(rounded)
        except (AttributeError, NotImplementedError, RuntimeError):
            return  # a processor without such units: ``halve`` leaves the layer as it is
        x = torch.randn(*rows, shape[0])
        with torch.autocast("cpu", torch.bfloat16):
            expected = linear(x)
        for asked in (x, x.bfloat16()):
            torch.testing.assert_close(laid_out(asked), expected, atol=1e-3, rtol=0.01)


def test_few_numbers_of_rows_reach_the_library():
    """Each of them costs it machine code; little is added for that, and only in bf16."""
    counts = range(1, 4097)
    one = torch.randn(1, 1).bfloat16()
    reached = [len(filled_up(one.expand(count, 1))) for count in counts]
    assert len(set(reached)) < 120
    assert all(n <= m <= max(n + 7, n * 17 / 16) for n, m in zip(counts, reached, strict=True))
    states = torch.randn(3, 61, 4)
    torch.testing.assert_close(filled_up(states.bfloat16())[:183], states.bfloat16().flatten(0, 1))
    assert filled_up(states).shape == (183, 4)
    assert filled_up(states[:0].bfloat16()).shape == (0, 4)


def test_without_the_operators_weights_are_bf16_all_the_same(monkeypatch):
    def gone(*_):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(LaidOut, "_multiply", gone)
    query = halve(tiny_encoder()).bert.encoder.layer[0].attention.self.query
    assert type(query) is torch.nn.Linear
    assert query.weight.dtype == torch.bfloat16


def test_an_attached_model_is_not_copied():
    model = tiny_encoder()
    tiny_skimmer(model, skim_at=(1,)).attach(model)
    for copied in (quantize, halve):
        with pytest.raises(QalibError, match="detach"):
            copied(model)
