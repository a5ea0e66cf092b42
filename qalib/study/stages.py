"""The named steps that notebooks ask for: each is computed once and kept in the run store."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from qalib.data.features import WindowConfig
from qalib.data.squad import Dataset, hold_out
from qalib.readers.encoder_reader import EncoderConfig
from qalib.study.entries import Run
from qalib.study.parallel import get_or_run
from qalib.study.session import Study
from qalib.study.store import Store
from qalib.train import TrainConfig


@dataclass(frozen=True)
class EncoderTraining:
    """All that the weights of an encoder reader depend on, next to the data."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    windows: WindowConfig = field(default_factory=WindowConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    loss: str = "mean"  # how several gold answers count: mean, marginal or min
    held_out: float = 0.0  # share of the passages kept back and scored after every epoch
    seed: int = 0


def train_encoder(
    store: Store,
    data: Dataset,
    config: EncoderTraining,
    watch: Dataset | None = None,
    force: bool | str = False,
) -> Run:
    """Train an encoder reader on ``data``.

    Keeps log.jsonl (loss, speed and, after every epoch, EM and F1 on the passages held out and
    on ``watch``, which is looked at and never chosen by) and weights.safetensors (what training
    moved).
    """

    def compute(work: Path) -> dict:
        from accelerate import Accelerator

        from qalib.checkpoints import save_weights, trained_tensors
        from qalib.readers.encoder_reader import build_encoder
        from qalib.train import train

        note_data(work, data, *([watch] if watch else []))
        reader = build_encoder(config.encoder, config.seed)
        rest, held = hold_out(data, config.held_out) if config.held_out else (data, None)
        task = _encoder_task(reader, rest, config)
        looked_at = {"held_out": held, "watch": watch}

        def after_epoch(epoch: int) -> dict:
            return {
                f"{name}_{metric}": value
                for name, dataset in looked_at.items()
                if dataset
                for metric, value in held_out_scores(reader, dataset, config).items()
            }

        summary = train(reader, task, config.train, work, config.seed, after_epoch=after_epoch)
        if Accelerator(mixed_precision="no").is_main_process:
            save_weights(trained_tensors(reader), work / "weights.safetensors")
        windows = len(task.lengths)
        last = _last_scores(work / "log.jsonl")
        return {"questions": len(rest), "windows": windows, **summary, **last}

    inputs = {"data": data.content_sha256}
    if watch:
        inputs["watch"] = watch.content_sha256
    return get_or_run(store, "train-encoder", config, compute, inputs=inputs, force=force)


