"""Other ways to process fewer tokens give the logits of literal references."""

from dataclasses import replace

import pytest
import torch
from tiny import examples, tiny_reader

from qalib.data.batching import collate
from qalib.data.windows import WindowConfig, make_windows
from qalib.errors import QalibError
from qalib.inference import QuestionAnswerer
from qalib.skim.baselines import (
    LexicalReader,
    OnnxReader,
    PaddedReader,
    passage_blocks,
    top_blocks,
)
from qalib.skim.blocks import make_blocks
from qalib.skim.padded import MIN_LOGIT


@pytest.fixture(scope="module")
def reader():
    """A tiny reader that attends to some tokens much more than to others."""
    reader = tiny_reader().eval()
    with torch.no_grad():
        for name, parameter in reader.encoder.named_parameters():
            if "query" in name or "key" in name:
                parameter.mul_(30)
            elif "qa_outputs" in name:
                parameter.mul_(20)
    return reader


@pytest.fixture(scope="module")
def batch(reader):
    """Five questions of different lengths, padded."""
    windows = make_windows(examples(5), reader.tokenizer, WindowConfig())
    assert len({len(window) for window in windows}) > 1
    return collate(windows)


def logits(output) -> torch.Tensor:
    return torch.stack([output.start_logits, output.end_logits], dim=-1)


def row_of(batch, row: int):
    """One question of a batch, without padding."""
    length = int(batch.inputs["attention_mask"][row].sum())
    inputs = {name: x[row : row + 1, :length] for name, x in batch.inputs.items()}
    mask = batch.mask[row : row + 1, :length]
    return replace(batch, inputs=inputs, mask=mask, num_tokens=length)


@torch.no_grad()
def test_readers_that_drop_nothing_process_everything(reader, batch):
    full, real = reader(batch), batch.inputs["attention_mask"].bool()
    tokens = real.sum(dim=1)[:, None].expand(-1, 3)
    lexical = LexicalReader(reader, 1.0, 8)
    for baseline in (PaddedReader(reader, 96), PaddedReader(reader, 8), lexical):
        output = baseline.eval()(batch)
        assert output.start_logits.shape == batch.mask.shape
        torch.testing.assert_close(logits(output)[real], logits(full)[real], atol=2e-4, rtol=1e-4)
    assert torch.equal(output.aux.tokens, tokens)


@torch.no_grad()
def test_the_lexical_filter_gives_the_encoder_a_shorter_text(reader, batch):
    """Blocks by hand: those that repeat most of the question's words, rare ones first."""
    output = LexicalReader(reader, 0.6, 4)(batch)
    shorter = 0
    for row in range(len(batch)):
        alone = row_of(batch, row)
        ids, passage = alone.inputs["input_ids"][0].tolist(), alone.mask[0].tolist()
        first, last = passage.index(True), len(ids) - 1
        asked = set(ids[1 : first - 1])
        blocks = [range(a, min(a + 4, last)) for a in range(first, last, 4)]
        count = {t: ids[first:last].count(t) for t in asked}
        scores = [sum(1 / count[t] for t in asked & {ids[i] for i in b}) for b in blocks]
        room, kept = 0.6 * len(ids) - (len(ids) - (last - first)), []
        for n, block in enumerate(sorted(blocks, key=lambda b: -scores[blocks.index(b)])):
            if n == 0 or sum(map(len, kept)) + len(block) / 2 <= room:
                kept.append(block)
        inside = {i for block in kept for i in block}
        stays = [i for i in range(len(ids)) if not passage[i] or i in inside]
        inputs = {name: x[:, stays] for name, x in alone.inputs.items()}
        expected = logits(reader(replace(alone, inputs=inputs, mask=alone.mask[:, stays])))[0]
        mine = logits(output)[row]
        torch.testing.assert_close(mine[stays], expected, atol=2e-4, rtol=1e-4)
        dropped = [i for i in range(len(ids)) if i not in stays]
        assert (mine[dropped] == MIN_LOGIT).all()
        assert output.aux.tokens[row].tolist() == [len(stays)] * 3
        shorter += len(dropped)
    assert shorter > 10


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_the_top_blocks_come_closest_to_the_fraction(fraction):
    torch.manual_seed(3)
    real = torch.arange(40) < torch.tensor([40, 31, 24])[:, None]
    passage = real & (torch.arange(40) >= 7)
    passage[2] = False
    blocks = make_blocks(torch.ones_like(real, dtype=torch.long), real, passage, (), size=5)
    scores = torch.rand(3, blocks.count)
    kept = top_blocks(scores, blocks, fraction)
    assert not kept[2].any()
    for row, tokens in ((0, 40), (1, 31)):
        order = [k for k in scores[row].argsort(descending=True).tolist() if blocks.real[row, k]]
        totals = [7 + int(blocks.sizes[row][order[:n]].sum()) for n in range(len(order) + 1)]
        chosen = int(kept[row].sum())
        assert set(kept[row].nonzero().flatten().tolist()) == set(order[:chosen])
        distance = [abs(total - fraction * tokens) for total in totals]
        assert chosen >= 1
        assert distance[chosen] <= min(distance[1:]) + 1e-6


def test_questions_are_answered_with_padding(reader, batch):
    blocks = passage_blocks(reader.tokenizer, batch, 8)
    assert torch.equal(blocks.passage, batch.mask)
    plain, padded = (
        QuestionAnswerer(r).answer_many(examples(4)) for r in (reader, PaddedReader(reader, 64))
    )
    assert [a[0].text for a in padded] == [a[0].text for a in plain]


@torch.no_grad()
def test_onnx_gives_the_same_logits(reader, batch, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    exported = [OnnxReader(reader, tmp_path / "graph", int8) for int8 in (False, True)]
    full, real = logits(reader(batch)), batch.inputs["attention_mask"].bool()
    for onnx, tolerance in zip(exported, (1e-3, 0.5), strict=True):
        output = logits(onnx(batch))
        assert output.shape == full.shape
        torch.testing.assert_close(output[real], full[real], atol=tolerance, rtol=1e-3)
    alone = row_of(batch, 1)
    assert exported[0](alone).start_logits.shape == alone.mask.shape


def test_the_extra_that_is_missing_is_named(reader, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(QalibError, match=r"qalib\[bench\]"):
        OnnxReader(reader, tmp_path)
