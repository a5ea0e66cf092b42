"""Checkpoint folders: adapters that come back, damage that is seen, other model types."""

import json
import shutil
from functools import partial

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from tiny import TINY, tiny_reader
from torch import nn
from torch.nn.utils import parametrize

from qalib.checkpoints import save_weights, trained_tensors
from qalib.data.schema import file_sha256
from qalib.data.windows import WindowConfig
from qalib.errors import QalibError
from qalib.models.encoder import EncoderConfig, EncoderReader, build_encoder
from qalib.models.pretrained import (
    WEIGHTS,
    LowRankChange,
    checkpoint_hash,
    load_reader,
    low_rank_linear,
    merge_low_rank,
    model_path,
    save_model,
    save_reader,
    train_low_rank,
    windows_of,
)


def tiny_change(config, rank=4):
    """An encoder with a random change of low rank, and its trained tensors."""
    reader = build_encoder(config, seed=0)
    train_low_rank(reader.encoder, rank)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in reader.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return reader, trained_tensors(reader)


def test_a_change_of_low_rank_is_trained_and_merged():
    config = EncoderConfig(**{**vars(TINY), "train_embeddings": False})
    before = build_encoder(config, seed=0)
    reader, trained = tiny_change(config)
    assert not any(".original" in name or "word_emb" in name for name in trained)
    reader.eval()
    ids = torch.arange(2, 14).view(1, 12)
    logits = reader.encoder(input_ids=ids).start_logits
    merge_low_rank(reader.encoder)
    torch.testing.assert_close(reader.encoder(input_ids=ids).start_logits, logits)
    after = dict(reader.named_parameters())
    assert set(after) == {name for name, _ in before.named_parameters()}
    name = "encoder.bert.encoder.layer.0.attention.self.query.weight"
    change = after[name] - dict(before.named_parameters())[name]
    assert torch.linalg.matrix_rank(change) == 4


def test_low_rank_gradients_are_those_of_the_sum():
    """A and B get the gradients of x (W + B A)^T + b."""
    linear, change = nn.Linear(8, 6), LowRankChange(6, 8, rank=2)
    nn.init.normal_(change.left)
    linear.weight.requires_grad_(False)
    parametrize.register_parametrization(linear, "weight", change)
    x, found = torch.randn(3, 5, 8), []
    for product in (linear, partial(low_rank_linear, linear)):
        product(x).square().sum().backward()
        trained = (change.left, change.right, linear.bias)
        found.append([parameter.grad.clone() for parameter in trained])
        linear.zero_grad()
    torch.testing.assert_close(found[0], found[1])


