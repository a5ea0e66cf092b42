"""Encoders as teachers and students: which layers stay, and attention on the question."""

import pytest
import torch
from tiny import examples, tiny_reader
from tiny_encoders import CONFIGS, tiny_encoder, windows
from transformers import AutoModelForQuestionAnswering

from qalib.data.windows import WindowConfig
from qalib.distill.encoders import (
    AlignmentReader,
    keep_layers,
    question_place,
    question_spans,
    spread_layers,
)
from qalib.errors import QalibError
from qalib.training import encoder_task


@pytest.mark.parametrize(
    ("count", "depth", "kept"),
    [(3, 6, (2, 4, 6)), (3, 12, (4, 8, 12)), (2, 5, (2, 5)), (1, 4, (4,)), (4, 4, (1, 2, 3, 4))],
)
def test_layers_are_spread_evenly_up_to_the_last(count, depth, kept):
    assert spread_layers(count, depth) == kept


@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if kind != "albert"])
def test_a_model_with_some_of_its_layers_is_saved_and_loaded_as_such(kind, tmp_path):
    model = tiny_encoder(kind)
    inputs = windows(kind)
    inputs.pop("passage")
    with torch.no_grad():
        states = model.base_model(**inputs, output_hidden_states=True).hidden_states
        keep_layers(model, [2])
        shallow = model.base_model(**inputs, output_hidden_states=True).hidden_states
    assert (len(states), len(shallow)) == (4, 2)
    torch.testing.assert_close(shallow[0], states[0])  # embeddings
    model.save_pretrained(tmp_path)
    again = AutoModelForQuestionAnswering.from_pretrained(tmp_path).eval()
    assert again.config.num_hidden_layers == 1
    with torch.no_grad():
        assert torch.equal(again(**inputs).start_logits, model(**inputs).start_logits)


@pytest.mark.parametrize(
    ("kind", "numbers", "said"),
    [
        ("bert", [4], "no layer 4 of 3"),
        ("bert", [0, 1], "no layer 0 of 3"),
        ("bert", [], "no layer 0 of 3"),
        ("albert", [1], "not one list"),
    ],
)
def test_layers_that_are_not_there_are_refused(kind, numbers, said):
    with pytest.raises(QalibError, match=said):
        keep_layers(tiny_encoder(kind), numbers)


def test_attention_on_the_question_is_that_of_transformers():
    reader = tiny_reader(dropout=0.0).eval()
    rows = examples(6)
    config = WindowConfig(max_length=96, doc_stride=16, max_query_length=16)
    task, made = encoder_task(reader, rows, config)
    batch = task.collate(range(6))
    with torch.no_grad():
        plain = reader(batch)
        reader.encoder.set_attn_implementation("eager")
        maps = reader.encoder(**batch.inputs, output_attentions=True).attentions[-1]
        output = AlignmentReader(reader)(batch)
    torch.testing.assert_close(output.start_logits, plain.start_logits, rtol=1e-4, atol=1e-5)
    assert question_place(reader.tokenizer) == (1, 1)
    for row, span in enumerate(question_spans(made, rows, reader.tokenizer)):
        words = reader.tokenizer.tokenize(rows[row].question)
        assert span.question_tokens == len(words) == int(output.attentions["question"][row].sum())
        share = maps[row].mean(dim=0)[span.positions, 1 : 1 + len(words)]
        share = share / share.sum(dim=1, keepdim=True)
        found = output.attentions["align 1"][row, span.positions]
        torch.testing.assert_close(found[:, : len(words)], share, rtol=1e-4, atol=1e-6)
        assert not found[:, len(words) :].any()


def test_a_model_without_attention_is_refused():
    reader = AlignmentReader(tiny_reader())
    reader.encoder.set_attn_implementation("sdpa")
    task, _ = encoder_task(reader, examples(2), WindowConfig())
    with pytest.raises(QalibError, match="does not return its attention"):
        reader(task.collate([0, 1]))
