"""The steps of the byte-level study: train a reader, go on from one, score it, look inside it."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from qalib.data.byte_features import ByteConfig
from qalib.data.squad import Dataset, hold_out
from qalib.errors import QalibError
from qalib.readers.byte_reader import ByteReaderConfig
from qalib.study.entries import Run
from qalib.study.parallel import get_or_run
from qalib.study.session import Study
from qalib.study.stages import evaluate, note_data
from qalib.study.store import Store
from qalib.train import TrainConfig

OPTIMIZERS = ("adam", "sgd")


@dataclass(frozen=True)
class ByteTraining:
    """All that the weights of a byte-level reader depend on, next to the data."""

    reader: ByteReaderConfig = field(default_factory=ByteReaderConfig)
    text: ByteConfig = field(default_factory=ByteConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    questions: int = 64  # of a step; ``train.tokens_per_batch`` is not used
    optimizer: str = "adam"  # or "sgd", with Nesterov momentum
    momentum: float = 0.9
    sigma: float = 2.0  # of the Gaussian targets, in positions
    answers: str = "min"  # how several gold answers count: min, mean or random
    held_out: float = 0.0  # share of the passages kept back and scored after every epoch
    seed: int = 0

    def __post_init__(self):
        if self.optimizer not in OPTIMIZERS:
            known = ", ".join(OPTIMIZERS)
            raise QalibError(f"optimizer must be one of {known}, not {self.optimizer!r}.")
        if self.questions < 1:
            raise QalibError(f"questions must be at least 1, not {self.questions}.")


def train_bytes(
    store: Store,
    data: Dataset,
    config: ByteTraining,
    start: Run | None = None,
    force: bool | str = False,
) -> Run:
    """Train a byte-level reader on ``data``, from random weights or from those of a run.

    Keeps log.jsonl (loss, speed and, after every epoch, EM and F1 on the passages held out) and
    weights.safetensors.
    """

    def compute(work: Path) -> dict:
        from accelerate import Accelerator

        from qalib.checkpoints import save_weights, trained_tensors
        from qalib.readers.byte_reader import build_byte_reader, count_parameters
        from qalib.train import train

        rest, held = hold_out(data, config.held_out) if config.held_out else (data, None)
        note_data(work, data)
        reader = build_byte_reader(config.reader, config.seed)
        if start is not None:
            _put_weights(reader, start)
        task = byte_task(rest, config)

        def after_epoch(epoch: int) -> dict:
            return _scores(reader, held, config) if held else {}

        summary = train(
            reader,
            task,
            config.train,
            work,
            config.seed,
            after_epoch=after_epoch,
            optimizer=make_optimizer(reader, config),
        )
        if Accelerator(mixed_precision="no").is_main_process:
            save_weights(trained_tensors(reader), work / "weights.safetensors")
        stopped_within_an_epoch = held is not None and config.train.max_steps > 0
        scores = after_epoch(0) if stopped_within_an_epoch else _last_scores(work / "log.jsonl")
        found = {"questions": len(task.lengths), "parameters": count_parameters(reader)}
        return {**found, **summary, **scores}

    inputs = {"data": data.content_sha256}
    if start is not None:
        inputs["start"] = start.key
    return get_or_run(store, "train-bytes", config, compute, inputs=inputs, force=force)


def byte_task(data: Dataset, config: ByteTraining):
    """What a byte-level reader learns: Gaussian starts and ends, batches of so many questions."""
    import torch

    from qalib.data.byte_batches import QuestionRows
    from qalib.data.byte_features import passage_features
    from qalib.gaussian_loss import gaussian_span_loss
    from qalib.train import Task

    rows = QuestionRows(passage_features(data.examples, config.text))

    def loss(output, batch):
        return gaussian_span_loss(
            output,
            batch.spans,
            batch.weights,
            config.sigma,
            config.answers,
            torch.default_generator,  # its state is part of a checkpoint
        )

    return Task(
        lengths=rows.lengths,
        collate=rows.collate,
        loss=loss,
        batches=lambda seed, epoch: rows.batches(config.questions, seed, epoch),
    )


def make_optimizer(reader, config: ByteTraining):
    """Adam, or SGD with Nesterov momentum, as the page has for its final model."""
    import torch

    from qalib.train import make_optimizer as make_adam

    if config.optimizer == "adam":
        return make_adam(reader, config.train)
    return torch.optim.SGD(
        reader.parameters(),
        lr=config.train.learning_rate,
        momentum=config.momentum,
        nesterov=True,
        weight_decay=config.train.weight_decay,
    )


def _scores(reader, dataset: Dataset, config: ByteTraining) -> dict:
    from qalib.byte_answer import ByteAnswerConfig, ByteAnswerer
    from qalib.metrics import score

    answerer = ByteAnswerer(reader, ByteAnswerConfig(text=config.text))
    found = score(dataset, answerer.predictions(dataset.examples))
    return {f"held_out_{metric}": value for metric, value in found.items()}


def _last_scores(log: Path) -> dict:
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    scored = [line for line in lines if "held_out_f1" in line]
    return {name: value for name, value in scored[-1].items() if name != "epoch"} if scored else {}


def training_of(trained: Run) -> ByteTraining:
    """The configuration of a ``train-bytes`` run, as the dataclass it was."""
    from qalib.study.profiles import build

    return build(trained.config, ByteTraining, f"{trained.short}: config")


def trained_reader(trained: Run):
    """The reader of a ``train-bytes`` run, with its weights, in evaluation mode."""
    from qalib.readers.byte_reader import build_byte_reader

    reader = build_byte_reader(training_of(trained).reader)
    _put_weights(reader, trained)
    return reader.eval()


def _put_weights(reader, run: Run) -> None:
    from qalib.checkpoints import load_weights, put_weights

    path = run.file("weights.safetensors")
    put_weights(reader, load_weights(path), str(path))


@dataclass(frozen=True)
class ByteStudy:
    """What the notebooks on byte-level readers train: one set-up, several readers, some seeds."""

    base: ByteTraining = field(default_factory=ByteTraining)  # of the plain convolutional reader
    rates: dict[str, float] = field(default_factory=dict)  # learning rate by variant, where another
    seeds: int = 1  # of plain and dense
    sigmas: tuple[float, ...] = (0.0, 2.0)  # of the sweep
    sweep_steps: int = 0  # steps of a run of the sweeps; 0 = as many as ``base``
    held_out: float = 0.1  # share of the passages that tells the runs of the sweeps apart
    sharp_steps: int = 0  # more steps, with sigma 0, before a reader answers questions
    sharp_rate: float = 1e-3
    patience: int = 1  # times as many epochs for a reader that is given more time


VARIANTS = {
    "plain": ("conv", "conv"),
    "dense": ("dense", "dense"),
    "dilated": ("dilated", "dilated"),
    "recurrent": ("lstm", "lstm"),
    "plain, recurrent": ("conv", "lstm"),
    "dense, recurrent": ("dense", "lstm"),
}


def variant(base: ByteTraining, name: str) -> ByteTraining:
    """The same training of another reader with as many parameters, within 1 %.

    ``name``: one of VARIANTS. Raises QalibError for another.
    """
    from qalib.readers.byte_reader import count_parameters, match_width

    if name not in VARIANTS:
        raise QalibError(f"unknown variant {name!r}; choose one of {', '.join(VARIANTS)}.")
    encoder, mixer = VARIANTS[name]
    reader = replace(base.reader, encoder=encoder, mixer=mixer)
    if (encoder, mixer) == (base.reader.encoder, base.reader.mixer):
        return base
    return replace(base, reader=match_width(reader, count_parameters(base.reader)))


def evaluate_bytes(study: Study, name: str, trained: Run) -> Run:
    """A trained byte-level reader on the test data: EM, F1 and p@1 to p@5.

    For p@N answers are ranked by probability; of those that normalise to the same text the first
    counts.
    """
    from qalib.byte_answer import ByteAnswerConfig, ByteAnswerer
    from qalib.metrics import normalize_answer

    settings = ByteAnswerConfig(text=training_of(trained).text, n_best=10)

    def answer(test: Dataset) -> dict[str, list[str]]:
        found = ByteAnswerer(trained_reader(trained), settings).answer_many(test.examples)
        ranked = {}
        for example, candidates in zip(test.examples, found, strict=True):
            different: dict[str, str] = {}
            for candidate in candidates:
                different.setdefault(normalize_answer(candidate.text), candidate.text)
            ranked[example.id] = list(different.values())[:5]
        return ranked

    return evaluate(study, name, {"weights": trained.key}, answer, settings)


def training_data(study: Study) -> Dataset:
    """What byte-level readers train on: without a vocabulary they need more than an encoder."""
    return study.data("train", "byte_data")


def trained_variants(study: Study, name: str, seeds: int = 0) -> list[Run]:
    """One trained reader of a variant for each seed (``seeds``: 0 = as the profile says)."""
    asked = study.section("bytes", ByteStudy)
    config = variant(asked.base, name)
    rate = asked.rates.get(name, config.train.learning_rate)
    config = replace(config, train=replace(config.train, learning_rate=rate))
    runs = []
    for number in range(seeds or asked.seeds):
        seeded = replace(config, seed=study.seed + number)
        run = train_bytes(study.store, training_data(study), seeded, force=study.force)
        runs.append(study.keep(run))
    return runs


def trained_longer(study: Study, name: str) -> tuple[Run, Run]:
    """The first seed of a variant with ``patience`` times the epochs, as trained and sharpened.

    A reader that is still learning when it stops is not yet as good as its layers allow.
    """
    asked = study.section("bytes", ByteStudy)
    config = training_of(trained_variants(study, name, seeds=1)[0])
    schedule = replace(config.train, epochs=asked.patience * config.train.epochs)
    config = replace(config, train=schedule)
    run = train_bytes(study.store, training_data(study), config, force=study.force)
    return study.keep(run), sharpen(study, run)


def train_variant(study: Study, name: str) -> tuple[Run, Run]:
    """The first seed of a variant as trained, and as it answers questions."""
    trained = trained_variants(study, name, seeds=1)[0]
    return trained, sharpen(study, trained)


def sharpen(study: Study, trained: Run, sigma: float = 0.0) -> Run:
    """A trained reader after some more steps with sigma 0, as it answers questions.

    A reader of wide targets spreads its guess as widely, and then cuts answers a character short;
    a few steps of plain cross-entropy make it say which character. With another ``sigma`` it takes
    the same steps to other targets.
    """
    asked, config = study.section("bytes", ByteStudy), training_of(trained)
    if not asked.sharp_steps:
        return trained
    schedule = replace(
        config.train, max_steps=asked.sharp_steps, learning_rate=asked.sharp_rate, epochs=1
    )
    config = replace(config, sigma=sigma, train=schedule)
    run = train_bytes(study.store, training_data(study), config, trained, study.force)
    return study.keep(run)
