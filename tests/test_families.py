"""Answers with small random models of many families are those of plain transformers."""

from contextlib import nullcontext
from dataclasses import replace
from itertools import product

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from qalib.data.schema import Example
from qalib.distill.encoders import keep_layers
from qalib.errors import QalibError
from qalib.inference import AnswerConfig, QuestionAnswerer
from qalib.models.pretrained import save_model, windows_of

PASSAGES = [
    "  The Apollo program, led by NASA, landed twelve people on the Moon (1969 to 1972).",
    "Zoë Müller-Lang met Bo in Town7.\n\nShe left; he stayed for 31 years — and died there. " * 2,
]
QUESTIONS = ["Who met Bo?", "Where?"]
EXAMPLES = [Example(f"{q}{p}", q, p) for p in PASSAGES for q in QUESTIONS]
CONFIG = AnswerConfig(precision="fp32", max_answer_length=12, n_best_size=3)
ROWS = 120  # of word embeddings

SIZE = {
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "emb_dim", "dim", "embedding_size"], 16),
    **dict.fromkeys(["word_embed_proj_dim", "input_embedding_size", "true_hidden_size"], 16),
    **dict.fromkeys(["intra_bottleneck_size", "output_embedding_size"], 16),
    **dict.fromkeys(["num_hidden_layers", "num_layers", "n_layer", "n_layers"], 2),
    **dict.fromkeys(["encoder_layers", "decoder_layers", "head_ratio"], 2),
    **dict.fromkeys(["num_attention_heads", "num_heads", "n_head", "n_heads"], 2),
    **dict.fromkeys(["encoder_attention_heads", "decoder_attention_heads"], 2),
    **dict.fromkeys(["num_key_value_heads"], 2),
    **dict.fromkeys(["intermediate_size", "d_ff", "ffn_dim", "hidden_dim", "d_inner"], 24),
    **dict.fromkeys(["encoder_ffn_dim", "decoder_ffn_dim"], 24),
    **dict.fromkeys(["d_kv", "d_head", "head_dim", "attention_window"], 8),
    **dict.fromkeys(["max_position_embeddings", "n_positions"], 64),
    **dict.fromkeys(["max_encoder_position_embeddings", "max_decoder_position_embeddings"], 64),
    **{"vocab_size": ROWS, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3},
    **{"sep_token_id": 3, "cls_token_id": 2, "block_size": 16},
    **{"conv_kernel_size": 3, "block_sizes": [1, 1], "languages": ["en"], "initializer_range": 0.5},
    **{"default_language": "en", "entity_vocab_size": 4, "entity_emb_size": 4},
}
FAMILIES = {  # type: kind of its tokenizer
    **dict.fromkeys(["albert", "bert", "big_bird", "convbert", "electra", "ernie"], "typed"),
    **dict.fromkeys(["fnet", "funnel", "megatron-bert", "mobilebert", "rembert"], "typed"),
    **dict.fromkeys(["nystromformer"], "typed"),
    **dict.fromkeys(["roformer", "splinter", "squeezebert"], "typed"),
    **dict.fromkeys(["deberta", "deberta-v2", "distilbert", "modernbert", "mpnet"], "spaces"),
    **dict.fromkeys(["mt5", "t5", "umt5", "xlnet", "yoso"], "spaces"),
    **dict.fromkeys(["bart", "camembert", "data2vec-text", "ibert", "led"], "double"),
    **dict.fromkeys(["longformer", "luke", "mbart", "roberta", "xlm-roberta", "xmod"], "double"),
    **dict.fromkeys(["bloom", "gpt2", "llama", "opt", "qwen3"], "none"),
}


