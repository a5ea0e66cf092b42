"""Does attention know which blocks hold the answer? Logistic regression on a layer's attention.

Notation: N passage blocks of all questions, H heads, D numbers that a probe reads.

A probe sees nothing but the six numbers per head of Eq. 2 (``skim.features.SIX``) in one layer of
an encoder that it cannot change, and weighs them:

    p(block holds an answer token) = sigmoid(w . (x - mean) / scale + b)

What a linear model finds there was easy to find. All scores are of passages that the probe was
not fitted on: passages, not blocks or questions, are dealt out to the folds.

Source: Block-Skim, section 3 and its Fig. 1.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from qalib.data.batches import Batch, collate, inference_batches
from qalib.data.features import Window, WindowConfig, make_windows, training_windows
from qalib.data.squad import Example
from qalib.errors import QalibError
from qalib.readers.encoder_reader import EncoderReader
from qalib.skim.blocks import Blocks, answer_blocks, make_blocks
from qalib.skim.features import placement, relative, six_features, word_overlap
from qalib.skim.views import FullAttention, LayerView


@dataclass(frozen=True)
class ProbeConfig:
    """How blocks are cut and probes are fitted."""

    block_size: int = 32
    folds: int = 5  # of the cross-validation
    strength: float = 1.0  # inverse of the L2 penalty on the weights
    balanced: bool = False  # answers and the rest weigh the same in the fit
    threshold: float = 0.5  # a block from this probability on counts as found
    tokens_per_batch: int = 2048  # a map of each layer and head is held for one batch

    def __post_init__(self):
        if self.folds < 2:
            raise QalibError(f"cross-validation needs at least 2 folds, not {self.folds}.")
        if not self.strength > 0:
            raise QalibError(f"the strength of a probe must be above 0, not {self.strength}.")
        if not 0 < self.threshold < 1:
            raise QalibError(f"a threshold lies between 0 and 1, not at {self.threshold}.")


@dataclass(frozen=True)
class BlockData:
    """Passage blocks, a row each, in the order of the questions and of the passage."""

    features: np.ndarray  # (N, layers, H, 6) float32
    plain: np.ndarray  # (N, 5) float32, words shared with the question, place and length
    labels: np.ndarray  # (N,) bool, whether an answer token is inside
    passages: np.ndarray  # (N,) int64, the same number for all questions about a passage
    examples: np.ndarray  # (N,) int64, index of the example
    characters: np.ndarray  # (N, 2) int64, [start, end) in the passage

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Scores:
    """How well blocks were found, all from 0 to 1. AUC is nan where there is one class only."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    auc: float


@dataclass(frozen=True)
class Probe:
    """A fitted logistic regression."""

    mean: np.ndarray  # (D,)
    scale: np.ndarray  # (D,)
    weights: np.ndarray  # (D,)
    bias: float

    def probabilities(self, inputs: np.ndarray) -> np.ndarray:
        """p(block holds an answer token).  (N, D) -> (N,)"""
        logits = (inputs - self.mean) / self.scale @ self.weights + self.bias
        return 1 / (1 + np.exp(-logits.clip(-500, 500)))


# --- what probes read ------------------------------------------------------------------------


