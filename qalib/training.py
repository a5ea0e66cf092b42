"""One training loop for every reader, on a CPU, one GPU or several processes (accelerate).

A killed run that is started again with the same arguments resumes from its last checkpoint. On a
CPU the weights are bit-identical to those of an uninterrupted run: the batches of an epoch depend
only on (seed, epoch), and a checkpoint holds weights, optimiser and random state.
"""

import atexit
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from qalib.checkpoints import latest_checkpoint, load_checkpoint, save_checkpoint
from qalib.data.batching import Batch, collate, training_batches
from qalib.data.schema import Dataset, Example
from qalib.data.windows import Window, WindowConfig, check_windows, make_windows, training_windows
from qalib.decoding import ReaderOutput
from qalib.errors import QalibError
from qalib.files import canonical
from qalib.losses import span_loss
from qalib.models.bf16 import choose_precision
from qalib.models.encoder import EncoderReader
from qalib.progress import progress_bar
from qalib.settings import settings

SCRATCH = "scratch"  # folder of checkpoints, needed only until a run is finished
SAVE_SECONDS = 600  # of training between checkpoints of a single process, at most


@settings
class TrainConfig:
    """How a model is trained. Tokens are word pieces, words or bytes, depending on the reader."""

    num_train_epochs: Annotated[int, Field(ge=1)] = 2
    max_steps: Annotated[int, Field(ge=0)] = 0  # stop here even if epochs are left; 0 = no limit
    tokens_per_batch: Annotated[int, Field(ge=1)] = 4096  # padded, per step over all processes
    learning_rate: Annotated[float, Field(gt=0)] = 1.5e-4  # after the warm-up; then linear decay
    warmup_ratio: float = 0.06  # fraction of all steps
    weight_decay: float = 0.01  # of matrices, not of biases and norms
    max_grad_norm: float = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"


@dataclass(frozen=True)
class TrainingTask:
    """What to train on: items of known length, how to collate some into a batch, and the loss.

    A batch has one row per item. ``loss`` gives one value per row, shape (B,).
    ``batches(seed, epoch)`` plans an epoch from its arguments alone; by default, items of similar
    length fill the token budget. ``log_metrics()`` returns more values for every line of the log.
    """

    lengths: Sequence[int]
    collate: Callable[[Sequence[int]], Batch]
    loss: Callable[[ReaderOutput, Batch], Tensor]
    batches: Callable[[int, int], list[list[int]]] | None = None
    log_metrics: Callable[[], dict] | None = None


def learning_rate_at(step: int, steps: int, config: TrainConfig) -> float:
    """Linear warm-up over a share of the steps, then linear decay to 0; ``step`` is from 0."""
    warm = max(1, math.ceil(config.warmup_ratio * steps))
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    return config.learning_rate * (steps - step) / max(1, steps - warm)


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW, no decay on vectors (biases, norms). Raises QalibError if nothing is trainable."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise QalibError("nothing to train: every parameter of the model is frozen.")
    matrices, vectors = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=config.learning_rate, fused=True
    )


def make_accelerator(cpu: bool = False):
    """An ``Accelerator``; each of several processes leaves its process group before Python exits.

    Otherwise threads of the gloo backend may still hold tensors during interpreter shutdown, and
    the process dies of SIGABRT (pytorch/pytorch#179291). Autocast is left to the caller, because
    Accelerator's own cannot be changed later. The long timeout lets processes wait while the main
    one scores. ``cpu``: use no GPU; must be set in the first call of a process.
    """
    from accelerate import Accelerator, InitProcessGroupKwargs

    patience = InitProcessGroupKwargs(timeout=timedelta(days=1))
    accelerator = Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=[patience])
    if accelerator.num_processes > 1:
        atexit.unregister(_leave_process_group)  # registered once, however often this is called
        atexit.register(_leave_process_group)
    return accelerator


