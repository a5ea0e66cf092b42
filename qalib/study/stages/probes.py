"""Stages of notebook 04: logistic regression probes of the attention of an encoder.

A probe of a layer reads six features per head of a passage block (Eq. 2 of the Block-Skim paper)
and predicts whether the block contains an answer token. It is fitted on some passages and scored
on others; the encoder is never changed. Source: Block-Skim, section 3 and Fig. 1.
"""

from collections.abc import Iterator, Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field

from qalib.data.schema import Dataset, Example
from qalib.data.windows import WindowConfig
from qalib.errors import QalibError
from qalib.settings import settings
from qalib.study.run_cache import Run, stage
from qalib.study.stages.baseline import EncoderTraining, load_encoder_reader

if TYPE_CHECKING:
    from qalib.models.encoder import EncoderReader


@settings
class ProbeConfig:
    """Whose attention is probed, and on how many blocks.

    ``reader``: "shipped" is the published one; "profile" that of notebook 00, given as ``weights``
    """

    reader: Literal["shipped", "profile"] = "shipped"
    windows: WindowConfig = field(default_factory=WindowConfig)
    train_questions: Annotated[int, Field(ge=1)] = 600
    test_questions: Annotated[int, Field(ge=1)] = 200
    block_size: Annotated[int, Field(ge=1)] = 32
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
    """The probed reader, fine-tuned or as it was before; the span head is then random."""
    from qalib.models.encoder import build_encoder
    from qalib.models.pretrained import load_reader as load_pretrained

    if fine_tuned:
        return load_encoder_reader(weights) if weights else load_pretrained()
    base = weights.settings(EncoderTraining) if weights else EncoderTraining()
    return build_encoder(base.encoder, base.seed)


def block_features(
    reader: "EncoderReader",
    examples: Sequence[Example],
    windows: WindowConfig,
    block_size: int = 32,
    tokens_per_batch: int = 2048,
) -> BlockFeatures:
    """Features and labels of all passage blocks, in every layer of a reader.

    The reader is left in evaluation mode, with "eager" attention. Of a long passage only the
    windows with a whole gold answer count. Raises QalibError if there are none, or if the encoder
    returns no attention maps.
    """
    import torch

    from qalib.data.batching import collate, inference_batches
    from qalib.data.windows import make_windows, training_windows

    cut = training_windows(make_windows(examples, reader.tokenizer, windows))
    if not cut:
        raise QalibError(
            f"none of the {len(examples)} questions has a passage with its answer in it; a probe "
            "needs blocks with and without answers."
        )
    parts: list[tuple[np.ndarray, ...]] = [()] * len(cut)
    reader.eval().encoder.set_attn_implementation("eager")
    with torch.inference_mode():
        for rows in inference_batches([len(window) for window in cut], tokens_per_batch):
            batch = collate([cut[i] for i in rows], reader.tokenizer.pad_token_id or 0)
            for row, arrays in zip(rows, _batch_features(reader, batch, block_size), strict=True):
                parts[row] = arrays
    attention, lexical, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    owners = np.repeat([window.example for window in cut], [len(part[2]) for part in parts])
    numbers = {text: n for n, text in enumerate(dict.fromkeys(e.context for e in examples))}
    passages = np.array([numbers[examples[i].context] for i in owners])
    characters = np.concatenate([_characters(window.offsets, block_size) for window in cut])
    return BlockFeatures(attention, lexical, labels, passages, owners, characters)