def save_tokenizer(kind, folder):
    """A tokenizer of single characters and words; "spaces": tokens begin with a space."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    spaced = pre_tokenizers.Metaspace() if kind == "spaces" else pre_tokenizers.Whitespace()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel() if kind == "double" else spaced
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.BpeTrainer(
        vocab_size=ROWS, special_tokens=special, show_progress=False, max_token_length=5
    )
    tokenizer.train_from_iterator(PASSAGES + QUESTIONS, trainer)
    middle = "[SEP] [SEP]" if kind == "double" else "[SEP]"
    if kind != "none":
        tokenizer.post_processor = processors.TemplateProcessing(
            "[CLS] $A [SEP]", f"[CLS] $A {middle} $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
        )
    names = ["input_ids", "token_type_ids", "attention_mask"]
    if kind != "typed":
        names.remove("token_type_ids")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=names,
        **dict(zip(["pad_token", "unk_token", "cls_token", "sep_token"], special, strict=True)),
    ).save_pretrained(folder)


def save_family(family, folder, dtype=torch.float32, **sizes):
    """A model folder with large random weights."""
    kind = type(AutoConfig.for_model(family))
    fixed = ["max_position_embeddings"] if family == "xlnet" else []
    fixed += ["num_hidden_layers", "block_size"] if family == "funnel" else []
    plain = kind()
    size = {**SIZE, **sizes}
    options = {n: value for n, value in size.items() if n not in fixed and hasattr(plain, n)}
    if family == "t5":
        options["decoder_start_token_id"] = 0
    torch.manual_seed(0)
    model = AutoModelForQuestionAnswering.from_config(kind(**options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        model.get_input_embeddings().weight[0] = 0  # MobileBERT sees the token behind the last
    model.to(dtype).save_pretrained(folder)
    save_tokenizer(FAMILIES[family], folder)


@torch.no_grad()
def reference(folder, examples):
    """Best span of each, by transformers alone: one window at a time, all spans in two loops."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForQuestionAnswering.from_pretrained(folder, dtype=torch.float32).eval()
    windows, best = windows_of(folder), []
    for example in examples:
        encoded = tokenizer(
            example.question,
            example.context,
            truncation="only_second",
            max_length=windows.max_length,
            stride=windows.doc_stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        names, found = [n for n in tokenizer.model_input_names if n in encoded], []
        for w, offsets in enumerate(encoded["offset_mapping"]):
            output = model(**{n: torch.tensor([encoded[n][w]]) for n in names})
            start, end = output.start_logits[0].tolist(), output.end_logits[0].tolist()
            inside = [i for i, part in enumerate(encoded.sequence_ids(w)) if part == 1]
            for i, j in product(inside, inside):
                text = example.context[offsets[i][0] : offsets[j][1]].strip()
                if i <= j < i + CONFIG.max_answer_length and text:
                    found.append((start[i] + end[j], text))
        best.append(max(found))
    return best


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_plain_transformers(family, tmp_path):
    save_family(family, tmp_path)
    config = replace(CONFIG, windows=windows_of(tmp_path))  # as long as the positions allow
    answers = QuestionAnswerer.load(tmp_path, config).answer_many(EXAMPLES)
    expected = reference(tmp_path, EXAMPLES)
    for example, found, (score, text) in zip(EXAMPLES, answers, expected, strict=True):
        assert (found[0].text, found[0].score) == (text, pytest.approx(score, abs=2e-3, rel=1e-4))
        for c in found:
            assert c.text == example.context[c.start : c.end] == c.text.strip() != ""


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "modernbert"])
def test_a_model_is_cut_to_some_layers_only_if_it_is_saved_and_loaded_as_such(family, tmp_path):
    save_family(family, tmp_path / "whole")
    windows = windows_of(tmp_path / "whole")
    config = replace(CONFIG, windows=windows)
    answerer = QuestionAnswerer.load(tmp_path / "whole", config)
    if family == "modernbert":  # its first layer has no norm before the attention
        with pytest.raises(QalibError, match="have different weights"):
            keep_layers(answerer.reader.encoder, [2])
        return
    keep_layers(answerer.reader.encoder, [2])
    save_model(tmp_path / "cut", answerer.reader, windows)
    again = QuestionAnswerer.load(tmp_path / "cut", config).answer_many(EXAMPLES)
    assert answerer.answer_many(EXAMPLES) == again


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_attention_is_distilled_where_inputs_begin_with_cls(family, tmp_path):
    save_family(family, tmp_path)
    reader = QuestionAnswerer.load(tmp_path, replace(CONFIG, windows=windows_of(tmp_path))).reader
    with nullcontext() if family == "bert" else pytest.raises(QalibError, match="begin with"):
        reader.align([1])


@pytest.mark.parametrize("family", ["deberta-v2", "t5", "xlnet"])
def test_weights_of_sixteen_bits_are_read_as_32(family, tmp_path):
    save_family(family, tmp_path, torch.float16)
    config = replace(CONFIG, windows=windows_of(tmp_path))
    answerer = QuestionAnswerer.load(tmp_path, config)
    assert {p.dtype for p in answerer.reader.parameters()} == {torch.float32}
    found = answerer.answer_many(EXAMPLES[:1])[0][0]
    ((score, text),) = reference(tmp_path, EXAMPLES[:1])
    assert (found.text, found.score) == (text, pytest.approx(score, abs=2e-3, rel=1e-4))
    rounded = QuestionAnswerer.load(tmp_path, replace(config, precision="bf16"))
    assert rounded.answer_many(EXAMPLES[:1])[0][0].text
