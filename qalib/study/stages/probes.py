"""What the probes of notebook 04 read: features and labels of passage blocks.

A probe of a layer reads six features per head of a passage block (Eq. 2 of the Block-Skim paper)
and predicts whether the block contains an answer token. Source: Block-Skim, section 3 and Fig. 1.
"""

from collections.abc import Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field

from qalib.data.schema import Dataset, Example
from qalib.data.windows import WindowConfig
from qalib.errors import QalibError
from qalib.settings import settings
from qalib.study.run_cache import Run
from qalib.study.stages.baseline import EncoderTraining, load_encoder_reader

if TYPE_CHECKING:
    from qalib.models.encoder import EncoderReader

Count = Annotated[int, Field(ge=1)]


@settings
class ProbeConfig:
    """Whose attention is probed ("profile": the reader of notebook 00), and on how many blocks."""

    reader: Literal["shipped", "profile"] = "shipped"
    windows: WindowConfig = field(default_factory=WindowConfig)
    train_questions: Count = 600
    test_questions: Count = 200
    block_size: Count = 32
    folds: Annotated[int, Field(ge=2)] = 5


class BlockFeatures(NamedTuple):
    """The passage blocks of some questions, a row each, in the order of questions and passage."""

    attention: np.ndarray  # (N, layers, H, 6) float32, see skim.features.paper_features
    lexical: np.ndarray  # (N, 5) float32: word overlap, the same minus its mean, position, length
    labels: np.ndarray  # (N,) bool, whether the block has an answer token
    passages: np.ndarray  # (N,) int64, equal for all questions on a passage
    examples: np.ndarray  # (N,) int64, index of the question
    characters: np.ndarray  # (N, 2) int64, [start, end) in the passage


def evenly(dataset: Dataset, count: int) -> list[Example]:
    """At most ``count`` questions at equal distances."""
    count = min(count, len(dataset))
    return [dataset.examples[i * len(dataset) // count] for i in range(count)]


def probed_reader(weights: Run | None, fine_tuned: bool) -> "EncoderReader":
    """The reader of ``weights``, or else the published one; or its encoder before fine-tuning."""
    import torch

    from qalib.models.encoder import build_encoder
    from qalib.models.pretrained import load_reader

    base = weights.settings(EncoderTraining) if weights else EncoderTraining()
    if not fine_tuned:
        reader = build_encoder(base.encoder, base.seed)
    else:
        reader = load_encoder_reader(weights) if weights else load_reader()
    return reader.to("cuda" if torch.cuda.is_available() else "cpu")


def block_features(
    reader: "EncoderReader",
    examples: Sequence[Example],
    windows: WindowConfig,
    size: int = 32,
    tokens_per_batch: int = 2048,
) -> BlockFeatures:
    """Features and labels of all passage blocks of ``size`` tokens, in every layer of a reader.

    The reader is left in evaluation mode, with "eager" attention. Of a long passage only the
    windows with a whole gold answer count. Raises QalibError if there are none.
    """
    from qalib.data.batching import collate, inference_batches
    from qalib.data.windows import make_windows, training_windows

    cut = training_windows(make_windows(examples, reader.tokenizer, windows))
    if not cut:
        raise QalibError(
            f"none of the {len(examples)} questions has a passage with its answer in it; a probe "
            "needs blocks with and without answers."
        )
    reader.eval().encoder.set_attn_implementation("eager")
    parts: list[tuple[np.ndarray, ...]] = [()] * len(cut)
    for rows in inference_batches([len(window) for window in cut], tokens_per_batch):
        batch = collate([cut[i] for i in rows], reader.tokenizer.pad_token_id or 0)
        for row, arrays in zip(rows, _batch_features(reader, batch, size), strict=True):
            parts[row] = arrays
    attention, lexical, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    owners = np.repeat([window.example for window in cut], [len(part[2]) for part in parts])
    numbers = {text: n for n, text in enumerate(dict.fromkeys(e.context for e in examples))}
    passages = np.array([numbers[examples[i].context] for i in owners])
    starts = [window.offsets[::size, 0] for window in cut]
    ends = [np.append(window.offsets[size - 1 :: size, 1], window.offsets[-1, 1]) for window in cut]
    ends = [end[: len(start)] for start, end in zip(starts, ends, strict=True)]
    characters = np.stack([np.concatenate(starts), np.concatenate(ends)], axis=1).astype(np.int64)
    return BlockFeatures(attention, lexical, labels, passages, owners, characters)


def _batch_features(reader: "EncoderReader", batch, size: int) -> list[tuple[np.ndarray, ...]]:
    """Attention features, lexical features and labels of the blocks of every window."""
    import torch

    from qalib.skim.activations import FullAttention, LayerActivations
    from qalib.skim.blocks import answer_blocks, make_blocks
    from qalib.skim.features import block_position, paper_features, relative, word_overlap

    batch = batch.to(next(reader.parameters()).device)
    ids, real = batch.inputs["input_ids"], batch.inputs["attention_mask"].bool()
    inputs = {k: v for k, v in batch.inputs.items() if k != "token_type_ids" or reader.uses_types}
    with torch.inference_mode():
        output = reader.encoder(**inputs, output_attentions=True, output_hidden_states=True)
        blocks = make_blocks(ids, real, batch.mask, reader.tokenizer.all_special_ids, size)
        layers = zip(output.attentions, output.hidden_states, strict=False)  # one state more
        features = [
            paper_features(LayerActivations(FullAttention(p), h), blocks) for p, h in layers
        ]
        overlap = word_overlap(ids, blocks)[..., None]
        tensors = [
            torch.stack(features, dim=2).float(),
            torch.cat([overlap, relative(overlap, blocks.real), block_position(blocks)], dim=2),
            answer_blocks(blocks, batch.answer_spans, batch.answer_weights),
        ]
    arrays = [tensor.cpu().numpy() for tensor in tensors]
    counts = blocks.real.sum(dim=1).tolist()
    return [tuple(array[row, :count] for array in arrays) for row, count in enumerate(counts)]