def _batch_features(reader: "EncoderReader", batch, size: int) -> list[tuple[np.ndarray, ...]]:
    """Attention features, lexical features and labels of the K blocks of every window."""
    import torch

    from qalib.skim.activations import FullAttention, LayerActivations
    from qalib.skim.blocks import answer_blocks, make_blocks
    from qalib.skim.features import block_position, paper_features, relative, word_overlap

    batch = batch.to(next(reader.parameters()).device)
    ids, real = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    inputs = {k: v for k, v in batch.inputs.items() if k != "token_type_ids" or reader.uses_types}
    output = reader.encoder(**inputs, output_attentions=True, output_hidden_states=True)
    if not output.attentions or output.attentions[0] is None:
        raise QalibError(
            f"the encoder {reader.encoder.config.model_type!r} returns no attention maps; use one "
            "with 'eager' attention."
        )
    blocks = make_blocks(ids, real, batch.mask, reader.tokenizer.all_special_ids, size)
    layers = zip(output.attentions, output.hidden_states, strict=False)  # one hidden state more
    features = [paper_features(LayerActivations(FullAttention(p), h), blocks) for p, h in layers]
    overlap = word_overlap(ids, blocks)[..., None]
    arrays = [
        torch.stack(features, dim=2).float(),
        torch.cat([overlap, relative(overlap, blocks), block_position(blocks)], dim=2),
        answer_blocks(blocks, batch.answer_spans, batch.answer_weights),
    ]
    arrays = [array.cpu().numpy() for array in arrays]
    counts = blocks.real.sum(dim=1).tolist()
    return [tuple(array[row, :count] for array in arrays) for row, count in enumerate(counts)]


def _characters(offsets: np.ndarray, size: int) -> np.ndarray:
    """Where the blocks of a window lie in its passage, [start, end).  (L, 2) -> (K, 2)"""
    firsts = np.arange(0, len(offsets), size)
    lasts = np.minimum(firsts + size, len(offsets)) - 1
    return np.stack([offsets[firsts, 0], offsets[lasts, 1]], axis=1).astype(np.int64)


def probe():
    """Logistic regression on standardised features, not yet fitted."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))


def probe_scores(model, inputs: np.ndarray, labels: np.ndarray, splits: Sequence) -> pd.DataFrame:
    """A classifier fitted and scored on every split (rows to fit on, rows to score).

    inputs (N, ...) -> a row a split: fold, accuracy, precision, recall, f1 (percent), auc (0 to 1)
    """
    from sklearn.metrics import make_scorer, precision_score
    from sklearn.model_selection import cross_validate

    precision = make_scorer(precision_score, zero_division=0)
    scoring = {"accuracy": "accuracy", "precision": precision, "recall": "recall", "f1": "f1"}
    scoring["auc"] = "roc_auc"
    inputs = inputs.reshape(len(inputs), -1).astype(np.float64)
    found = cross_validate(model, inputs, labels, cv=splits, scoring=scoring, error_score="raise")
    table = pd.DataFrame({name: 100 * found[f"test_{name}"] for name in scoring})
    return table.assign(fold=range(len(table)), auc=found["test_auc"])


def passage_folds(data: BlockFeatures, folds: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Splits for cross-validation that keep all blocks of a passage together."""
    from sklearn.model_selection import GroupKFold

    return list(GroupKFold(folds).split(data.labels, groups=data.passages))


def _classifiers(data: BlockFeatures) -> Iterator[tuple[str, int, Any, np.ndarray]]:
    """All classifiers of ``probe_layers``: name, layer or 0, model, inputs."""
    from sklearn.dummy import DummyClassifier

    yield "majority", 0, DummyClassifier(strategy="most_frequent"), data.lexical
    yield "every block", 0, DummyClassifier(strategy="constant", constant=True), data.lexical
    yield "words and place", 0, probe(), data.lexical
    for layer in range(data.attention.shape[1]):
        yield "attention", layer + 1, probe(), data.attention[:, layer]


