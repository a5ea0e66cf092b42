"""Training block predictors, with or without their encoder, and predicting blocks with them.

Notation: B batch, L tokens of a window, K blocks of a window, N blocks of a data set, A gold
answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from qalib.data.batching import Batch, collate, inference_batches
from qalib.data.schema import Dataset, Example
from qalib.data.windows import Window, WindowConfig, make_windows, training_windows
from qalib.decoding import ReaderOutput
from qalib.losses import SkimLossConfig, block_labels, kl_divergence, skim_loss, span_loss
from qalib.models.encoder import EncoderReader
from qalib.progress import progress_bar
from qalib.settings import settings
from qalib.skim.blocks import batch_block_ids, sentence_blocks
from qalib.skim.predictors import PredictorConfig
from qalib.skim.reader import SkimReader
from qalib.skim.skimmer import SkimConfig, Skimmer
from qalib.training import TrainConfig, TrainingTask, choose_precision, make_optimizer, train


@settings
class PredictorTraining:
    """How block predictors are trained beside a reader, and whether it is trained with them."""

    windows: WindowConfig = field(default_factory=WindowConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    loss: Literal["mean", "marginal", "min"] = "mean"  # of answers, over several gold ones
    seed: int = 0
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    skim_loss: SkimLossConfig = field(default_factory=SkimLossConfig)
    predictor_rate: Annotated[float, Field(gt=0)] = 1.0  # times the encoder's learning rate
    layers: tuple[int, ...] = ()  # with a predictor; () = all
    frozen: bool = False  # train the predictors only
    detached: bool = False  # no gradient of the block loss reaches the encoder
    sentences: bool = False  # blocks end where sentences end
    answer_head: bool = False  # a linear span head at every predictor scores pruned blocks
    prune_layers: tuple[int, ...] = ()  # prune during training, at these layers
    thresholds: tuple[float, ...] = ()  # of ``prune_layers``
    teacher_weight: Annotated[float, Field(ge=0)] = 0.0  # of KL(reader at the start || reader)


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
        answer_head=config.answer_head,
        detach_views=config.frozen or config.detached,
    )
    torch.manual_seed(config.seed)
    skimmer = Skimmer.from_encoder(reader.encoder, skim_config)
    if config.frozen:
        reader.requires_grad_(False)
    return SkimReader(reader, skimmer, skims_in_training=bool(config.prune_layers))


def skim_task(
    model: SkimReader,
    data: Dataset,
    config: PredictorTraining,
    teacher: EncoderReader | None = None,
) -> TrainingTask:
    """The task of joint training: answer loss plus block loss (Block-Skim, Eq. 5).

    With a frozen encoder only the block loss; an answer head adds a span loss, a teacher its KL
    divergence.
    """
    tokenizer = model.tokenizer
    windows = training_windows(make_windows(data.examples, tokenizer, config.windows))
    if teacher is not None:
        teacher.eval().requires_grad_(False)

    def loss(output: ReaderOutput, batch: Batch) -> Tensor:
        spans, weights, aux = batch.answer_spans, batch.answer_weights, output.aux
        labels = block_labels(aux.blocks.membership(), spans, weights, config.skim_loss.two_tokens)
        total = sum(
            skim_loss([logits], labels, aux.scored[layer], config.skim_loss)
            for layer, logits in aux.scores.items()
        )
        outputs = [] if config.frozen else [output]
        outputs += [output._replace(start_logits=s, end_logits=e) for s, e in aux.early.values()]
        total = total + sum(span_loss(one, spans, weights, config.loss) for one in outputs)
        if teacher is not None:
            total = total + config.teacher_weight * kl_divergence(output, teacher(batch))
        return total

    def collate_rows(rows: Sequence[int]) -> Batch:
        return skim_batch([windows[i] for i in rows], data.examples, config, tokenizer)

    return TrainingTask([len(window) for window in windows], collate_rows, loss)


def skim_batch(
    windows: list[Window], examples: Sequence[Example], config: PredictorTraining, tokenizer
) -> Batch:
    """A batch of windows; with ``config.sentences`` its inputs hold the blocks."""
    batch = collate(windows, tokenizer.pad_token_id or 0, config.windows.null)
    if config.sentences:
        size = config.predictor.block_size
        blocks = [sentence_blocks(w, examples[w.example].context, size) for w in windows]
        batch.inputs["block_ids"] = batch_block_ids(blocks, windows, batch.mask.shape[1])
    return batch


def skim_optimizer(model: SkimReader, config: PredictorTraining) -> torch.optim.Optimizer:
    """AdamW, with ``predictor_rate`` times the learning rate for predictors and answer heads."""
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
    teacher: EncoderReader | None = None,
    **options,
) -> dict:
    """Train what is not frozen; ``folder``, ``options`` and the result as of ``training.train``."""
    if not any(p.requires_grad for p in model.parameters()):  # kind "random" has no parameters
        return {}
    task, optimizer = skim_task(model, data, config, teacher), skim_optimizer(model, config)
    return train(model, task, config.train, folder, config.seed, optimizer=optimizer, **options)


# --- block predictions ----------------------------------------------------------------------------


@dataclass(frozen=True)
class BlockPredictions:
    """Every passage block of a data set."""

    row: np.ndarray  # (N,) int32, the question
    sizes: np.ndarray  # (N,) int32, tokens
    answers: np.ndarray  # (N, A) bool, which gold answers have a token in the block
    scores: dict[int, np.ndarray]  # (N,) float32 probabilities, by layer
    two_tokens: np.ndarray | None = None  # (N,) bool, the released code's labels: two tokens of
    # the first gold answer; some records do not have them

    @property
    def labels(self) -> np.ndarray:
        """The paper's labels: a token of any gold answer.  (N,) bool"""
        return self.answers.any(axis=1)