def note_data(work: Path, *datasets: Dataset) -> None:
    """Keep with a run which data it used: names, files, raw and content hashes (data.json)."""
    told = [dataset.provenance() for dataset in datasets]
    (work / "data.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def _encoder_task(reader, data: Dataset, config: EncoderTraining):
    from qalib.data.batches import collate
    from qalib.data.features import make_windows, training_windows
    from qalib.losses import span_loss
    from qalib.train import Task

    windows = training_windows(make_windows(data.examples, reader.tokenizer, config.windows))
    pad = reader.tokenizer.pad_token_id or 0
    return Task(
        lengths=[len(window) for window in windows],
        collate=lambda rows: collate([windows[i] for i in rows], pad, config.windows.null),
        loss=lambda output, batch: span_loss(output, batch.spans, batch.weights, config.loss),
    )


def held_out_scores(reader, dataset: Dataset, config: EncoderTraining) -> dict:
    """EM and F1 of a reader that is being trained, on ``dataset``."""
    from qalib.answer import AnswerConfig, Answerer
    from qalib.metrics import score

    answerer = Answerer(reader, AnswerConfig(windows=config.windows))
    return score(dataset, answerer.predictions(dataset.examples))


def read_log(run: Run) -> list[dict]:
    """The lines of a run's log: every so many steps and after every epoch."""
    text = run.file("log.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _last_scores(log: Path) -> dict:
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    scored = [line for line in lines if "step" not in line]
    return {name: value for name, value in scored[-1].items() if name != "epoch"} if scored else {}


def encoder(study: Study) -> Run:
    """Notebook 00: the profile's encoder reader, trained on all of its training data."""
    config = study.section("encoder", EncoderTraining)
    config = replace(config, seed=study.seed)
    test = study.data("test")
    watch = sample(test, study.section("watch", Watch).every)
    run = train_encoder(study.store, study.data("train"), config, watch, study.force)
    return study.keep(run)


@dataclass(frozen=True)
class Watch:
    """Every so many-th test question is scored after each epoch, for the curve."""

    every: int = 5


def sample(dataset: Dataset, every: int) -> Dataset:
    """Every ``every``-th question of a data set."""
    from qalib.data.squad import make_dataset

    name = f"{dataset.name}-{every}"
    return make_dataset(name, dataset.examples[::every], dataset.path, dataset.raw_sha256)


@dataclass(frozen=True)
class Tuning:
    """The choices tried on held-out training passages before the final training."""

    learning_rates: tuple[float, ...] = (1.5e-4,)
    epochs: int = 1
    held_out: float = 0.1


def tuning(study: Study) -> list[Run]:
    """One short training for each learning rate, scored on passages held out of the training."""
    asked = study.section("tuning", Tuning)
    config = study.section("encoder", EncoderTraining)
    runs = []
    for rate in asked.learning_rates:
        short = replace(config.train, learning_rate=rate, epochs=asked.epochs)
        held = replace(config, train=short, held_out=asked.held_out, seed=study.seed)
        run = train_encoder(study.store, study.data("train"), held, force=study.force)
        runs.append(study.keep(run))
    return runs


def evaluate(
    study: Study,
    name: str,
    inputs: dict[str, str],
    answer: Callable[[Dataset], dict | tuple[dict, dict]],
    settings: object = None,
    test: Dataset | None = None,
    lean: bool = False,
) -> Run:
    """Score a reader on the profile's test data, or on ``test``; keeps predictions.json.

    ``inputs`` says what the reader is made of, ``settings`` how it decodes; ``answer`` gives id to
    answer text, or to answers in order: then p@1 to p@5 are measured too, and ranks.json has the
    rank of the right answer of every question, in order (0: not among the first five). It may add
    a second dictionary, of more metrics. ``lean``: only marks go to the records, no answers.
    """
    from qalib.metrics import correct_ranks, precision_at_n, score
    from qalib.study.marks import LEAN, write_marks

    test = study.data("test") if test is None else test

    def compute(work: Path) -> dict:
        note_data(work, test)
        begin = time.perf_counter()
        given = answer(test)
        seconds = time.perf_counter() - begin
        found, more = given if isinstance(given, tuple) else (given, {})
        ranked = {id: texts for id, texts in found.items() if not isinstance(texts, str)}
        predictions = found | {id: texts[0] for id, texts in ranked.items()}
        precision = precision_at_n(test, ranked) if ranked else []
        if ranked:
            ranks = correct_ranks(test, ranked).tolist()
            (work / "ranks.json").write_text(json.dumps(ranks))
        if lean:
            write_marks(work, test, predictions)
        (work / "predictions.json").write_text(json.dumps(predictions, ensure_ascii=False))
        rate = {"seconds": round(seconds, 2), "questions_per_second": len(test) / seconds}
        hits = {f"p@{n}": 100 * share for n, share in enumerate(precision, start=1)}
        return {**score(test, predictions), **hits, **more, "questions": len(test), **rate}

    config = {"reader": name, "settings": settings}
    how = {"inputs": {**inputs, "test": test.content_sha256}, "version": 2 if lean else 1}
    run = study.store.get_or_run("evaluate", config, compute, force=study.force, **how)
    return study.keep(run, LEAN) if lean else study.keep(run)


def predictions(run: Run) -> dict[str, str]:
    """The answers that an ``evaluate`` run gave, by question id."""
    return json.loads(run.file("predictions.json").read_text(encoding="utf-8"))


def evaluate_encoder(
    study: Study, trained: Run, test: Dataset | None = None, name: str = "encoder"
) -> Run:
    """The trained encoder reader on the test data, or on ``test``."""
    from qalib.answer import AnswerConfig, Answerer

    settings = AnswerConfig(windows=training_of(trained).windows)

    def answer(test: Dataset) -> dict[str, str]:
        return Answerer(trained_reader(trained), settings).predictions(test.examples)

    return evaluate(study, name, {"weights": trained.key}, answer, settings, test)


def training_of(trained: Run) -> EncoderTraining:
    """The configuration of a ``train-encoder`` run, as the dataclass it was."""
    from qalib.study.profiles import build

    return build(trained.config, EncoderTraining, f"{trained.short}: config")


def trained_reader(trained: Run):
    """The reader of a ``train-encoder`` run, with its weights."""
    from qalib.checkpoints import load_weights, put_weights
    from qalib.readers.encoder_reader import build_encoder

    config = training_of(trained)
    reader = build_encoder(config.encoder, config.seed)
    weights = trained.file("weights.safetensors")
    put_weights(reader, load_weights(weights), str(weights))
    return reader


def evaluate_shipped(study: Study) -> Run:
    """The reader whose weights ship with the kit, on the test data."""
    from qalib.answer import AnswerConfig, Answerer
    from qalib.readers.shipped import SHIPPED, checkpoint_hash, windows_of

    settings = AnswerConfig(windows=windows_of(SHIPPED))

    def answer(test: Dataset) -> dict[str, str]:
        return Answerer.load(config=settings).predictions(test.examples)

    return evaluate(study, "shipped", {"checkpoint": checkpoint_hash(SHIPPED)}, answer, settings)


def evaluate_lexical(study: Study) -> Run:
    """The lexical-overlap baseline on the test data."""
    from qalib.readers.lexical import lexical_answers

    return evaluate(study, "lexical", {"version": "1"}, lexical_answers)


def bench_training(config=None) -> Run:
    """Training throughput, climbed from the defaults of transformers; always measured anew."""
    from qalib.benches.training import TrainBench, bench_train_steps

    config = config or TrainBench()

    def compute(work: Path) -> dict:
        from qalib.data.almanac import AlmanacConfig, build_almanac
        from qalib.data.features import make_windows, training_windows
        from qalib.readers.encoder_reader import build_encoder

        data = build_almanac(AlmanacConfig(questions=config.questions, seed=config.seed))
        tokenizer = build_encoder(EncoderConfig()).tokenizer
        windows = training_windows(make_windows(data.examples, tokenizer, WindowConfig()))
        return {"rows": bench_train_steps(windows, config)}

    return Store().get_or_run("bench-train", config, compute, force=True)


def bench_training_table(run: Run) -> str:
    """The rows of a ``bench-train`` run with processor and threads, as text."""
    from tabulate import tabulate

    columns = ["name", "tokens_per_second", "lowest", "highest", "ratio"]
    rows = [[row[column] for column in columns] for row in run.metrics["rows"]]
    headers = [column.replace("_", " ") for column in columns]
    table = tabulate(rows, headers=headers, intfmt=",", disable_numparse=[0])
    cpu, threads = run.env["cpu"]["model"], run.env["torch_threads"]
    return f"{cpu}, {threads} threads; median of interleaved rounds\n\n{table}"
