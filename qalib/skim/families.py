"""How to drive an unmodified Hugging Face question-answering encoder layer by layer.

Skimming shortens the sequence in the middle of an encoder, and even in the middle of a layer. So a
layer is taken apart at its attention, with the model's own submodules and nothing but them:

    hidden -> project -> query, key, value -> (attention) -> context -> finish -> next hidden

All that is particular to a family of models stands in this file: one small class each, and a table
from ``config.model_type``. Supported are the encoders that transformers builds as BERT, RoBERTa
(also XLM-RoBERTa and CamemBERT), ALBERT, DistilBERT, ELECTRA, MPNet and ModernBERT.

Notation: B batch, L positions, D width, H heads, d = D / H, "..." any leading dimensions: (B, L)
for padded batches, or a single one for sequences packed behind each other.

After shortening, a token keeps the position it had in the input: relative position biases (MPNet),
rotary embeddings and sliding windows (ModernBERT) are decided from original positions, so that
what is left of a window is what it was, minus the skipped tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from qalib.errors import QalibError

ALL = "all"  # a layer of which every token sees every token
NEAR = "near"  # a layer with a sliding window


@dataclass(frozen=True)
class LayerParts:
    """One layer in two halves, and what the attention between them has to know."""

    attention: nn.Module  # the module whose training flag decides about dropout
    project: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
    """hidden (..., D), positions (...) int64 -> query, key, value, each (..., H, d)"""
    finish: Callable[[Tensor, Tensor], Tensor]
    """context (..., D), the layer's input (..., D) -> the next layer's input (..., D): output
    projection, residual, norm and feed-forward, with the model's own dropout"""
    dropout: float  # of attention probabilities, in training
    sees: str = ALL  # which of the masks applies


