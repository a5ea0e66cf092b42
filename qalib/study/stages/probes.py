"""What the probes of notebook 04 read: features and labels of passage blocks.

A probe of a layer reads six features per head of a passage block (Eq. 2 of the Block-Skim paper)
and predicts whether the block contains an answer token. Source: Block-Skim, section 3 and Fig. 1.
"""

from collections.abc import Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field

from qalib.data.schema import Dataset, Example, make_dataset
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
    reader: "EncoderReader", examples: Sequence[Example], windows: WindowConfig, size: int = 32
) -> BlockFeatures:
    """Features and labels of all passage blocks of ``size`` tokens, in every layer of a reader.

    The reader is left in evaluation mode. Of a long passage only the windows with a whole gold
    answer count. Raises QalibError if there are none.
    """
    import torch

    from qalib.data.windows import make_windows, training_windows
    from qalib.skim.predictors import FIXED, PredictorConfig
    from qalib.skim.training import PredictorTraining, add_predictors, fixed_features

    cut = training_windows(make_windows(examples, reader.tokenizer, windows))
    if not cut:
        raise QalibError(
            f"none of the {len(examples)} questions has a passage with its answer in it; a probe "
            "needs blocks with and without answers."
        )
    predictor = PredictorConfig("combined", size, parts=FIXED)
    config = PredictorTraining(windows=windows, predictor=predictor)
    found = fixed_features(add_predictors(reader, config), make_dataset("probed", examples), config)
    layers = range(1, reader.encoder.config.num_hidden_layers + 1)
    attention = [found.parts[f"{n} paper"].unflatten(1, (-1, 6)) for n in layers]
    overlap, place = (found.parts[f"1 {part}"].numpy() for part in ("lexical", "position"))
    window = np.repeat(np.arange(len(cut)), found.counts.numpy())
    mean = np.bincount(window, overlap[:, 0]) / found.counts.numpy()
    compared = overlap - mean[window, None].astype(np.float32)
    owners = found.question.numpy()[window]
    numbers = {text: n for n, text in enumerate(dict.fromkeys(e.context for e in examples))}
    starts = [window.offsets[::size, 0] for window in cut]
    ends = [np.append(window.offsets[size - 1 :: size, 1], window.offsets[-1, 1]) for window in cut]
    ends = [end[: len(start)] for start, end in zip(starts, ends, strict=True)]
    return BlockFeatures(
        torch.stack(attention, dim=1).numpy(),
        np.concatenate([overlap, compared, place], axis=1),
        found.labels.numpy() > 0,
        np.array([numbers[examples[i].context] for i in owners]),
        owners,
        np.stack([np.concatenate(starts), np.concatenate(ends)], axis=1).astype(np.int64),
    )
