"""Drive an unmodified Hugging Face question-answering encoder layer by layer.

Pruning shortens the sequence in the middle of a layer, so each layer is split at its attention
into calls of the model's own submodules:

    hidden -> qkv_proj -> query, key, value -> (attention) -> context -> feed_forward -> next hidden

Everything specific to a model family is in this file: one small class per family and the table
``FAMILIES``.

Notation: B batch, L positions, D width, H heads, d = D / H, "..." any leading dimensions.

After pruning, a token keeps its position in the input: relative positions (MPNet, DeBERTa) are
computed from the original positions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from qalib.errors import QalibError


@dataclass(frozen=True)
class LayerAdapter:
    """The two halves of a layer, and what the attention between them needs."""

    attention: nn.Module  # the module whose training flag enables dropout
    qkv_proj: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
    """hidden (..., D) -> query, key, value, each (..., H, d)"""
    feed_forward: Callable[[Tensor, Tensor], Tensor]
    """context (..., D), the layer's input (..., D) -> the next layer's input (..., D): output
    projection, residual, norm and feed-forward, with the model's own dropout"""
    dropout: float  # of attention probabilities, in training
    bias: Callable = lambda query, key, mask: mask
    """query, key (B, L, H, d), ``EncoderAdapter.attention_mask`` -> what is added to the scores"""
    bias_macs: int = 0  # multiply-adds of ``bias`` for each token


