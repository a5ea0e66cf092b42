"""Training with Block-Skim: jointly, with a frozen encoder, with skimming on, under a teacher."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from qalib.data.squad import Dataset
from qalib.errors import QalibError
from qalib.skim.loss import SkimLossConfig
from qalib.skim.predictors import PredictorConfig
from qalib.study.entries import Run
from qalib.study.parallel import get_or_run
from qalib.study.stages import EncoderTraining, note_data
from qalib.study.store import Store

STARTS = ("pretrained", "shipped", "run")


@dataclass(frozen=True)
class SkimTraining:
    """All that a skimming reader depends on, next to the data and the run that it starts from.

    ``start``: the pretrained encoder with a fresh head, the reader that ships, or another run.
    ``skim_at`` with ``thresholds``: blocks are left out during training, too.
    ``teacher``: weight of the divergence from the reader it started from, which reads everything.
    ``predictor_rate``: times the encoder's learning rate; predictors start from nothing.
    """

    base: EncoderTraining = field(default_factory=EncoderTraining)
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    loss: SkimLossConfig = field(default_factory=SkimLossConfig)
    start: str = "pretrained"
    predictor_rate: float = 1.0
    layers: tuple[int, ...] = ()  # those with a predictor; () = all
    frozen: bool = False  # only predictors learn, the encoder stays as it is
    detached: bool = False  # predictors learn beside the encoder and do not change it
    sentences: bool = False  # blocks end where sentences end
    answer_head: bool = False  # skipped blocks may still be the answer
    skim_at: tuple[int, ...] = ()
    thresholds: tuple[float, ...] = ()
    teacher: float = 0.0

    def __post_init__(self):
        if self.start not in STARTS:
            raise QalibError(f"start must be one of {', '.join(STARTS)}, not {self.start!r}.")
        if self.teacher and self.start == "pretrained":
            raise QalibError("a teacher must have learnt to answer: start from shipped or a run.")
        if self.predictor_rate <= 0:
            raise QalibError(f"predictor_rate must be above 0, not {self.predictor_rate}.")
        if self.teacher < 0:
            raise QalibError(f"the teacher's weight must be 0 or more, not {self.teacher}.")


def train_skim(
    store: Store,
    data: Dataset,
    config: SkimTraining,
    start: Run | None = None,
    force: bool | str = False,
) -> Run:
    """Train predictors, and the encoder with them unless it is frozen.

    Keeps log.jsonl and weights.safetensors (what training moved). ``start`` is the run to begin
    with, a ``train-encoder`` or ``train-skim`` run, where ``config.start`` is "run".
    """
    if (start is None) == (config.start == "run"):
        raise QalibError('a run to start from goes with start = "run", and only with it.')

    def compute(work: Path) -> dict:
        from accelerate import Accelerator

        from qalib.checkpoints import save_weights, trained_tensors
        from qalib.data.squad import hold_out
        from qalib.train import train

        note_data(work, data)
        rest = hold_out(data, config.base.held_out)[0] if config.base.held_out else data
        model = build_skim_reader(config, start, store)
        task = skim_task(model, rest, config, teacher_of(config, start, store))
        summary = {}
        if any(p.requires_grad for p in model.parameters()):  # chance has nothing to learn
            optimizer = skim_optimizer(model, config)
            schedule, seed = config.base.train, config.base.seed
            summary = train(model, task, schedule, work, seed, optimizer=optimizer)
        if Accelerator(mixed_precision="no").is_main_process:
            save_weights(trained_tensors(model), work / "weights.safetensors")
        added = sum(p.numel() for p in model.skimmer.parameters())
        return {"questions": len(rest), "skim_parameters": added, **summary}

    inputs = {"data": data.content_sha256, **_start_input(config, start)}
    return get_or_run(store, "train-skim", config, compute, inputs=inputs, force=force)


def _start_input(config: SkimTraining, start: Run | None) -> dict[str, str]:
    from qalib.readers.shipped import SHIPPED, checkpoint_hash

    if config.start == "shipped":
        return {"start": checkpoint_hash(SHIPPED)}
    return {"start": start.key} if start else {}


def build_skim_reader(config: SkimTraining, start: Run | None, store: Store):
    """The reader as training finds it: the encoder of ``config.start`` and fresh predictors."""
    import torch

    from qalib.skim.reader import SkimReader
    from qalib.skim.settings import SkimConfig
    from qalib.skim.skimmer import Skimmer

    reader = _starting_reader(config, start, store)
    settings = SkimConfig(
        predictor=config.predictor,
        layers=config.layers or tuple(range(1, reader.encoder.config.num_hidden_layers + 1)),
        skim_at=config.skim_at,
        thresholds=config.thresholds,
        restore="forward" if config.skim_at else "minus-infinity",  # a loss must stay finite
        answer_head=config.answer_head,
        detach_views=config.frozen or config.detached,
    )
    torch.manual_seed(config.base.seed)
    skimmer = Skimmer.beside(reader.encoder, settings)
    if config.frozen:
        reader.requires_grad_(False)
    return SkimReader(reader, skimmer, skims_in_training=bool(config.skim_at))


def _starting_reader(config: SkimTraining, start: Run | None, store: Store):
    from qalib.readers.encoder_reader import build_encoder
    from qalib.readers.shipped import load_reader
    from qalib.study.stages import trained_reader

    if config.start == "shipped":
        reader = load_reader().requires_grad_()  # merging its adapter froze what it adapts
        words = reader.encoder.get_input_embeddings().weight
        words.requires_grad_(config.base.encoder.train_embeddings)
        return reader
    if start is None:
        return build_encoder(config.base.encoder, config.base.seed)
    if start.stage == "train-encoder":
        return trained_reader(start)
    return trained_skim_reader(start, store).reader


def teacher_of(config: SkimTraining, start: Run | None, store: Store):
    """The reader that training starts from, frozen, or None where there is no teacher."""
    if not config.teacher:
        return None
    return _starting_reader(config, start, store).eval().requires_grad_(False)


def skim_task(model, data: Dataset, config: SkimTraining, teacher=None):
    """What is learnt: where the answer is, and which blocks hold it (Block-Skim, Eq. 5)."""
    import torch

    from qalib.losses import span_loss
    from qalib.skim.loss import skim_loss
    from qalib.train import Task

    windows, collate_rows = skim_windows(model, data, config, training=True)
    answers = not config.frozen

    def loss(output, batch) -> torch.Tensor:
        labels, real = labels_of(output, batch, config)
        layers = [scores for name, scores in output.attentions.items() if name.startswith("layer")]
        judged = [(x > torch.finfo(x.dtype).min) & real for x in layers]
        total = sum(
            skim_loss([x], labels, seen, config.loss)
            for x, seen in zip(layers, judged, strict=True)
        )
        said = [output] if answers else []
        for said_there in [*said, *early_outputs(output)]:
            total = total + span_loss(said_there, batch.spans, batch.weights, config.base.loss)
        if teacher is not None:
            total = total + config.teacher * divergence(output, teacher(batch))
        return total

    return Task(lengths=[len(window) for window in windows], collate=collate_rows, loss=loss)


def skim_optimizer(model, config: SkimTraining):
    """AdamW, with a learning rate of its own for all that is not the encoder."""
    from qalib.train import make_optimizer

    if config.predictor_rate == 1.0:
        return make_optimizer(model, config.base.train)
    parts = [(model.reader, 1.0), (model.skimmer, config.predictor_rate)]
    trained = [(m, scale) for m, scale in parts if _learns(m)]
    optimizers = [(make_optimizer(m, config.base.train), scale) for m, scale in trained]
    whole, _ = optimizers[0]
    for group in whole.param_groups:
        group["scale"] = optimizers[0][1]
    for other, scale in optimizers[1:]:
        for group in other.param_groups:
            whole.add_param_group({**group, "scale": scale})
    return whole


def _learns(module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def skim_windows(
    model, data: Dataset, config: SkimTraining, training: bool = False
) -> tuple[list, Callable]:
    """A data set's windows, and how some of them, by number, become a batch with its blocks."""
    from qalib.data.batches import collate
    from qalib.data.features import make_windows, training_windows
    from qalib.skim.sentences import place_blocks, sentence_blocks

    tokenizer, size = model.tokenizer, config.predictor.block_size
    windows = make_windows(data.examples, tokenizer, config.base.windows)
    windows = training_windows(windows) if training else windows
    pad = tokenizer.pad_token_id or 0

    def collate_rows(rows):
        chosen = [windows[i] for i in rows]
        batch = collate(chosen, pad, config.base.windows.null)
        if config.sentences:
            texts = [data.examples[window.example].context for window in chosen]
            cut = [sentence_blocks(w, t, size) for w, t in zip(chosen, texts, strict=True)]
            batch.inputs["blocks"] = place_blocks(cut, chosen, batch.mask.shape[1])
        return batch

    return windows, collate_rows


