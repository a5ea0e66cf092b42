"""Training of block predictors, with or without their encoder.

Notation: B batch, L tokens of a window, K blocks of a window, N of a data set.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from qalib.data.batching import Batch, collate, inference_batches, training_batches
from qalib.data.schema import Dataset
from qalib.data.windows import WindowConfig, check_windows, make_windows, training_windows
from qalib.decoding import ReaderOutput, mask_logits
from qalib.losses import SkimLossConfig, block_labels, skim_loss, span_loss
from qalib.models.encoder import EncoderReader
from qalib.settings import settings
from qalib.skim.predictors import FIXED, PredictorConfig, part_sizes, parts_of
from qalib.skim.reader import SkimReader
from qalib.skim.skimmer import SkimConfig, Skimmer
from qalib.training import TrainConfig, TrainingTask, make_optimizer, train


@settings
class PredictorTraining:
    """Settings for training block predictors, alone or together with their reader."""

    windows: WindowConfig = field(default_factory=WindowConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    loss: Literal["mean", "min"] = "mean"  # answer loss over several gold answers
    seed: int = 0
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    skim_loss: SkimLossConfig = field(default_factory=SkimLossConfig)
    predictor_rate: Annotated[float, Field(gt=0)] = 1.0  # times the encoder's learning rate
    layers: tuple[int, ...] = ()  # with a predictor; () = all
    frozen: bool = False  # train the predictors only
    prune_layers: tuple[int, ...] = ()  # prune during training, at these layers
    thresholds: tuple[float, ...] = ()  # one per pruning layer
    prune_after: Annotated[float, Field(ge=0, le=1)] = 0.0  # share of the steps without pruning
    teacher_weight: Annotated[float, Field(ge=0, le=0)] = 0.0  # unused; recorded settings have it
    soft_labels: Annotated[float, Field(ge=0, le=1)] = 0.0  # weight of the reader's answer


def middle_layers(depth: int) -> tuple[int, ...]:
    """Layers at a third, a half and two thirds of the depth."""
    return tuple(sorted({max(1, round(depth * share)) for share in (1 / 3, 1 / 2, 2 / 3)}))


def add_predictors(reader: EncoderReader, config: PredictorTraining) -> SkimReader:
    """The reader with new predictors; its own weights are frozen if ``config.frozen``."""
    depth = reader.encoder.config.num_hidden_layers
    skim_config = SkimConfig(
        predictor=config.predictor,
        layers=config.layers or tuple(range(1, depth + 1)),
        prune_layers=config.prune_layers,
        thresholds=config.thresholds,
        pruned_logits="forward" if config.prune_layers else "mask",  # the loss must stay finite
    )
    torch.manual_seed(config.seed)
    skimmer = Skimmer.beside(reader.encoder, skim_config)
    if config.frozen:
        reader.requires_grad_(False)
    return SkimReader(reader, skimmer, skims_in_training=bool(config.prune_layers))


def skim_task(model: SkimReader, data: Dataset, config: PredictorTraining) -> TrainingTask:
    """The joint training task: answer loss plus block loss (Block-Skim, Eq. 5).

    With a frozen encoder, the block loss alone. With ``soft_labels`` w, the label of a block is
    (1 - w) y + w q, where q is the probability that the reader's own answer is in it
    (``answer_chances``).
    """
    check_windows(config.windows, model.reader.max_length)
    pad = model.tokenizer.pad_token_id or 0
    windows = training_windows(make_windows(data.examples, model.tokenizer, config.windows))

    def loss(output: ReaderOutput, batch: Batch) -> Tensor:
        spans, weights, aux = batch.answer_spans, batch.answer_weights, output.aux
        labels = _labels(output, batch, config)
        total = sum(
            skim_loss([logits], labels, aux.blocks.sizes * aux.scored[layer], config.skim_loss)
            for layer, logits in aux.scores.items()
        )
        if not config.frozen:
            total = total + span_loss(output, spans, weights, config.loss)
        return total

    def collate_rows(rows: Sequence[int]) -> Batch:
        return collate([windows[i] for i in rows], pad, config.windows.null)

    return TrainingTask([len(window) for window in windows], collate_rows, loss)


def answer_chances(output: ReaderOutput) -> Tensor:
    """Mean of the reader's probabilities of a start and of an end in each block.  -> (B, K)"""
    both = (mask_logits(logits, output.mask).softmax(dim=1) for logits in output[:2])
    mean = sum(both).detach() / 2
    return (output.aux.blocks.membership().float() @ mean[..., None].float()).squeeze(2)