def _leave_process_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def train(
    model: nn.Module,
    task: TrainingTask,
    config: TrainConfig,
    folder: str | Path,
    seed: int = 0,
    progress: bool = True,
    after_epoch: Callable[[int], dict] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    logging_steps: int = 20,
    save_steps: int = 200,
) -> dict:
    """Train ``model`` in place; return steps, tokens, the last loss, precision, time and speed.

    ``optimizer`` defaults to that of ``make_optimizer``; ``config`` sets its learning rate, times
    ``scale`` in groups that have one. ``folder`` receives ``log.jsonl``, with a line every
    ``logging_steps`` steps and, after every epoch, also one cut short by ``max_steps``, what
    ``after_epoch(epoch)`` returns in the main process; ``scratch`` in it, checkpoints every
    ``save_steps`` steps, every ``SAVE_SECONDS`` and after epochs.

    Raises QalibError if there are no batches, if the loss or the gradient is not finite, or if
    ``folder`` holds the checkpoint of a run with other settings, seed or lengths of inputs.
    """
    from accelerate.utils import set_seed

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = make_accelerator()
    set_seed(seed + accelerator.process_index)
    bare = model.to(accelerator.device)
    optimizer = make_optimizer(bare, config) if optimizer is None else optimizer
    model, optimizer = accelerator.prepare(bare, optimizer)
    loop = _Loop(accelerator, bare, model, optimizer, task, config, folder, seed)
    loop.logging_steps, loop.save_steps = logging_steps, save_steps
    loop.resume()
    show = progress and accelerator.is_main_process
    bar = progress_bar(loop.steps, "train", "step", initial=loop.step, show=show)
    for epoch in range(loop.epoch, len(loop.plan)):
        loop.run_epoch(epoch, bar)
        if after_epoch is not None:
            scores = after_epoch(epoch) if accelerator.is_main_process else {}
            loop.log({"epoch": epoch + 1, **scores})
        loop.checkpoint()
    bar.close()
    accelerator.wait_for_everyone()
    return loop.summary()


def encoder_task(
    reader: EncoderReader,
    examples: Sequence[Example],
    config: WindowConfig,
    reduction: Literal["mean", "min"] = "mean",
) -> tuple[TrainingTask, list[Window]]:
    """The task of training an encoder with the span loss, and its windows with a gold answer.

    Raises QalibError if the windows are longer than the encoder allows.
    """
    check_windows(config, reader.max_length)
    pad = reader.tokenizer.pad_token_id or 0
    windows = training_windows(make_windows(examples, reader.tokenizer, config))
    task = TrainingTask(
        lengths=[len(window) for window in windows],
        collate=lambda rows: collate([windows[i] for i in rows], pad, config.null, reader.multiple),
        loss=lambda out, batch: span_loss(out, batch.answer_spans, batch.answer_weights, reduction),
    )
    return task, windows


def train_and_score(
    reader: EncoderReader,
    task: TrainingTask,
    config: TrainConfig,
    folder: Path,
    windows: WindowConfig,
    scored: Mapping[str, Dataset | None],
    seed: int = 0,
    report: Callable[[dict], None] | None = None,
    **options,
) -> dict:
    """:func:`train` an encoder and score it on the data sets ``scored`` after every epoch.

    The scores of :func:`metrics.score` are logged as "<name>_<metric>", such as "dev_f1", and
    passed to ``report``; those of the last epoch are returned with the summary.
    """
    from qalib.inference import AnswerConfig, QuestionAnswerer
    from qalib.metrics import score

    answering = AnswerConfig(windows=windows, precision=config.precision)

    def after_epoch(epoch: int) -> dict:
        answerer = QuestionAnswerer(reader, answering)
        scores = {
            f"{name}_{metric}": value
            for name, dataset in scored.items()
            if dataset
            for metric, value in score(dataset, answerer.predictions(dataset.examples)).items()
        }
        if report is not None:
            report({"epoch": epoch + 1, **scores})
        return scores

    summary = train(reader, task, config, folder, seed, after_epoch=after_epoch, **options)
    last = [line for line in read_log(folder) if "step" not in line][-1:]  # also if resumed later
    scores = {k: v for line in last for k, v in line.items() if k != "epoch"}
    return {"windows": len(task.lengths), **summary, **scores}


def read_log(folder: Path) -> list[dict]:
    """The lines of a run's log.jsonl; empty if the main process has already moved the folder."""
    try:
        lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