def block_predictions(
    model: SkimReader,
    data: Dataset,
    config: PredictorTraining,
    precision: str = "auto",
    tokens_per_batch: int = 8192,
    progress: bool = False,
) -> BlockPredictions:
    """The probability of every block of ``data`` at every layer with a predictor.

    ``config`` gives windows and blocks. A block's probability does not depend on the batch.
    """
    windows = make_windows(data.examples, model.tokenizer, config.windows)
    device = next(model.eval().parameters()).device.type
    bf16 = choose_precision(precision, device)[0] == "bf16"
    parts: list[dict] = [{}] * len(windows)
    with progress_bar(len(windows), "score blocks", "window", show=progress) as bar:
        for rows in inference_batches([len(window) for window in windows], tokens_per_batch):
            batch = skim_batch([windows[i] for i in rows], data.examples, config, model.tokenizer)
            with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=bf16):
                output = model.run(batch.to(torch.device(device)), skim=False)
            for place, number in enumerate(rows):
                parts[number] = _window_blocks(output, place, windows[number])
            bar.update(len(rows))
    widest = max(part["answers"].shape[1] for part in parts)
    answers, earlier = [], {}  # each window of a question has columns of its own
    for part, window in zip(parts, windows, strict=True):
        rank = earlier[window.example] = earlier.get(window.example, -1) + 1
        left, held = rank * widest, part["answers"]
        answers.append(np.pad(held, [(0, 0), (left, widest - held.shape[1])]))
    width = max(x.shape[1] for x in answers)
    answers = [np.pad(x, [(0, 0), (0, width - x.shape[1])]) for x in answers]
    counts = [len(part["sizes"]) for part in parts]
    layers = {n: np.concatenate([p["scores"][n] for p in parts]) for n in parts[0]["scores"]}
    return BlockPredictions(
        row=np.repeat([window.example for window in windows], counts).astype(np.int32),
        sizes=np.concatenate([part["sizes"] for part in parts]).astype(np.int32),
        answers=np.concatenate(answers),
        scores=layers,
        two_tokens=np.concatenate([part["two_tokens"] for part in parts]),
    )


def _window_blocks(output, place: int, window: Window) -> dict:
    """Sizes, answers, labels and probabilities of the K blocks of one window of a batch."""
    block_ids = output.blocks.block_ids[place].cpu().numpy()
    count = int(output.blocks.real[place].sum())
    tokens = [
        np.bincount(block_ids[first : last + 1], minlength=count)
        for first, last in window.spans
        if first >= window.context_start  # not the null answer
    ]
    tokens = np.array(tokens or [np.zeros(count, int)])  # (A, K)
    logits = {n: x[place, :count].float() for n, x in output.scores.items()}
    return {
        "sizes": np.bincount(block_ids[block_ids >= 0], minlength=count),
        "answers": tokens.T > 0,
        "two_tokens": tokens[0] > 1,
        "scores": {n: x.sigmoid().cpu().numpy() for n, x in logits.items()},
    }