def collect(
    reader: EncoderReader,
    examples: Sequence[Example],
    windows: WindowConfig,
    config: ProbeConfig = ProbeConfig(),
) -> BlockData:
    """The features and labels of all passage blocks, in every layer of a reader's encoder.

    Any Hugging Face question-answering model is read as ``EncoderReader(model, tokenizer)``; it is
    left as it was. Of a long passage only the windows that hold a whole gold answer are used.
    Raises QalibError if there are none, or if the encoder does not give its attention away.
    """
    cut = training_windows(make_windows(examples, reader.tokenizer, windows))
    if not cut:
        raise QalibError(
            f"none of the {len(examples)} questions has a passage with its answer in it; a probe "
            "needs blocks with and without answers."
        )
    plan = inference_batches([len(window) for window in cut], config.tokens_per_batch)
    found: list[tuple[np.ndarray, ...]] = [()] * len(cut)
    with _watched(reader), torch.inference_mode():
        for rows in plan:
            parts = _read(reader, [cut[i] for i in rows], config.block_size)
            for row, part in zip(rows, parts, strict=True):
                found[row] = part
    features, plain, labels = (np.concatenate(column) for column in zip(*found, strict=True))
    numbers = {context: n for n, context in enumerate(dict.fromkeys(e.context for e in examples))}
    owner = np.concatenate([[w.example] * len(p[2]) for w, p in zip(cut, found, strict=True)])
    return BlockData(
        features=features,
        plain=plain,
        labels=labels,
        passages=np.array([numbers[examples[i].context] for i in owner]),
        examples=owner,
        characters=np.concatenate([_characters(window, config.block_size) for window in cut]),
    )


@contextlib.contextmanager
def _watched(reader: EncoderReader) -> Iterator[None]:
    """Within, the encoder keeps its attention maps; afterwards it is what it was."""
    encoder, training = reader.encoder, reader.training
    usual = encoder.config._attn_implementation
    reader.eval()
    if usual != "eager":
        encoder.set_attn_implementation("eager")
    try:
        yield
    finally:
        if usual != "eager":
            encoder.set_attn_implementation(usual)
        reader.train(training)


def _read(reader: EncoderReader, windows: list[Window], size: int) -> list[tuple[np.ndarray, ...]]:
    """Features, plain numbers and labels of every window's own K blocks, as ``BlockData`` has."""
    device = next(reader.parameters()).device
    batch = collate(windows, reader.tokenizer.pad_token_id or 0).to(device)
    inputs = {k: v for k, v in batch.inputs.items() if k != "token_type_ids" or reader.uses_types}
    output = reader.encoder(**inputs, output_attentions=True, output_hidden_states=True)
    if not output.attentions or output.attentions[0] is None:
        raise QalibError(
            f"the encoder {reader.encoder.config.model_type!r} gives no attention maps; use one "
            "that has 'eager' attention."
        )
    blocks = _blocks(batch, reader.tokenizer.all_special_ids, size)
    layers = zip(output.attentions, output.hidden_states, strict=False)  # one hidden state more
    features = [six_features(LayerView(FullAttention(p), h), blocks) for p, h in layers]
    columns = (
        torch.stack(features, dim=2).float(),
        without_attention(batch.inputs["input_ids"], blocks),
        answer_blocks(blocks, batch.spans, batch.weights),
    )
    arrays = [column.cpu().numpy() for column in columns]
    counts = blocks.real.sum(dim=1).tolist()
    return [tuple(a[row, :count] for a in arrays) for row, count in enumerate(counts)]


def _blocks(batch: Batch, special_ids: Sequence[int], size: int) -> Blocks:
    real = batch.inputs["attention_mask"]
    return make_blocks(batch.inputs["input_ids"], real, batch.mask, special_ids, size)


def _characters(window: Window, size: int) -> np.ndarray:
    """Where the window's blocks lie in its passage, [start, end).  (K, 2)"""
    offsets = window.offsets.astype(np.int64)
    firsts = np.arange(0, len(offsets), size)
    lasts = np.minimum(firsts + size, len(offsets)) - 1
    return np.stack([offsets[firsts, 0], offsets[lasts, 1]], axis=1)


def without_attention(input_ids: Tensor, blocks: Blocks) -> Tensor:
    """What can be told about a block with no network.  (B, L) -> (B, K, 5)

    The share of the question's words in it, how far that lies from the passage's mean, and its
    place and length.
    """
    shared = word_overlap(input_ids, blocks)[..., None]
    return torch.cat([shared, relative(shared, blocks), placement(blocks)], dim=2)