def test_a_checkpoint_comes_back_and_damage_is_seen(tmp_path):
    """A checkpoint is the trained reader, to within its 16 bits."""
    config = EncoderConfig(**{**vars(TINY), "train_embeddings": False})
    reader, trained = tiny_change(config)
    windows = WindowConfig(max_length=192, doc_stride=64, max_query_length=32)
    save_reader(tmp_path, config, windows, trained, rank=4)
    merge_low_rank(reader.encoder)
    again = dict(load_reader(tmp_path).named_parameters())
    for name, tensor in reader.named_parameters():
        torch.testing.assert_close(again[name], tensor, rtol=2e-3, atol=2e-3, msg=name)
    assert windows_of(tmp_path) == windows
    stored = json.loads((tmp_path / "adapter_config.json").read_text())
    assert stored["base_model_name_or_path"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert checkpoint_hash(tmp_path) == file_sha256(tmp_path / WEIGHTS)
    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(QalibError, match="damaged"):
        load_reader(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(QalibError, match="no such weights"):
        load_reader(tmp_path)
    (tmp_path / "qalib.json").write_text("{")
    with pytest.raises(QalibError, match="JSON"):
        load_reader(tmp_path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of save_model."""
    folder = tmp_path_factory.mktemp("models") / "saved"
    save_model(folder, tiny_reader(layers=1), WindowConfig(192, 64, 32))
    return folder


def logits(model, tokenizer):
    """Of a plain model of transformers, for one question."""
    return model.eval()(**tokenizer("Who?", "Ada met Bo.", return_tensors="pt")).start_logits


def test_a_saved_model_is_one_of_transformers(saved):
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    reader = load_reader(saved)
    plain = AutoModelForQuestionAnswering.from_pretrained(saved)
    tokenizer = AutoTokenizer.from_pretrained(saved)
    torch.testing.assert_close(logits(plain, tokenizer), logits(reader.encoder, reader.tokenizer))
    assert windows_of(saved) == WindowConfig(192, 64, 32)
    assert not reader.untrained
    assert "question-answering" in (saved / "README.md").read_text()
    with pytest.raises(QalibError, match="exists already"):
        save_model(saved, reader, WindowConfig())
    assert not list(saved.parent.glob("*.saving"))


def copy_of(saved, place):
    """The folder without the checksums of qalib.json, as transformers would have written it."""
    folder = shutil.copytree(saved, place / "copy")
    (folder / "qalib.json").unlink()
    return folder


def change_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})


def without_head(folder):
    change_weights(folder, lambda t: {n: x for n, x in t.items() if "qa_outputs" not in n})


def without_a_layer(folder):
    change_weights(folder, lambda t: {n: x for n, x in t.items() if "layer.0.output" not in n})


def remove(name):
    return lambda folder: (folder / name).unlink()


def pointer(name):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    return lambda folder: (folder / name).write_text(text)


def set_config(**changes):
    def damage(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_head, "no trained question-answering head"),
        (without_a_layer, "do not fit its config.json: .* is missing"),
        (set_config(intermediate_size=64), "do not fit its config.json: .* has the shape"),
        (set_config(model_type="clip"), "no question-answering head"),
        (set_config(model_type="no-such"), "no configuration that transformers can read"),
        (set_config(hidden_size="wide"), "no configuration that transformers can read"),
        (set_config(auto_map={"AutoConfig": "a.B"}, model_type="own"), "contains custom code"),
        (cut("config.json"), "JSON"),
        (cut("model.safetensors"), "cannot be loaded .*; copy its files again"),
        (cut("tokenizer.json"), "tokenizer cannot be loaded"),
        (pointer("model.safetensors"), "cannot be loaded .* Git LFS"),
        (pointer("tokenizer.json"), "tokenizer cannot be loaded"),
        (pickled, "write it in safetensors: python -c"),
        (remove("model.safetensors"), "no file named model.safetensors"),
        (remove("tokenizer.json"), "tokenizer is missing"),
        (set_config(vocab_size=60_000), "has the shape"),
        (remove("config.json"), "no configuration"),
    ],
)
def test_what_is_wrong_with_a_folder_is_one_sentence(saved, tmp_path, damage, message):
    folder = copy_of(saved, tmp_path)
    damage(folder)
    with pytest.raises(QalibError, match=message) as caught:
        load_reader(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_with_the_name_of_a_packaged_model_is_that_folder(saved, tmp_path, monkeypatch):
    shutil.copytree(saved, tmp_path / "minilm-l6")
    monkeypatch.chdir(tmp_path)
    layers = load_reader(saved).encoder.config.num_hidden_layers
    assert load_reader("./minilm-l6").encoder.config.num_hidden_layers == layers


class Wrapped(torch.nn.Module):
    """Hides the arguments of a model, as compiled and peft models do."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, *args, **kwargs):
        return self.model(*args, **kwargs)


def test_a_wrapped_model_still_reads_token_types(saved):
    reader = load_reader(saved)
    assert reader.uses_types
    assert EncoderReader(Wrapped(reader.encoder), reader.tokenizer).uses_types


def test_a_new_head_is_drawn_only_where_asked(saved, tmp_path):
    folder = copy_of(saved, tmp_path)
    without_head(folder)
    assert load_reader(folder, new_head=True).untrained == {"qa_outputs.weight", "qa_outputs.bias"}
    assert load_reader("minilm-l6", new_head=True).max_length == 512


def test_another_models_tokenizer_is_refused(saved, tmp_path):
    folder = copy_of(saved, tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = dict(list(vocabulary.items())[:9000])
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(QalibError, match="of 9,000 tokens"):
        load_reader(folder)


def test_adapters_of_peft_are_merged_into_their_base(saved, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = load_reader(saved)
    options = {"task_type": "QUESTION_ANS", "target_modules": ["query"], "init_lora_weights": False}
    adapted = get_peft_model(base.encoder, LoraConfig(r=2, **options))
    expected = logits(adapted.get_base_model(), base.tokenizer)  # peft's own drops token types
    adapted.peft_config["default"].base_model_name_or_path = str(saved)
    adapted.save_pretrained(tmp_path)
    reader = load_reader(tmp_path)
    torch.testing.assert_close(logits(reader.encoder, reader.tokenizer), expected)
    assert windows_of(tmp_path) == windows_of(saved)
    adapted.peft_config["default"].base_model_name_or_path = "./absent"
    adapted.save_pretrained(tmp_path)
    with pytest.raises(QalibError, match="the base of this adapter is missing"):
        load_reader(tmp_path)


def test_a_run_is_read_by_folder_and_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("QALIB_STORE", str(tmp_path))
    reader, run = tiny_reader(seed=3), tmp_path / "train-encoder-0123"
    run.mkdir()
    config = {"encoder": vars(TINY), "windows": {"max_length": 99, "doc_stride": 9}}
    stored = {"stage": "train-encoder", "config": config}
    (run / "config.json").write_text(json.dumps(stored))
    save_weights(dict(reader.named_parameters()), run / "weights.safetensors")
    for name in (run, "train-encoder-0123"):
        again = load_reader(name)
        assert torch.equal(
            logits(again.encoder, again.tokenizer), logits(reader.encoder, reader.tokenizer)
        )
        assert windows_of(name) == WindowConfig(99, 9)
    (run / "config.json").write_text(json.dumps({**stored, "stage": "train-bytes"}))
    with pytest.raises(QalibError, match="stage 'train-bytes'"):
        load_reader(run)


def test_names_are_looked_up_on_the_hub(tmp_path, saved, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str(saved))
    assert model_path("owner/name") == saved

    def offline(name, **_):
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(
        QalibError, match="'owner/name' is no folder here, and it cannot be downloaded"
    ):
        load_reader("owner/name")
    (tmp_path / "file").touch()
    with pytest.raises(QalibError, match="a file; name the folder"):
        load_reader(tmp_path / "file")


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"encoder": {"layer": 2}}, "no key 'layer'; did you mean 'layers'"),
        ({"encoder": {"layers": "two"}}, "layers"),
        ([], "not a JSON object"),
    ],
)
def test_wrong_settings_of_a_checkpoint_are_named(tmp_path, stored, message):
    (tmp_path / "qalib.json").write_text(json.dumps(stored))
    with pytest.raises(QalibError, match=message) as caught:
        load_reader(tmp_path)
    assert "qalib.json" in str(caught.value)


def test_a_run_of_an_older_version_says_what_to_do(tmp_path):
    run = {"stage": "train-encoder", "config": {"windows": {"max_question": 64}}}
    (tmp_path / "config.json").write_text(json.dumps(run))
    with pytest.raises(QalibError, match=r"train it again.*no key 'max_question'"):
        windows_of(tmp_path)
