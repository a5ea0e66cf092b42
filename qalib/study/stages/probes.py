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
            torch.cat([overlap, relative(overlap, blocks), block_position(blocks)], dim=2),
            answer_blocks(blocks, batch.answer_spans, batch.answer_weights),
        ]
    arrays = [tensor.cpu().numpy() for tensor in tensors]
    counts = blocks.real.sum(dim=1).tolist()
    return [tuple(array[row, :count] for array in arrays) for row, count in enumerate(counts)]


def probe():
    """Logistic regression on standardised features, not yet fitted."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))


def passage_folds(data: BlockFeatures, folds: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Splits for cross-validation that keep all blocks of a passage together."""
    from sklearn.model_selection import GroupKFold

    return list(GroupKFold(folds).split(data.labels, groups=data.passages))


def probe_scores(model, inputs: np.ndarray, labels: np.ndarray, splits: Sequence) -> pd.DataFrame:
    """A classifier fitted and scored on every split (rows to fit on, rows to score).

    inputs (N, ...) -> a row a split: fold, accuracy, precision, recall, f1 (percent), auc (0 to 1)
    """
    from sklearn.metrics import make_scorer, precision_score
    from sklearn.model_selection import cross_validate

    scoring = {name: name for name in ("accuracy", "precision", "recall", "f1")}
    scoring |= {"precision": make_scorer(precision_score, zero_division=0), "auc": "roc_auc"}
    inputs = inputs.reshape(len(inputs), -1).astype(np.float64)
    found = cross_validate(model, inputs, labels, cv=splits, scoring=scoring, error_score="raise")
    table = pd.DataFrame({name: 100 * found[f"test_{name}"] for name in scoring})
    return table.assign(fold=range(len(table)), auc=found["test_auc"])


def _classifiers(data: BlockFeatures) -> Iterator[tuple[str, int, Any, np.ndarray]]:
    """All classifiers of ``probe_layers``: name, layer or 0, model, inputs."""
    from sklearn.dummy import DummyClassifier

    yield "majority", 0, DummyClassifier(strategy="most_frequent"), data.lexical
    yield "every block", 0, DummyClassifier(strategy="constant", constant=True), data.lexical
    yield "words and place", 0, probe(), data.lexical
    for layer in range(data.attention.shape[1]):
        yield "attention", layer + 1, probe(), data.attention[:, layer]


@stage("probe-attention", publish=("*.csv",))
def probe_attention(
    config: ProbeConfig,
    work: Path,
    train: Dataset,
    test: Dataset,
    checkpoint: str | None = None,
    weights: Run | None = None,
) -> dict:
    """Probe the attention of the published reader (``checkpoint``: its hash) or of ``weights``.

    scores.csv: encoder ("after" or "before" fine-tuning), on ("folds" of the training passages, or
    "test": fitted on all of them), reads, layer and the columns of ``probe_scores``; blocks.csv:
    all blocks of the test questions with their probabilities; heads.csv and numbers.csv: see
    :func:`probe_parts`.
    """
    questions, few = evenly(test, config.test_questions), evenly(train, config.train_questions)
    settings = config.windows, config.block_size
    tuned = probed_reader(weights, True)
    after, held = (block_features(tuned, some, *settings) for some in (few, questions))
    before = block_features(probed_reader(weights, False), few, *settings)
    rows = []
    for encoder, data in {"after": after, "before": before}.items():
        splits = passage_folds(data, config.folds)
        for reads, layer, model, inputs in _classifiers(data):
            scores = probe_scores(model, inputs, data.labels, splits)
            rows.append(scores.assign(encoder=encoder, on="folds", reads=reads, layer=layer))
    blocks = pd.DataFrame(held.characters, columns=["start", "end"]).assign(answer=held.labels)
    blocks.insert(0, "id", [questions[i].id for i in held.examples])
    labels = np.concatenate([after.labels, held.labels])
    fit, score = np.split(np.arange(len(labels)), [len(after.labels)])
    tests = (inputs for *_, inputs in _classifiers(held))
    for (reads, layer, model, inputs), others in zip(_classifiers(after), tests, strict=True):
        inputs = np.concatenate([inputs, others]).reshape(len(labels), -1).astype(np.float64)
        scores = probe_scores(model, inputs, labels, [(fit, score)])
        rows.append(scores.assign(encoder="after", on="test", reads=reads, layer=layer))
        if reads in ("words and place", "attention"):
            chances = model.fit(inputs[fit], after.labels).predict_proba(inputs[score])[:, 1]
            blocks[f"layer {layer}" if layer else "words"] = chances.round(4)
    tables = {"scores": pd.concat(rows), "blocks": blocks, **probe_parts(after, config.folds)}
    for name, table in tables.items():
        table.to_csv(work / f"{name}.csv", index=False, lineterminator="\n")
    counts = {"blocks": len(after.labels), "passages": len(np.unique(after.passages))}
    return {**counts, "answers": float(after.labels.mean()), "test_blocks": len(held.labels)}


def probe_parts(data: BlockFeatures, folds: int) -> dict[str, pd.DataFrame]:
    """Mean AUC over the folds of probes that read a part of the attention of a layer.

    -> "heads": layer, head, auc; "numbers": layer, number (name of one of the six features),
    alone, without (the other five), all
    """
    from qalib.skim.features import PAPER_FEATURES

    def auc(part: np.ndarray) -> float:
        return probe_scores(probe(), part, data.labels, splits)["auc"].mean()

    heads, numbers, splits = [], [], passage_folds(data, folds)
    for layer in range(1, data.attention.shape[1] + 1):
        attention = data.attention[:, layer - 1]  # (N, H, 6)
        for head in range(attention.shape[1]):
            heads.append({"layer": layer, "head": head + 1, "auc": auc(attention[:, head])})
        everything = auc(attention)
        for index, name in enumerate(PAPER_FEATURES):
            alone, others = attention[..., index], np.delete(attention, index, axis=-1)
            row = {"layer": layer, "number": name, "alone": auc(alone), "without": auc(others)}
            numbers.append({**row, "all": everything})
    return {"heads": pd.DataFrame(heads), "numbers": pd.DataFrame(numbers)}
