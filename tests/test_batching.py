"""Batches: every item once, within the budget, the same for the same seed."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import examples

from qalib.data.batching import collate, inference_batches, padded_length, training_batches
from qalib.data.windows import WindowConfig, make_windows
from qalib.models.folders import MINILM, model_folder

lengths = st.lists(st.integers(1, 400), max_size=200)


@settings(max_examples=60, deadline=None)
@given(lengths, st.integers(1, 2000), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_is_a_partition_within_the_budget(sizes, budget, seed, epoch):
    for plan in (training_batches(sizes, budget, seed, epoch), inference_batches(sizes, budget)):
        assert sorted(i for batch in plan for i in batch) == list(range(len(sizes)))
        for batch in plan:
            longest = padded_length(max(sizes[i] for i in batch))
            assert len(batch) == 1 or len(batch) * longest <= budget


def test_epochs_differ_and_repeat():
    sizes = list(range(1, 300))
    first = training_batches(sizes, 1000, seed=1, epoch=0)
    assert first == training_batches(sizes, 1000, seed=1, epoch=0)
    assert first != training_batches(sizes, 1000, seed=1, epoch=1)
    assert first != training_batches(sizes, 1000, seed=2, epoch=0)


def test_buckets_waste_little_padding():
    sizes = [20 + (37 * n) % 300 for n in range(5000)]
    plan = training_batches(sizes, 4096, seed=0, epoch=0)
    padded = sum(len(b) * padded_length(max(sizes[i] for i in b)) for b in plan)
    assert sum(sizes) / padded > 0.93
    assert len({(len(b), padded_length(max(sizes[i] for i in b))) for b in plan}) < 150


def test_collate_pads_with_nothing_real():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder(MINILM))
    windows = make_windows(examples(6), tokenizer, WindowConfig())
    batch = collate(windows, tokenizer.pad_token_id)
    for row, window in enumerate(windows):
        real = batch.inputs["attention_mask"][row]
        assert real.sum() == len(window)
        assert not batch.mask[row, len(window) :].any()
        assert batch.mask[row].sum() == len(window.offsets)
        gold = batch.answer_spans[row][batch.answer_weights[row] > 0]
        assert gold.tolist() == window.spans.tolist()
        assert batch.answer_weights[row].sum().item() == pytest.approx(1.0)
    assert batch.num_tokens == sum(len(w) for w in windows)
    assert collate(windows, 0, null=True).mask[:, 0].all()