@stage("probe-layers", publish=("scores.csv", "blocks.csv"))
def probe_layers(
    config: ProbeConfig,
    work: Path,
    train: Dataset,
    test: Dataset,
    checkpoint: str | None = None,
    weights: Run | None = None,
) -> dict:
    """Probe every layer of the published reader (``checkpoint``: its hash) or of ``weights``.

    scores.csv: encoder ("after" or "before" fine-tuning), on ("folds" of the training passages, or
    "test": fitted on all of them), reads, layer and the columns of ``probe_scores``; blocks.csv:
    all blocks of the test questions with their probabilities.
    """
    questions = evenly(test, config.test_questions)
    train_questions = evenly(train, config.train_questions)
    after, before = (_features(config, train_questions, weights, tuned) for tuned in (True, False))
    held = _features(config, questions, weights, True)
    rows = []
    for encoder, data in {"after": after, "before": before}.items():
        splits = passage_folds(data, config.folds)
        for reads, layer, model, inputs in _classifiers(data):
            scores = probe_scores(model, inputs, data.labels, splits)
            rows.append(scores.assign(encoder=encoder, on="folds", reads=reads, layer=layer))
    blocks = pd.DataFrame(held.characters, columns=["start", "end"])
    blocks.insert(0, "id", [questions[i].id for i in held.examples])
    blocks["answer"] = held.labels
    labels = np.concatenate([after.labels, held.labels])
    fit, score = np.split(np.arange(len(labels)), [len(after.labels)])
    for (reads, layer, model, inputs), (*_, test_inputs) in zip(
        _classifiers(after), _classifiers(held), strict=True
    ):
        inputs = np.concatenate([inputs, test_inputs])
        scores = probe_scores(model, inputs, labels, [(fit, score)])
        rows.append(scores.assign(encoder="after", on="test", reads=reads, layer=layer))
        if reads in ("words and place", "attention"):
            inputs = inputs.reshape(len(inputs), -1).astype(np.float64)
            chances = model.fit(inputs[fit], after.labels).predict_proba(inputs[score])[:, 1]
            blocks[f"layer {layer}" if layer else "words"] = chances.round(4)
    pd.concat(rows).to_csv(work / "scores.csv", index=False, lineterminator="\n")
    blocks.to_csv(work / "blocks.csv", index=False, lineterminator="\n")
    counts = {"blocks": len(after.labels), "passages": len(np.unique(after.passages))}
    return {**counts, "answers": float(after.labels.mean()), "test_blocks": len(held.labels)}


@stage("probe-parts", publish=("heads.csv", "numbers.csv"))
def probe_parts(
    config: ProbeConfig,
    work: Path,
    train: Dataset,
    checkpoint: str | None = None,
    weights: Run | None = None,
) -> dict:
    """Mean AUC over the folds of probes that read a part of the attention of a layer.

    heads.csv: layer, head, auc; numbers.csv: layer, number (name of one of the six features),
    alone, without (the other five), all.
    """
    from qalib.skim.features import PAPER_FEATURES

    data = _features(config, evenly(train, config.train_questions), weights, True)
    splits = passage_folds(data, config.folds)
    _, layers, heads, _ = data.attention.shape

    def auc(part: np.ndarray) -> float:
        return probe_scores(probe(), part, data.labels, splits)["auc"].mean()

    by_head, by_number = [], []
    for layer in range(layers):
        attention = data.attention[:, layer]  # (N, H, 6)
        for head in range(heads):
            row = {"layer": layer + 1, "head": head + 1, "auc": auc(attention[:, head])}
            by_head.append(row)
        everything = auc(attention)
        for index, name in enumerate(PAPER_FEATURES):
            row = {"layer": layer + 1, "number": name, "alone": auc(attention[..., index])}
            row |= {"without": auc(np.delete(attention, index, axis=-1)), "all": everything}
            by_number.append(row)
    pd.DataFrame(by_head).to_csv(work / "heads.csv", index=False, lineterminator="\n")
    pd.DataFrame(by_number).to_csv(work / "numbers.csv", index=False, lineterminator="\n")
    return {"layers": layers, "heads": heads}


def _features(
    config: ProbeConfig, examples: list[Example], weights: Run | None, fine_tuned: bool
) -> BlockFeatures:
    import torch

    reader = probed_reader(weights, fine_tuned)
    reader = reader.to("cuda" if torch.cuda.is_available() else "cpu")
    return block_features(reader, examples, config.windows, config.block_size)
