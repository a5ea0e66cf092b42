"""The encoder reader: any Hugging Face encoder with a span head on top.

    [CLS] question [SEP] passage [SEP] -> encoder -> linear(D -> 2) -> start and end logits

Notation: B batch, L tokens, M question tokens, D width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from pathlib import Path

import torch
from torch import nn

from qalib.data.batching import MULTIPLE, Batch
from qalib.decoding import ReaderOutput
from qalib.errors import QalibError
from qalib.models import folders
from qalib.settings import settings

# Padding affects these despite the mask.
SEE_PADDING = ("big_bird", "convbert", "fnet", "funnel", "nystromformer", "yoso")


@settings
class EncoderConfig:
    """Which encoder to build, and which of its parameters are trained.

    ``name``: "minilm-l6", "mpnet-base" (the extra ``base``), a folder with a model, or a name on
    the Hugging Face hub.
    ``layers``, ``width``, ``heads``: the size with ``random_start``; 0 keeps that of ``name``.
    """

    name: str = folders.MINILM
    random_start: bool = False  # random weights instead of the pretrained ones
    layers: int = 0
    width: int = 0
    heads: int = 0
    dropout: float = 0.1  # of hidden states
    attention_dropout: float = 0.0  # above 0, a CPU trains with the slower fused kernel
    train_embeddings: bool = False  # word embeddings


class EncoderReader(nn.Module):
    """Any ``AutoModelForQuestionAnswering``, from Batch to ReaderOutput.

    ``max_length``: the longest input in tokens, or None; ``untrained``: names of parameters missing
    from the model's files; ``multiple``: padded lengths are multiples of this.
    """

    def __init__(self, encoder: nn.Module, tokenizer, untrained: frozenset[str] = frozenset()):
        from transformers import MODEL_FOR_QUESTION_ANSWERING_MAPPING as KINDS

        super().__init__()
        # compiled and peft models hide their class
        kind = KINDS.get(type(encoder.config), type(encoder))
        self.encoder, self.tokenizer, self.untrained = encoder, tokenizer, untrained
        self.max_length = folders.position_limit(encoder.config)
        self.multiple = 1 if encoder.config.model_type in SEE_PADDING else MULTIPLE
        self.uses_types = (
            "token_type_ids" in tokenizer.model_input_names
            and "token_type_ids" in signature(kind.forward).parameters
            and getattr(encoder.config, "type_vocab_size", 2) > 1
        )
        self.before = tokenizer.num_special_tokens_to_add(pair=True) - 1  # before the passage
        self.aligned: tuple[int, ...] = ()

    def align(self, layers: Sequence[int]) -> None:
        """Make ``forward`` also return the attention of ``layers`` (from 1) to the question.

        Raises QalibError if inputs are not "[CLS] question ... passage [SEP]", and for models that
        return no such attention.
        """
        parts, config = self.tokenizer("a", "a").sequence_ids(), self.encoder.config
        unfit = config.is_encoder_decoder or config.model_type in ("fnet", "squeezebert")
        if unfit or parts[:2] != [None, 0] or parts[-2:] != [1, None]:
            raise QalibError("attention is distilled for encoders that begin with [CLS] only.")
        self.encoder.set_attn_implementation("eager")  # fused kernels return no weights
        self.aligned = tuple(layers)

    def forward(self, batch: Batch) -> ReaderOutput:
        """Logits at every position.  (B, L) -> start_logits, end_logits, mask, each (B, L)

        After :meth:`align` also ``attentions``: "align 1", ... (B, L, M), each position's attention
        to the question, averaged over heads and normalised to sum 1; and "question" (B, M) bool.
        """
        inputs = dict(batch.inputs)
        if not self.uses_types:
            inputs.pop("token_type_ids")
        if not self.aligned:
            output = self.encoder(**inputs)
            return ReaderOutput(output.start_logits, output.end_logits, batch.mask)
        output = self.encoder(**inputs, output_attentions=True)
        count = batch.mask[:, 1:].int().argmax(dim=1) + 1 - self.before  # 0 may be "no answer"
        real = torch.arange(int(count.max()), device=count.device) < count[:, None]
        maps = {"question": real}
        for number, layer in enumerate(self.aligned, 1):
            heads = output.attentions[layer - 1].float().mean(dim=1)  # (B, L, L)
            on_question = heads[:, :, 1 : 1 + real.shape[1]] * real[:, None]
            total = on_question.sum(dim=2, keepdim=True)
            maps[f"align {number}"] = on_question / total.clamp(min=torch.finfo().tiny)
        return ReaderOutput(output.start_logits, output.end_logits, batch.mask, maps)


def build_encoder(config: EncoderConfig, seed: int = 0) -> EncoderReader:
    """Build the reader in float32. Weights missing from its files are initialised from ``seed``.

    Raises QalibError if the model or its tokenizer is missing, damaged or does not fit, or if
    transformers has no question-answering head for its type.
    """
    folder = folders.model_folder(config.name)
    hf_config = folders.load_config(folder)
    torch.manual_seed(seed)
    try:
        with quiet():
            _resize(hf_config, config)
            encoder, report = _build(hf_config, None if config.random_start else folder)
            rows = encoder.get_input_embeddings().weight.shape[0]
    except Exception as error:  # transformers, safetensors and pydantic share no base class
        way = "copy its files again (`git lfs pull` where they are pointers of Git LFS)"
        if any(folder.glob("*.bin")):  # pickled weights, which are not read here
            way = (
                'write it in safetensors: python -c "from transformers import AutoModelForQuestion'
                f"Answering as M; M.from_pretrained('{folder}').save_pretrained('{folder}')\""
            )
        raise QalibError(
            f"the encoder {config.name!r} cannot be loaded ({folders.first_line(error)}); {way}."
        ) from None
    untrained = _untrained(encoder, report, config.name)
    tokenizer = folders.load_tokenizer(folder, rows)
    if not config.train_embeddings:
        encoder.get_input_embeddings().weight.requires_grad_(False)
    return EncoderReader(encoder, tokenizer, untrained)


def _build(hf_config, folder: Path | None) -> tuple[nn.Module, dict]:
    """The model with the weights in ``folder``, or random ones, and the loading report."""
    from transformers import MODEL_FOR_QUESTION_ANSWERING_MAPPING, AutoModelForQuestionAnswering

    kind = MODEL_FOR_QUESTION_ANSWERING_MAPPING.get(type(hf_config), None)
    if kind is None:
        raise ValueError(f"{type(hf_config).__name__} has no question-answering head")
    options = {"dtype": torch.float32, "trust_remote_code": False}
    hf_config.num_labels = 2  # start and end
    if folder is None:
        return AutoModelForQuestionAnswering.from_config(hf_config, **options), {}
    return AutoModelForQuestionAnswering.from_pretrained(
        folder,
        config=hf_config,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # _untrained reports them by name and shape
        output_loading_info=True,
        **options,
    )


def _untrained(encoder: nn.Module, report: dict, name: str) -> frozenset[str]:
    """Names of missing head parameters. Raises QalibError if others are missing or shapes wrong."""
    missing = sorted(key for key in report.get("missing_keys", ()) if ".pooler." not in key)
    body = f"{encoder.base_model_prefix}." if encoder.base_model is not encoder else ""
    wrong = [
        f"{key} has the shape {tuple(stored)} instead of {tuple(wanted)}"
        for key, stored, wanted in sorted(report.get("mismatched_keys", ()))
    ]
    in_body = [k for k in missing if (k.startswith(body) if body else "qa_outputs" not in k)]
    wrong += [f"{key} is missing" for key in in_body]
    if wrong:
        raise QalibError(
            f"the encoder {name!r} has weights that do not fit its config.json: {wrong[0]} "
            f"({len(wrong)} such)."
        )
    return frozenset(missing)


def _resize(hf_config, config: EncoderConfig) -> None:
    """Write the sizes and dropout rates of ``config`` into a transformers configuration."""
    wanted = {
        ("hidden_dropout_prob", "dropout", "embd_pdrop"): config.dropout,
        ("attention_probs_dropout_prob", "attention_dropout"): config.attention_dropout,
    }
    if config.random_start:
        wanted |= {
            ("num_hidden_layers", "n_layers"): config.layers,
            ("hidden_size", "dim"): config.width,
            ("intermediate_size", "hidden_dim"): 4 * config.width,
            ("num_attention_heads", "n_heads"): config.heads,
        }
    for names, value in wanted.items():
        for name in names:
            if hasattr(hf_config, name) and (value or isinstance(value, float)):
                setattr(hf_config, name, value)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the log messages and progress bars of transformers."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
