"""A student of fewer layers: which ones stay, in models of every family."""

import pytest
import torch
from tiny_encoders import CONFIGS, tiny_encoder, windows
from transformers import AutoModelForQuestionAnswering

from qalib.distill.encoders import keep_layers, spread_layers
from qalib.errors import QalibError


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
        own = {n: t.clone() for n, t in model.state_dict().items() if "layer.1." in n}
        keep_layers(model, [2])
        shallow = model.base_model(**inputs, output_hidden_states=True).hidden_states
    assert (len(states), len(shallow)) == (4, 2)
    torch.testing.assert_close(shallow[0], states[0])  # embeddings
    left = model.state_dict()
    assert own
    assert all(torch.equal(left[n.replace("layer.1.", "layer.0.")], t) for n, t in own.items())
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