def _labels(output: ReaderOutput, batch: Batch, config: PredictorTraining) -> Tensor:
    """Labels of the blocks, 0 to 1, mixed with the reader's answer.  -> (B, K) float32"""
    inside, share = output.aux.blocks.membership(), config.soft_labels
    gold = batch.answer_spans, batch.answer_weights
    labels = block_labels(inside, *gold, config.skim_loss.two_tokens).float()
    return labels.lerp(answer_chances(output), share) if share else labels


def skim_optimizer(model: SkimReader, config: PredictorTraining) -> torch.optim.Optimizer:
    """AdamW, with ``predictor_rate`` times the learning rate for predictors."""
    optimizer = make_optimizer(model, config.train)
    encoder = {id(p) for p in model.reader.parameters()}
    for group in list(optimizer.param_groups):
        added = [p for p in group["params"] if id(p) not in encoder]
        group["params"] = [p for p in group["params"] if id(p) in encoder]
        if added:
            scale = config.predictor_rate
            optimizer.add_param_group({**group, "params": added, "scale": scale})
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
    return optimizer


def fit(
    model: SkimReader,
    data: Dataset,
    config: PredictorTraining,
    folder: Path,
    features: "FixedFeatures | None" = None,
    **options,
) -> dict:
    """Train what is not frozen; ``folder``, ``options`` and the result as in ``training.train``.

    ``features``: those of ``data``, which the predictors of a frozen reader then read instead of
    its activations. The result is empty if nothing can be trained.
    """
    if not any(p.requires_grad for p in model.parameters()):  # kind "random" has no parameters
        return {}
    optimizer, trained = skim_optimizer(model, config), model
    if features is None:
        task = skim_task(model, data, config)
        plan = config.train
        batches = (
            training_batches(task.lengths, plan.tokens_per_batch, config.seed, epoch)
            for epoch in range(plan.num_train_epochs)
        )
        steps = sum(map(len, batches))
        model.first_skim = math.ceil(config.prune_after * min(steps, plan.max_steps or steps))
    else:
        task, trained = features.task(config), FeatureReader(model.skimmer)
    return train(trained, task, config.train, folder, config.seed, optimizer=optimizer, **options)


# --- predictors beside a frozen reader: their features are computed once ---