class _Loop:
    """The state of one run: its plan, the position in the plan, and the log."""

    STATE = ("step", "epoch", "tokens", "seconds", "pending", "last_loss", "lines", "run")

    def __init__(self, accelerator, bare, model, optimizer, task, config, folder, seed):
        self.accelerator, self.bare, self.model = accelerator, bare, model
        self.device = accelerator.device.type
        self.precision, _ = choose_precision(config.precision, self.device)
        self.optimizer, self.task, self.config = optimizer, task, config
        self.folder, self.seed = folder, seed
        self.plan = self._plan()  # the batches of every epoch; the schedule needs their number
        self.steps = sum(map(len, self.plan))
        if config.max_steps:
            self.steps = min(self.steps, config.max_steps)
        settings = canonical([config, seed, self.plan, list(task.lengths)])
        self.run = sha256(settings.encode()).hexdigest()
        self.step = self.epoch = self.tokens = self.lines = 0
        self.seconds = self.saved = 0.0
        self.pending = Counter()  # sums since the last line of the log
        self.last_loss: float | None = None

    def _plan(self) -> list[list[list[int]]]:
        """The batches of every epoch, up to the one in which ``max_steps`` is reached."""
        plan, steps, config = [], 0, self.config
        for epoch in range(config.num_train_epochs):
            if self.task.batches is not None:
                batches = self.task.batches(self.seed, epoch)
            else:
                lengths = self.task.lengths
                batches = training_batches(lengths, config.tokens_per_batch, self.seed, epoch)
            if not batches:
                raise QalibError("nothing to train on: no input holds a gold answer.")
            plan.append(batches)
            steps += len(batches)
            if config.max_steps and steps >= config.max_steps:
                break
        return plan

    def run_epoch(self, epoch: int, bar) -> None:
        """Train on the rest of an epoch, or until ``max_steps``."""
        self.epoch = epoch
        done = self.step - sum(map(len, self.plan[:epoch]))
        for indices in self.plan[epoch][done:]:
            if self.step >= self.steps:
                break
            self.model.train()
            begin = time.perf_counter()
            loss, tokens = self.train_step(indices)
            seconds = time.perf_counter() - begin
            self.step += 1
            self.tokens += tokens
            self.seconds += seconds
            self.pending.update(loss=loss, rows=len(indices), tokens=tokens, seconds=seconds)
            bar.update(1)
            if self.step % self.logging_steps == 0 or self.step == self.steps:
                self.write_line(bar)
            alone = self.accelerator.num_processes == 1  # the clocks of several may differ
            late = alone and self.seconds - self.saved > SAVE_SECONDS
            if self.step % self.save_steps == 0 or late:
                self.checkpoint()
        self.epoch = epoch + 1

    def train_step(self, indices: list[int]) -> tuple[float, int]:
        """One update from the rows ``indices``, split over processes.  -> sum of losses, tokens"""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        mine = indices[rank::world]
        batch = self.task.collate(mine or indices[:1]).to(self.accelerator.device)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16"):
            output = self.model(batch)
        losses = self.task.loss(output, batch)  # (B,)
        total = losses.sum() if mine else losses.sum() * 0.0  # a rank without rows adds nothing
        # processes average their gradients; with this factor, to that of the batch's mean loss
        self.accelerator.backward(total * (world / len(indices)))
        rate = learning_rate_at(self.step, self.steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("scale", 1.0)
        norm = self.accelerator.clip_grad_norm_(self.bare.parameters(), self.config.max_grad_norm)
        sums = torch.tensor([total.item(), batch.num_tokens if mine else 0])
        sums = self.accelerator.reduce(sums.to(self.accelerator.device), reduction="sum")
        loss, tokens = sums.tolist()
        if not math.isfinite(loss + float(norm)):
            raise QalibError(
                f"the loss became {loss} and its gradient {float(norm)} at step {self.step + 1}; "
                f"lower the learning rate ({self.config.learning_rate:g}) or train in fp32."
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss, int(tokens)

    def write_line(self, bar) -> None:
        sums = self.pending
        self.last_loss = sums["loss"] / max(1, sums["rows"])
        speed = sums["tokens"] / max(sums["seconds"], 1e-9)
        within_epoch = self.step - sum(map(len, self.plan[: self.epoch]))
        self.log(
            {
                "step": self.step,
                "epoch": round(self.epoch + within_epoch / len(self.plan[self.epoch]), 4),
                "loss": self.last_loss,
                "learning_rate": learning_rate_at(self.step - 1, self.steps, self.config),
                "tokens_per_second": round(speed),
                **(self.task.log_metrics() if self.task.log_metrics else {}),
            }
        )
        bar.set_postfix_str(f"loss {self.last_loss:.3f}, {speed:,.0f} tokens/s", refresh=False)
        self.pending = Counter()

    def log(self, line: dict) -> None:
        self.lines += 1
        if self.accelerator.is_main_process:
            with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def checkpoint(self) -> None:
        state = {name: getattr(self, name) for name in self.STATE}
        folder, self.saved = self.folder / SCRATCH, self.seconds
        save_checkpoint(folder, self.step, self.bare, self.optimizer, state, self.accelerator)

    def resume(self) -> None:
        """Continue from the last checkpoint, if there is one, and cut the log to its lines."""
        found = latest_checkpoint(self.folder / SCRATCH)
        log = self.folder / "log.jsonl"
        if found is None:
            log.unlink(missing_ok=True)
            return
        state = load_checkpoint(found, self.bare, self.optimizer, self.accelerator)
        if state.get("run") != self.run:
            raise QalibError(
                f"{found}: the checkpoint is of a run with another seed or other settings or data; "
                "remove it to start anew."
            )
        if self.accelerator.is_main_process and log.exists():
            lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
            log.write_text("".join(lines[: state["lines"]]), encoding="utf-8")
        for name in self.STATE:
            setattr(self, name, state[name])
        self.pending, self.saved = Counter(self.pending), self.seconds

    def summary(self) -> dict:
        return {
            "steps": self.step,
            "tokens": self.tokens,
            "loss": self.last_loss,
            "precision": self.precision,
            "train_seconds": round(self.seconds, 3),
            "tokens_per_second": round(self.tokens / max(self.seconds, 1e-9)),
        }