class EncoderAdapter:
    """Adapter of an encoder with BERT's structure; subclasses override what differs.

    An adapter serves a single forward pass: it may cache values that depend on the weights.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.body = model.base_model
        self.config = model.config
        self.width, self.heads = self.config.hidden_size, self.config.num_attention_heads

    def embed(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Input of the first layer.  (B, L) int64 -> (B, L, D)

        Token types are omitted if the model has only one.
        """
        typed = getattr(self.config, "type_vocab_size", 1) > 1
        types = {"token_type_ids": token_type_ids} if typed else {}
        embedded = self.body.embeddings(input_ids=input_ids, **types)
        widen = getattr(self.body, "embeddings_project", None)  # in ELECTRA
        return embedded if widen is None else widen(embedded)

    @cached_property
    def layers(self) -> Sequence[LayerAdapter]:
        """Layers in order; layer l of the papers is ``layers[l - 1]``."""
        return tuple(map(self.layer, self.body.encoder.layer))

    def layer(self, module: nn.Module) -> LayerAdapter:
        """Adapter of one layer's module."""
        inner = module.attention.self

        def feed_forward(context: Tensor, hidden: Tensor) -> Tensor:
            return module.feed_forward_chunk(module.attention.output(context, hidden))

        qkv_proj = self.projection(inner.query, inner.key, inner.value)
        return LayerAdapter(inner, qkv_proj, feed_forward, inner.dropout.p)

    def projection(self, *matrices: nn.Module) -> Callable:
        """``LayerAdapter.qkv_proj`` from the linear layers of query, key and value."""
        return lambda x: tuple(m(x).unflatten(-1, (-1, self.width // self.heads)) for m in matrices)

    def head(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Start and end logits.  (..., D) -> (...), (...)"""
        return self.model.qa_outputs(hidden).unbind(dim=-1)

    def attention_mask(self, positions: Tensor, real: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Bias added to the attention scores, or None where there is nothing to add.

        Input positions (B or 1, L) int64, real (B or 1, L) bool -> (B or 1, H or 1, L or 1, L).
        Padding keys get the dtype's minimum, not -inf, so that rows of only padding stay finite.
        """
        if real.all():
            return None
        zero = torch.zeros((), dtype=dtype, device=real.device)
        return zero.masked_fill(~real[:, None, None, :], torch.finfo(dtype).min)


class AlbertAdapter(EncoderAdapter):
    """ALBERT: layers share weights, and a projection follows the embeddings."""

    def embed(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        embedded = super().embed(input_ids, token_type_ids)
        return self.body.encoder.embedding_hidden_mapping_in(embedded)

    @cached_property
    def layers(self) -> Sequence[LayerAdapter]:
        groups = self.body.encoder.albert_layer_groups
        rounds = self.config.num_hidden_layers
        used = [groups[n * len(groups) // rounds] for n in range(rounds)]
        return tuple(self.layer(module) for group in used for module in group.albert_layers)

    def layer(self, module: nn.Module) -> LayerAdapter:
        inner = module.attention

        def feed_forward(context: Tensor, hidden: Tensor) -> Tensor:
            attended = inner.LayerNorm(hidden + inner.output_dropout(inner.dense(context)))
            return module.full_layer_layer_norm(module.ff_chunk(attended) + attended)

        qkv_proj = self.projection(inner.query, inner.key, inner.value)
        return LayerAdapter(inner, qkv_proj, feed_forward, inner.attention_dropout.p)


class DistilBertAdapter(EncoderAdapter):
    """DistilBERT: other module names, and dropout before the span head."""

    @cached_property
    def layers(self) -> Sequence[LayerAdapter]:
        return tuple(map(self.layer, self.body.transformer.layer))

    def layer(self, module: nn.Module) -> LayerAdapter:
        inner = module.attention

        def feed_forward(context: Tensor, hidden: Tensor) -> Tensor:
            attended = module.sa_layer_norm(inner.out_lin(context) + hidden)
            return module.output_layer_norm(module.ffn.ff_chunk(attended) + attended)

        qkv_proj = self.projection(inner.q_lin, inner.k_lin, inner.v_lin)
        return LayerAdapter(inner, qkv_proj, feed_forward, inner.dropout.p)

    def head(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return super().head(self.model.dropout(hidden))


class MPNetAdapter(EncoderAdapter):
    """MPNet: one learned bias per head and distance bucket, shared by all layers."""

    def layer(self, module: nn.Module) -> LayerAdapter:
        outer = module.attention
        inner = outer.attn

        def feed_forward(context: Tensor, hidden: Tensor) -> Tensor:
            attended = outer.LayerNorm(outer.dropout(inner.o(context)) + hidden)
            return module.output(module.intermediate(attended), attended)

        qkv_proj = self.projection(inner.q, inner.k, inner.v)
        return LayerAdapter(inner, qkv_proj, feed_forward, inner.dropout.p)

    def attention_mask(self, positions: Tensor, real: Tensor, dtype: torch.dtype) -> Tensor | None:
        encoder = self.body.encoder
        distance = positions[:, None, :] - positions[:, :, None]  # key minus query
        bucket = encoder.relative_position_bucket(distance)
        bias = encoder.relative_attention_bias(bucket).permute(0, 3, 1, 2)  # (B or 1, H, L, L)
        return bias.to(dtype).masked_fill(~real[:, None, None, :], torch.finfo(dtype).min)


class RelativeMask(NamedTuple):
    """Relative positions and padding of a batch, for DeBERTa."""

    bucket: Tensor  # (B or 1, L, L) int64, row in the table of relative positions
    mask: Tensor | None  # as from EncoderAdapter.attention_mask


class DebertaV2Adapter(EncoderAdapter):
    """DeBERTa-v2 and v3: attention scores also compare content with relative positions.

        score_ij = s (q_i k_j + q_i k'_r + k_j q'_r),   r the bucket of i - j

    k', q': projected embeddings of relative positions. s = 1 / sqrt(n d), n the number of terms;
    ``qkv_proj`` applies 1 / sqrt(n), the attention 1 / sqrt(d). Raises QalibError for a model with
    a convolution after the first layer, which mixes tokens outside attention.
    """

    def __init__(self, model: nn.Module):
        super().__init__(model)
        if getattr(self.body.encoder, "conv", None) is not None:
            raise QalibError(
                "this DeBERTa model has a convolution (conv_kernel_size, as in deberta-v2-xlarge) "
                "and cannot be skimmed; use one without, such as deberta-v3-base."
            )

    def layer(self, module: nn.Module) -> LayerAdapter:
        inner, encoder = module.attention.self, self.body.encoder
        terms = [kind for kind in ("c2p", "p2c") if kind in inner.pos_att_type]
        shrink = (1 + len(terms)) ** -0.5
        projection = self.projection(inner.query_proj, inner.key_proj, inner.value_proj)

        def qkv_proj(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            query, key, value = projection(hidden)
            return query * shrink, key, value

        def feed_forward(context: Tensor, hidden: Tensor) -> Tensor:
            attended = module.attention.output(context, hidden)
            return module.output(module.intermediate(attended), attended)

        @cache  # a packed pass calls it for every group of rows
        def relative() -> tuple[Tensor | None, ...]:
            """k' and q', each (R, H, d)"""
            rows = inner.pos_dropout(encoder.get_rel_embedding()[: 2 * inner.pos_ebd_size])
            shared = inner.share_att_key
            key = inner.key_proj if shared else getattr(inner, "pos_key_proj", None)
            query = inner.query_proj if shared else getattr(inner, "pos_query_proj", None)
            modules = key if "c2p" in terms else None, query if "p2c" in terms else None
            return tuple(m and m(rows).unflatten(-1, (self.heads, -1)) for m in modules)

        def bias(query: Tensor, key: Tensor, mask: RelativeMask) -> Tensor:
            bucket, total = mask.bucket[:, None], 0.0
            bucket = bucket.expand(len(query), self.heads, -1, -1)
            keys, queries = relative()
            if keys is not None:
                total = torch.einsum("blhd,rhd->bhlr", query, keys).gather(3, bucket)
            if queries is not None:
                found = torch.einsum("blhd,rhd->bhrl", key * shrink, queries)
                total = total + found.gather(2, bucket)
            total = total * query.shape[-1] ** -0.5
            return total if mask.mask is None else total + mask.mask

        adapter = LayerAdapter(inner, qkv_proj, feed_forward, inner.dropout.p)
        if not encoder.relative_attention or not terms:
            return adapter
        macs = 2 * inner.pos_ebd_size * len(terms) * inner.all_head_size
        return replace(adapter, bias=bias, bias_macs=macs)

    def attention_mask(self, positions: Tensor, real: Tensor, dtype: torch.dtype):
        from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

        mask, inner = super().attention_mask(positions, real, dtype), self.layers[0].attention
        if self.layers[0].bias_macs == 0:
            return mask
        bucket = positions[:, :, None] - positions[:, None, :]  # query minus key
        if inner.position_buckets > 0:
            most = inner.max_relative_positions
            bucket = make_log_bucket_position(bucket, inner.position_buckets, most).long()
        span = inner.pos_ebd_size
        return RelativeMask((bucket + span).clamp(0, 2 * span - 1), mask)


FAMILIES: Mapping[str, type[EncoderAdapter]] = {
    "bert": EncoderAdapter,
    "roberta": EncoderAdapter,
    "xlm-roberta": EncoderAdapter,
    "camembert": EncoderAdapter,
    "albert": AlbertAdapter,
    "distilbert": DistilBertAdapter,
    "electra": EncoderAdapter,
    "mpnet": MPNetAdapter,
    "deberta-v2": DebertaV2Adapter,
}


def adapt_encoder(model: nn.Module) -> EncoderAdapter:
    """Adapter of a question-answering encoder from transformers; the model is not changed.

    Raises QalibError for an unsupported model type, a model without a span head, a decoder, and a
    DeBERTa with a convolution.
    """
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", type(model).__name__)
    if kind not in FAMILIES:
        raise QalibError(
            f"skimming does not know models of the kind {kind!r}; it knows {', '.join(FAMILIES)}."
        )
    known = [kind.__name__ for kind in type(model).__mro__ if "transformers" in kind.__module__]
    if not any(name.endswith("ForQuestionAnswering") for name in known):
        raise QalibError(
            f"{type(model).__name__} is no transformers model with a head for answer spans; load "
            "it with AutoModelForQuestionAnswering (adapters merged, not compiled)."
        )
    if getattr(config, "is_decoder", False):
        raise QalibError(f"this {kind} model is configured as a decoder; set is_decoder to false.")
    return FAMILIES[kind](model)