class EncoderParts:
    """An encoder as BERT is built; families that differ override what differs."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.body = model.base_model
        self.config = model.config

    @property
    def width(self) -> int:
        """D"""
        return self.config.hidden_size

    @property
    def heads(self) -> int:
        """H"""
        return self.config.num_attention_heads

    def embed(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """What the first layer is given.  (B, L) int64 -> (B, L, D)

        Token types are left out where the model knows only one.
        """
        types = token_type_ids if self.config.type_vocab_size > 1 else None
        return self.body.embeddings(input_ids=input_ids, token_type_ids=types)

    @cached_property
    def layers(self) -> Sequence[LayerParts]:
        """The layers in order; layer l of the papers is ``layers[l - 1]``."""
        return tuple(map(self.layer, self.body.encoder.layer))

    def layer(self, module: nn.Module) -> LayerParts:
        """Take one layer's module apart."""
        inner = module.attention.self

        def finish(context: Tensor, hidden: Tensor) -> Tensor:
            return module.feed_forward_chunk(module.attention.output(context, hidden))

        project = projection(inner.query, inner.key, inner.value, self.heads)
        return LayerParts(inner, project, finish, inner.dropout.p)

    def head(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Start and end logits.  (..., D) -> (...), (...)"""
        start, end = self.model.qa_outputs(hidden).unbind(dim=-1)
        return start, end

    def masks(
        self, positions: Tensor, real: Tensor, dtype: torch.dtype
    ) -> Mapping[str, Tensor | None]:
        """What is added to the attention scores, by ``LayerParts.sees``.

        positions (B or 1, L) int64 in the input, real (B, L) bool -> (B or 1, H or 1, L or 1, L),
        or None where there is nothing to add. Hidden keys get the dtype's minimum, not -inf, so
        that a row of padding alone stays finite.
        """
        return {ALL: hide(real[:, None, None, :], dtype)}


class AlbertParts(EncoderParts):
    """ALBERT: few sets of weights, used again and again; a projection behind the embeddings."""

    def embed(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        embedded = super().embed(input_ids, token_type_ids)
        return self.body.encoder.embedding_hidden_mapping_in(embedded)

    @cached_property
    def layers(self) -> Sequence[LayerParts]:
        groups = self.body.encoder.albert_layer_groups
        rounds = self.config.num_hidden_layers
        used = [groups[n * len(groups) // rounds] for n in range(rounds)]
        return tuple(self.layer(module) for group in used for module in group.albert_layers)

    def layer(self, module: nn.Module) -> LayerParts:
        inner = module.attention

        def finish(context: Tensor, hidden: Tensor) -> Tensor:
            attended = inner.LayerNorm(hidden + inner.output_dropout(inner.dense(context)))
            return module.full_layer_layer_norm(module.ff_chunk(attended) + attended)

        project = projection(inner.query, inner.key, inner.value, self.heads)
        return LayerParts(inner, project, finish, inner.attention_dropout.p)


class DistilBertParts(EncoderParts):
    """DistilBERT: no token types, other names, dropout before the span head."""

    def embed(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        return self.body.embeddings(input_ids)

    @cached_property
    def layers(self) -> Sequence[LayerParts]:
        return tuple(map(self.layer, self.body.transformer.layer))

    def layer(self, module: nn.Module) -> LayerParts:
        inner = module.attention

        def finish(context: Tensor, hidden: Tensor) -> Tensor:
            attended = module.sa_layer_norm(inner.out_lin(context) + hidden)
            return module.output_layer_norm(module.ffn.ff_chunk(attended) + attended)

        project = projection(inner.q_lin, inner.k_lin, inner.v_lin, self.heads)
        return LayerParts(inner, project, finish, inner.dropout.p)

    def head(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return super().head(self.model.dropout(hidden))


class ElectraParts(EncoderParts):
    """ELECTRA: BERT, with a projection where embeddings are narrower than layers."""

    def embed(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        embedded = super().embed(input_ids, token_type_ids)
        widen = getattr(self.body, "embeddings_project", None)
        return embedded if widen is None else widen(embedded)


class MPNetParts(EncoderParts):
    """MPNet: one learnt bias per head and bucket of distances, shared by all layers."""

    def embed(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        return self.body.embeddings(input_ids=input_ids)

    def layer(self, module: nn.Module) -> LayerParts:
        outer = module.attention
        inner = outer.attn

        def finish(context: Tensor, hidden: Tensor) -> Tensor:
            attended = outer.LayerNorm(outer.dropout(inner.o(context)) + hidden)
            return module.output(module.intermediate(attended), attended)

        project = projection(inner.q, inner.k, inner.v, self.heads)
        return LayerParts(inner, project, finish, inner.dropout.p)

    def masks(
        self, positions: Tensor, real: Tensor, dtype: torch.dtype
    ) -> Mapping[str, Tensor | None]:
        encoder = self.body.encoder
        distance = positions[:, None, :] - positions[:, :, None]  # key minus query
        bucket = encoder.relative_position_bucket(distance)
        bias = encoder.relative_attention_bias(bucket).permute(0, 3, 1, 2)  # (B or 1, H, L, L)
        floor = torch.finfo(dtype).min
        return {ALL: bias.to(dtype).masked_fill(~real[:, None, None, :], floor)}


class ModernBertParts(EncoderParts):
    """ModernBERT: rotary positions, norms before the halves, sliding windows in most layers."""

    def embed(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        return self.body.embeddings(input_ids)

    @cached_property
    def layers(self) -> Sequence[LayerParts]:
        return tuple(map(self.layer, self.body.layers))

    def layer(self, module: nn.Module) -> LayerParts:
        from transformers.models.modernbert.modeling_modernbert import apply_rotary_pos_emb

        inner = module.attn

        def project(hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            all_three = inner.Wqkv(module.attn_norm(hidden))
            query, key, value = all_three.unflatten(-1, (3, self.heads, -1)).unbind(dim=-3)
            turn = self.body.rotary_emb(hidden, positions, module.attention_type)
            return *apply_rotary_pos_emb(query, key, *turn, unsqueeze_dim=-2), value

        def finish(context: Tensor, hidden: Tensor) -> Tensor:
            attended = hidden + inner.out_drop(inner.Wo(context))
            return attended + module.mlp(module.mlp_norm(attended))

        sees = NEAR if module.attention_type == "sliding_attention" else ALL
        return LayerParts(inner, project, finish, inner.attention_dropout, sees)

    def head(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.model.head(self.body.final_norm(hidden))
        start, end = self.model.classifier(self.model.drop(hidden)).unbind(dim=-1)
        return start, end

    def masks(
        self, positions: Tensor, real: Tensor, dtype: torch.dtype
    ) -> Mapping[str, Tensor | None]:
        distance = (positions[:, None, :] - positions[:, :, None]).abs()
        near = (distance <= self.config.sliding_window)[:, None]  # (B or 1, 1, L, L)
        seen = real[:, None, None, :]
        return {ALL: hide(seen, dtype), NEAR: hide(seen & near, dtype)}


FAMILIES: Mapping[str, type[EncoderParts]] = {
    "bert": EncoderParts,
    "roberta": EncoderParts,
    "xlm-roberta": EncoderParts,
    "camembert": EncoderParts,
    "albert": AlbertParts,
    "distilbert": DistilBertParts,
    "electra": ElectraParts,
    "mpnet": MPNetParts,
    "modernbert": ModernBertParts,
}


def parts(model: nn.Module) -> EncoderParts:
    """Take a question-answering encoder of transformers apart; the model is not changed.

    Raises QalibError for a kind of model that is not supported, for one without a span head and
    for a decoder.
    """
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", type(model).__name__)
    if kind not in FAMILIES:
        raise QalibError(
            f"skimming does not know models of the kind {kind!r}; it knows {', '.join(FAMILIES)}."
        )
    if not any(kind.__name__.endswith("ForQuestionAnswering") for kind in type(model).__mro__):
        raise QalibError(
            f"{type(model).__name__} has no head for answer spans; load the model with "
            "AutoModelForQuestionAnswering."
        )
    if getattr(config, "is_decoder", False):
        raise QalibError(
            f"this {kind} model is configured as a decoder, whose tokens do not see what follows; "
            "set is_decoder to false."
        )
    return FAMILIES[kind](model)


def projection(
    query: nn.Module, key: nn.Module, value: nn.Module, heads: int
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """``LayerParts.project`` of a layer with three matrices and no notion of positions."""

    def project(hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (matrix(hidden).unflatten(-1, (heads, -1)) for matrix in (query, key, value))
        return q, k, v

    return project


def hide(seen: Tensor, dtype: torch.dtype) -> Tensor | None:
    """0 where ``seen``, the dtype's minimum elsewhere; None if all is seen.  Same shape."""
    if seen.all():
        return None
    zero = torch.zeros((), dtype=dtype, device=seen.device)
    return zero.masked_fill(~seen, torch.finfo(dtype).min)