@dataclass(frozen=True)
class FixedFeatures:
    """Features of the passage blocks of W training windows, in the order of the windows.

    The parts ``FIXED`` of a predictor's features have no parameters. The attention maps of "cnn"
    and the hidden states of "tokens" and "match" are about 60 times as large or more (32-token
    blocks), so these kinds are trained with the reader in the loop.
    """

    question: Tensor  # (W,) int64
    lengths: Tensor  # (W,) int64, tokens
    counts: Tensor  # (W,) int64, blocks
    sizes: Tensor  # (N,) int64, tokens
    labels: Tensor  # (N,) float32, 0 to 1
    parts: Mapping[str, Tensor]  # "<layer> <part>": (N, C) float32

    def of_questions(self, chosen: Tensor) -> "FixedFeatures":
        """Features of the chosen questions.  chosen (questions,) bool"""
        windows = chosen[self.question]
        blocks = windows.repeat_interleave(self.counts)
        parts = {name: x[blocks] for name, x in self.parts.items()}
        heads = (x[windows] for x in (self.question, self.lengths, self.counts))
        return FixedFeatures(*heads, self.sizes[blocks], self.labels[blocks], parts)

    def task(self, config: PredictorTraining) -> TrainingTask:
        """Training with the block loss alone; batches are those of ``skim_task``."""
        parts = [part for part in FIXED if part in parts_of(config.predictor)]
        layers = sorted({int(name.split()[0]) for name in self.parts})
        joined = {
            str(n): torch.cat([self.parts[f"{n} {part}"] for part in parts], dim=1)
            for n in config.layers or layers
        }
        firsts = self.counts.cumsum(0) - self.counts

        def collate_rows(rows: Sequence[int]) -> Batch:
            windows = torch.as_tensor(rows)
            count = self.counts[windows]
            place = torch.arange(max(1, int(count.max())))
            real = place < count[:, None]  # (B, K)
            blocks = torch.where(real, firsts[windows][:, None] + place, 0)
            inputs = {name: x[blocks] * real[..., None] for name, x in joined.items()}
            inputs |= {"sizes": self.sizes[blocks] * real, "labels": self.labels[blocks] * real}
            spans = torch.zeros(len(rows), 1, 2, dtype=torch.int64)
            tokens = int(self.lengths[windows].sum())
            return Batch(inputs, real, spans, spans[..., 0].float(), tokens)

        def loss(scores: Mapping[int, Tensor], batch: Batch) -> Tensor:
            labels, sizes = batch.inputs["labels"], batch.inputs["sizes"]
            return skim_loss(scores.values(), labels, sizes, config.skim_loss)

        return TrainingTask(self.lengths.tolist(), collate_rows, loss)


class FeatureReader(nn.Module):
    """Predictors without their encoder, on a batch of features."""

    def __init__(self, skimmer: Skimmer):
        super().__init__()
        self.skimmer = skimmer

    def forward(self, batch: Batch) -> dict[int, Tensor]:
        """Logits (B, K) by layer."""
        given, real = batch.inputs, batch.mask
        predictors = self.skimmer.predictors.items()
        return {int(n): p.score_features(given[n], real) for n, p in predictors}


@torch.no_grad()
def fixed_features(model: SkimReader, data: Dataset, config: PredictorTraining) -> FixedFeatures:
    """The ``FIXED`` features of all training windows, at the layers with predictors.

    The predictors of ``model`` must be of kind "combined" and read exactly these parts.
    """
    windows = training_windows(make_windows(data.examples, model.tokenizer, config.windows))
    device, pad = next(model.eval().parameters()).device, model.tokenizer.pad_token_id or 0
    sizes_of = part_sizes(model.skimmer.shape)
    found: dict[str, Tensor] = {}

    def note(predictor, args: tuple) -> None:
        parts = predictor.block_features(args[0]).split([sizes_of[p] for p in FIXED], dim=2)
        layer = predictor.layers[0]
        found.update({f"{layer} {p}": x for p, x in zip(FIXED, parts, strict=True)})

    hooks = [p.register_forward_pre_hook(note) for p in model.skimmer.predictors.values()]
    rows: list[dict[str, Tensor]] = [{}] * len(windows)
    for chosen in inference_batches([len(window) for window in windows], 8192):
        batch = collate([windows[i] for i in chosen], pad, config.windows.null).to(device)
        aux = model.run(batch, skim=False)
        output = ReaderOutput(aux.start_logits, aux.end_logits, batch.mask, aux=aux)
        arrays = {"sizes": aux.blocks.sizes, "labels": _labels(output, batch, config), **found}
        arrays = {name: x.cpu() for name, x in arrays.items()}
        for place, number in enumerate(chosen):
            count = int(aux.blocks.real[place].sum())
            rows[number] = {name: x[place, :count].clone() for name, x in arrays.items()}
    for hook in hooks:
        hook.remove()
    joined = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    return FixedFeatures(
        torch.tensor([window.example for window in windows]),
        torch.tensor([len(window) for window in windows]),
        torch.tensor([len(row["sizes"]) for row in rows]),
        joined.pop("sizes"),
        joined.pop("labels"),
        joined,
    )