def select(
    features: np.ndarray,
    layer: int,
    heads: Sequence[int] | None = None,
    kinds: Sequence[int] | None = None,
) -> np.ndarray:
    """What a probe of one layer reads.  (N, layers, H, 6) -> (N, D)

    ``layer`` counts from 1; ``heads`` and ``kinds`` (which of the six) from 0, all by default.
    """
    if not 1 <= layer <= features.shape[1]:
        raise QalibError(f"there is no layer {layer}; layers count from 1 to {features.shape[1]}.")
    chosen = features[:, layer - 1]
    chosen = chosen if heads is None else chosen[:, list(heads)]
    chosen = chosen if kinds is None else chosen[..., list(kinds)]
    return chosen.reshape(len(features), -1)


# --- fitting and scoring ---------------------------------------------------------------------


def fit(inputs: np.ndarray, labels: np.ndarray, config: ProbeConfig = ProbeConfig()) -> Probe:
    """Fit a probe.  (N, D), (N,) bool. Raises QalibError if all blocks are of one class."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    if labels.all() or not labels.any():
        kind = "hold" if len(labels) and labels.all() else "lack"
        raise QalibError(
            f"all {len(labels)} blocks {kind} an answer, so a probe has nothing to tell apart; use "
            "more questions, longer passages or smaller blocks."
        )
    inputs = inputs.astype(np.float64)
    scaler = StandardScaler().fit(inputs)
    weight = "balanced" if config.balanced else None
    model = LogisticRegression(C=config.strength, class_weight=weight, max_iter=2000)
    model.fit(scaler.transform(inputs), labels)
    return Probe(scaler.mean_, scaler.scale_, model.coef_[0], float(model.intercept_[0]))


def score(probabilities: np.ndarray, labels: np.ndarray, threshold: float = 0.5) -> Scores:
    """How well ``probabilities`` (N,) find the blocks of ``labels`` (N,) bool."""
    from sklearn.metrics import roc_auc_score

    said = probabilities >= threshold
    hits, found, there = (said & labels).sum(), said.sum(), labels.sum()
    single = labels.all() or not labels.any()
    return Scores(
        accuracy=float((said == labels).mean()),
        precision=float(hits / max(1, found)),
        recall=float(hits / max(1, there)),
        f1=float(2 * hits / max(1, found + there)),
        auc=float("nan") if single else float(roc_auc_score(labels, probabilities)),
    )


def folds(
    labels: np.ndarray, passages: np.ndarray, config: ProbeConfig
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows to fit on and rows to score, for every fold; no passage is in both.

    Raises QalibError if there are fewer passages than folds.
    """
    from sklearn.model_selection import GroupKFold

    count = len(np.unique(passages))
    if count < config.folds:
        raise QalibError(f"{config.folds} folds need as many passages, and there are {count}.")
    return list(GroupKFold(config.folds).split(labels, groups=passages))


def cross_validate(
    inputs: np.ndarray,
    labels: np.ndarray,
    passages: np.ndarray,
    config: ProbeConfig = ProbeConfig(),
) -> list[Scores]:
    """The scores of each fold's passages by a probe fitted on all others."""
    made = []
    for rest, held in folds(labels, passages, config):
        probe = fit(inputs[rest], labels[rest], config)
        made.append(score(probe.probabilities(inputs[held]), labels[held], config.threshold))
    return made


def baselines(
    labels: np.ndarray, passages: np.ndarray, config: ProbeConfig = ProbeConfig()
) -> dict[str, list[Scores]]:
    """What one gets for nothing, by fold: the larger class always, and "answer" always."""
    made: dict[str, list[Scores]] = {"majority": [], "every block": []}
    for rest, held in folds(labels, passages, config):
        most = float(labels[rest].mean() > 0.5)
        for name, always in (("majority", most), ("every block", 1.0)):
            made[name].append(score(np.full(len(held), always), labels[held], config.threshold))
    return made


def mean_scores(scores: Sequence[Scores]) -> Scores:
    """The mean over folds."""
    names = [field.name for field in fields(Scores)]
    return Scores(**{name: float(np.mean([getattr(s, name) for s in scores])) for name in names})