def early_outputs(output) -> list:
    """What the answer heads of a reader's output say, as outputs of readers."""
    told = output.attentions
    numbers = [name.split()[1] for name in told if name.startswith("start ")]
    return [
        output._replace(start_logits=told[f"start {n}"], end_logits=told[f"end {n}"])
        for n in numbers
    ]


def labels_of(output, batch, config: SkimTraining):
    """Which blocks hold a gold answer, and which there are.  -> (B, K) bool, (B, K) bool"""
    from qalib.skim.blocks import Blocks
    from qalib.skim.loss import block_labels

    of = output.attentions["blocks"]
    none = of < -2  # the loss needs no question and no separators
    count = max(0, int(of.max()) + 1)
    blocks = Blocks(of=of, question=none, separators=none, count=count)
    return block_labels(blocks, batch.spans, batch.weights, config.loss), blocks.real


def divergence(student, teacher):
    """KL(teacher || student) of the start and of the end position, summed.  -> (B,) float32"""
    from qalib.spans import mask_logits

    total = 0.0
    for ours, theirs in zip(student[:2], teacher[:2], strict=True):
        log_p = mask_logits(theirs, student.mask).log_softmax(dim=1)
        log_q = mask_logits(ours, student.mask).log_softmax(dim=1)
        total = total + (log_p.exp() * (log_p - log_q)).sum(dim=1)
    return total


def training_of(trained: Run) -> SkimTraining:
    """The configuration of a ``train-skim`` run, as the dataclass it was."""
    from qalib.study.profiles import build

    return build(trained.config, SkimTraining, f"{trained.short}: config")


def trained_skim_reader(trained: Run, store: Store):
    """The reader of a ``train-skim`` run, with its weights, in evaluation mode."""
    from qalib.checkpoints import load_weights, put_weights

    config = training_of(trained)
    start = store.get(trained.inputs["start"]) if config.start == "run" else None
    model = build_skim_reader(config, start, store)
    path = trained.file("weights.safetensors")
    put_weights(model, load_weights(path), str(path))
    return model.eval()
