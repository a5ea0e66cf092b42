"""Benchmarks of training, byte-level readers, answering and distillation, on this machine's CPU.

All of them time their candidates in turn (``qalib.timing``), so that speed-ups are ratios within a
round. Notebooks 03 and 08 record two of them as stages; ``python -m qalib bench`` runs them anew
(``qalib.study.bench``). Those of Block-Skim are in ``stages.skim_benchmarks``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from qalib.data.batching import collate, training_batches
from qalib.data.corpus import CorpusConfig, build_corpus
from qalib.data.schema import Dataset, Example, make_dataset
from qalib.data.windows import Window, WindowConfig, make_windows, training_windows
from qalib.models.byte_reader import ByteReaderConfig
from qalib.models.encoder import EncoderConfig
from qalib.settings import settings
from qalib.study.run_cache import Run, stage
from qalib.study.stages.skim_benchmarks import DTYPES, FULL, PADDED, Dtype, in_dtypes, usable_dtypes
from qalib.timing import Progress, columns, interleave, quartiles
from qalib.training import TrainConfig

if TYPE_CHECKING:
    from torch import nn

    from qalib.models.encoder import EncoderReader
    from qalib.skim.skimmer import Skimmer

Count = Annotated[int, Field(ge=1)]


def best_precision() -> str:
    """bf16 on a processor with units for it, otherwise fp32."""
    from qalib.training import choose_precision

    return choose_precision("auto", "cpu")[0]


def training_step(
    reader: "nn.Module", loss: Callable, precision: str, config: TrainConfig
) -> Callable[[Any], float]:
    """A function that takes one training step on a batch and returns the loss before it."""
    import torch

    from qalib.training import make_optimizer

    optimizer = make_optimizer(reader.train(), config)

    def step(batch: Any) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            output = reader(batch)
        value = loss(output, batch).mean()
        value.backward()
        torch.nn.utils.clip_grad_norm_(reader.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return value.item()

    return step


def rate_rows(rates: Mapping[str, Sequence[float]], label: str, unit: str) -> list[dict]:
    """A row per candidate: its rate (median, _low and _high), and the speed-up over the first."""
    base, rows = next(iter(rates.values())), []
    for name, values in rates.items():
        ratios = [ours / theirs for ours, theirs in zip(values, base, strict=True)]
        rows.append({label: name, **columns(unit, values), "speedup": quartiles(ratios).median})
    return rows


# --- training an encoder --------------------------------------------------------------------------


@settings
class TrainingBenchmark:
    """``steps`` training steps of each set-up in a round, on questions of the embedded corpus."""

    rounds: Count = 5
    steps: Count = 3
    tokens_per_batch: Count = 4096
    questions: Count = 2000
    seed: int = 0


@dataclass(frozen=True)
class TrainingSetup:
    """One way to train an encoder reader."""

    bf16: bool = False
    attention_dropout: float = 0.1
    freeze_embeddings: bool = False
    attention: str = "sdpa"  # implementation in transformers
    byte_dropout: bool = False
    similar_lengths: bool = False

    def trainer(self, config: TrainingBenchmark) -> Callable:
        """A training step on a fresh reader."""
        from qalib.losses import span_loss
        from qalib.models.encoder import build_encoder, use_byte_dropout

        encoder = EncoderConfig(
            attention_dropout=self.attention_dropout, train_embeddings=not self.freeze_embeddings
        )
        reader = build_encoder(encoder, config.seed, fast_dropout=False)
        reader.encoder.set_attn_implementation(self.attention)
        if self.byte_dropout:
            use_byte_dropout(reader.encoder)
        return training_step(
            reader,
            lambda output, batch: span_loss(output, batch.answer_spans, batch.answer_weights),
            best_precision() if self.bf16 else "fp32",
            TrainConfig(),
        )

    def plan(self, lengths: Sequence[int], config: TrainingBenchmark) -> list[list[int]]:
        """Batches of similar length, or as many random windows as fill the budget on average."""
        budget = config.tokens_per_batch
        if self.similar_lengths:
            return training_batches(lengths, budget, config.seed, 0)
        order = np.random.default_rng(config.seed).permutation(len(lengths)).tolist()
        rows = max(1, int(budget / np.mean(lengths)))
        return [order[i : i + rows] for i in range(0, len(order) - rows + 1, rows)]


TRAINING_SETUPS = {  # each with one change to the one before
    "transformers defaults: fp32, SDPA, dropout 0.1, random batches": TrainingSetup(),
    "+ bf16": TrainingSetup(True),
    "+ attention dropout 0": TrainingSetup(True, 0.0),
    "+ word embeddings frozen": TrainingSetup(True, 0.0, True),
    "+ attention as two matrix products": TrainingSetup(True, 0.0, True, "qalib"),
    "+ dropout from random bytes": TrainingSetup(True, 0.0, True, "qalib", True),
    "+ batches of similar length (qalib)": TrainingSetup(True, 0.0, True, "qalib", True, True),
}


def bench_training(config: TrainingBenchmark, progress: Progress | None = None) -> list[dict]:
    """Training throughput on the embedded corpus; see :func:`time_training`."""
    from qalib.models.encoder import build_encoder

    data = build_corpus(CorpusConfig(questions=config.questions, seed=config.seed))
    tokenizer = build_encoder(EncoderConfig()).tokenizer
    windows = training_windows(make_windows(data.examples, tokenizer, WindowConfig()))
    return time_training(windows, config, progress)


def time_training(
    windows: Sequence[Window], config: TrainingBenchmark, progress: Progress | None = None
) -> list[dict]:
    """A row per set-up: setup, tokens_per_second without padding, speedup over the first.

    On a processor without bf16 units the bf16 set-ups run in fp32, as training does.
    """
    tokens: dict[str, list[int]] = {name: [] for name in TRAINING_SETUPS}

    def trainer(name: str, setup: TrainingSetup) -> Callable[[int], int]:
        step = setup.trainer(config)
        plan = setup.plan([len(window) for window in windows], config)

        def train(number: int) -> int:
            chosen = range(number * config.steps, (number + 1) * config.steps)
            batches = [collate([windows[i] for i in plan[n % len(plan)]]) for n in chosen]
            for batch in batches:
                step(batch)
            return sum(batch.num_tokens for batch in batches)

        return train

    def observe(number: int, name: str, item: int, count: int) -> None:
        if number:
            tokens[name].append(count)

    timings = interleave(
        {name: trainer(name, setup) for name, setup in TRAINING_SETUPS.items()},
        range(1 + config.rounds),
        config.rounds,
        items_per_round=1,
        observe=observe,
        progress=progress,
    )
    rates = {name: timings.rates(name, counts) for name, counts in tokens.items()}
    return rate_rows(rates, "setup", "tokens_per_second")


# --- byte-level readers ---------------------------------------------------------------------------


@settings
class ByteModelBenchmark:
    """A reader against the byte-level page taken literally, and the cost of variants of it."""

    rounds: Count = 5
    questions: Count = 1024  # of the embedded corpus
    length: Count = 800  # characters of a passage, about
    batch_size: Count = 64  # questions of a step
    reader: ByteReaderConfig = field(default_factory=ByteReaderConfig)
    seed: int = 0


VARIANTS = {  # encoder and mixer of the readers of notebooks 02 and 03
    "plain": ("conv", "conv"),
    "dense": ("dense", "dense"),
    "dilated": ("dilated", "dilated"),
    "recurrent": ("lstm", "lstm"),
    "plain, recurrent": ("conv", "lstm"),
    "dense, recurrent": ("dense", "lstm"),
}


def byte_variants(base: ByteReaderConfig) -> dict[str, ByteReaderConfig]:
    """Readers with as many parameters as ``base``, within 1 %, by name."""
    from qalib.models.byte_reader import count_parameters, match_width

    target, found = count_parameters(base), {}
    for name, (encoder, mixer) in VARIANTS.items():
        reader = replace(base, encoder=encoder, mixer=mixer)
        found[name] = base if reader == base else match_width(reader, target)
    return found


def byte_setups(config: ByteModelBenchmark) -> dict[str, tuple["nn.Module", str]]:
    """Readers with the same weights and their precision, from the page as it stands to qalib's."""
    from qalib.models.byte_reader import build_byte_reader
    from qalib.models.byte_reference import LiteralReader

    def literal(**options: bool) -> "nn.Module":
        return LiteralReader(build_byte_reader(config.reader, config.seed), **options)

    best, both = best_precision(), {"remember": True, "once": True}
    return {
        "the page, literally, fp32": (literal(), "fp32"),
        "+ one-hot text remembered": (literal(remember=True), "fp32"),
        "+ each passage encoded once": (literal(**both), "fp32"),
        f"+ {best}": (literal(**both), best),
        "qalib, fp32": (build_byte_reader(config.reader, config.seed), "fp32"),
        f"qalib, {best}": (build_byte_reader(config.reader, config.seed), best),
    }


class ByteWork:
    """Questions in batches, the same ones in the same order for every reader."""

    def __init__(self, examples: Sequence[Example], config: ByteModelBenchmark):
        from qalib.data.bytes import QuestionRows, passage_features

        self.examples, self.rounds = list(examples), config.rounds
        self.rows = QuestionRows(passage_features(self.examples))
        self.plan = self.rows.batches(config.batch_size, config.seed, 0)

    def trainer(self, reader: "nn.Module", precision: str) -> Callable[[Sequence[int]], float]:
        """A function from rows to the loss before a training step on them."""
        from qalib.losses import gaussian_span_loss

        def loss(output, batch):
            return gaussian_span_loss(output, batch.answer_spans, batch.answer_weights, sigma=2.0)

        step = training_step(reader, loss, precision, TrainConfig(learning_rate=1e-3))
        return lambda rows: step(self.rows.collate(rows))

    def answerer(self, reader: "nn.Module") -> Callable[[Sequence[int]], object]:
        """A function that answers the questions of some rows."""
        from qalib.inference import ByteQuestionAnswerer

        answerer = ByteQuestionAnswerer(reader)
        return lambda rows: answerer.answer_many(
            [self.examples[self.rows.example(r)] for r in rows]
        )

    def rates(
        self, candidates: Mapping[str, Callable], progress: Progress | None = None
    ) -> dict[str, list[float]]:
        """Questions per second of every candidate, by round."""
        plan = self.plan
        timings = interleave(candidates, plan, self.rounds, items_per_round=1, progress=progress)
        sizes = [len(plan[(1 + n) % len(plan)]) for n in range(timings.rounds)]
        return {name: timings.rates(name, sizes) for name in candidates}


@stage("bench-byte-models")
def bench_byte_models(
    config: ByteModelBenchmark, work: Path | None = None, progress: Progress | None = None
) -> dict:
    """Training speed from the literal page to qalib, and the cost of every variant.

    ``rows``: setup, questions_per_second, speedup over the first; ``variants``: parameters,
    multiply-adds of a question at the mean lengths ``passage`` and ``question``, questions per
    second in training and in answering.
    """
    corpus = CorpusConfig(questions=config.questions, length=config.length, seed=config.seed)
    examples = build_corpus(corpus).examples
    return measure_byte_models(examples, config, byte_variants(config.reader), progress)


def measure_byte_models(
    examples: Sequence[Example],
    config: ByteModelBenchmark,
    variants: Mapping[str, ByteReaderConfig],
    progress: Progress | None = None,
) -> dict:
    """See :func:`bench_byte_models`."""
    from qalib.models.byte_reader import build_byte_reader, count_parameters, multiply_adds

    shared = ByteWork(examples, config)
    setups = {name: shared.trainer(*setup) for name, setup in byte_setups(config).items()}
    rows = rate_rows(shared.rates(setups, progress), "setup", "questions_per_second")
    readers = {name: build_byte_reader(v, config.seed) for name, v in variants.items()}
    trainers = {name: shared.trainer(r, best_precision()) for name, r in readers.items()}
    training = shared.rates(trainers, progress)
    answering = shared.rates({n: shared.answerer(r) for n, r in readers.items()}, progress)
    passage = round(np.mean([len(example.context) for example in examples]))
    question = round(np.mean([len(example.question) for example in examples]))
    costs = [
        {
            "variant": name,
            "parameters": count_parameters(reader),
            "macs": multiply_adds(reader.config, passage, question),
            "train_questions_per_second": quartiles(training[name]).median,
            "answer_questions_per_second": quartiles(answering[name]).median,
        }
        for name, reader in readers.items()
    ]
    return {"rows": rows, "variants": costs, "passage": passage, "question": question}


# --- answering ------------------------------------------------------------------------------------


@settings
class EndToEndBenchmark:
    """Answering whole questions: tokenisation, encoder, decoding."""

    questions: Count = 200  # the first ones of the data
    rounds: Count = 3
    dtypes: Annotated[tuple[Dtype, ...], Field(min_length=1)] = DTYPES
    windows: WindowConfig = field(default_factory=WindowConfig)
    tokens_per_batch: Count = 8192


def bench_end_to_end(
    config: EndToEndBenchmark,
    data: Dataset,
    reader: "EncoderReader",
    skimmer: "Skimmer | None" = None,
    progress: Progress | None = None,
) -> list[dict]:
    """Questions per second with EM and F1, of the full encoder, padded, and with ``skimmer``.

    columns reader, dtype, questions_per_second, speedup (over the full encoder in the same dtype),
    speedup_over_padded (over fp32 padded to 384), exact_match, f1, token_fraction
    """
    from qalib.metrics import score

    test = make_dataset(data.name, data.examples[: config.questions], data.path, data.raw_sha256)
    answerers = _answerers(config, reader, skimmer)
    predictions: dict = {}
    timings = interleave(
        {name: answerer.predict for name, answerer in answerers.items()},
        [test.examples],
        config.rounds,
        observe=lambda number, name, item, found: predictions.update({name: found}),
        progress=progress,
    )
    rows, padded = [], f"padded to {PADDED}, fp32"
    for name, found in predictions.items():
        texts = {e.id: p.candidates[0].text for e, p in zip(test, found, strict=True)}
        scores, (kind, dtype) = score(test, texts), name.rsplit(", ", 1)
        row = {"reader": kind, "dtype": dtype}
        rates = timings.rates(name, [len(test)] * timings.rounds)
        row |= columns("questions_per_second", rates)
        full = f"{FULL}, {dtype}"
        row |= columns("speedup", timings.speedups(name, full) if full in answerers else [])
        row |= columns("speedup_over_padded", timings.speedups(name, padded))
        row |= {"exact_match": scores["exact_match"], "f1": scores["f1"]}
        rows.append(row | {"token_fraction": float(np.mean([p.token_fraction for p in found]))})
    return rows


def _answerers(
    config: EndToEndBenchmark, reader: "EncoderReader", skimmer: "Skimmer | None"
) -> dict:
    """Question answerers by reader and dtype."""
    from qalib.inference import AnswerConfig, QuestionAnswerer
    from qalib.skim.baselines import PaddedReader
    from qalib.skim.reader import SkimReader

    dtypes = usable_dtypes(config.dtypes)
    converted = in_dtypes(reader, dtypes)
    readers = {f"{FULL}, {dtype}": converted[dtype] for dtype in dtypes}
    readers[f"padded to {PADDED}, fp32"] = PaddedReader(reader, PADDED)
    if skimmer is not None:
        for dtype in dtypes:
            readers[f"Block-Skim, {dtype}"] = SkimReader(converted[dtype], skimmer).eval()
    shared = {"windows": config.windows, "tokens_per_batch": config.tokens_per_batch}
    return {
        name: QuestionAnswerer(
            r, AnswerConfig(**shared, precision="bf16" if "bf16" in name else "fp32")
        )
        for name, r in readers.items()
    }


# --- distillation ---------------------------------------------------------------------------------


@settings
class DistillationBenchmark:
    """Latency of a student and of its teachers, and the cost of a training step with teachers."""

    rounds: Count = 5
    questions: Count = 64  # of the test data, answered in each round
    batches: tuple[Count, ...] = (1, 16)  # questions at a time
    steps: Count = 6  # of training in a round


@stage("bench-distillation")
def bench_distillation(
    config: DistillationBenchmark,
    work: Path,
    student: Run,
    teachers: list[Run],
    cache: Run,
    test: Dataset,
    data: Dataset,
) -> dict:
    """Time the first teacher alone, the student, and ensembles of two and of all teachers.

    ``latency``: batch, reader, milliseconds a question and ratio to the single reader, of the
    forward passes ("reading") and from text to text ("answering"); ``step``: milliseconds of a
    training step without and with cached teacher outputs, and their ratio, collation included.
    """
    from qalib.inference import AnswerConfig
    from qalib.study.stages.distillation import MAX_ANSWER, word_answerer

    runs = {"single": teachers[0], "student": student}
    if len(teachers) > 2:
        runs["ensemble of 2"] = teachers[:2]
    runs["ensemble"] = teachers
    decoding = AnswerConfig(max_answer_length=MAX_ANSWER)
    answerers = {name: word_answerer(run, decoding) for name, run in runs.items()}
    latency = latency_rows(answerers, test.examples[: config.questions], config)
    return {"latency": latency, "step": step_rows(data, student, cache, config)}


def latency_rows(
    answerers: Mapping[str, Any], examples: Sequence[Example], config: DistillationBenchmark
) -> list[dict]:
    """Milliseconds a question by batch size; ratios are to the first answerer."""
    import torch

    def reading(answerer: Any) -> Callable:
        def forward(item: tuple) -> None:
            with torch.inference_mode():
                answerer.forward(item[1]).start_logits.sum().item()

        return forward

    def answering(answerer: Any) -> Callable:
        return lambda item: answerer.answer_many(item[0])

    first, rows = next(iter(answerers)), []
    for size in config.batches:
        parts = [examples[i : i + size] for i in range(0, len(examples), size)]
        cut, batch = answerers[first].make_windows, answerers[first].collate
        items = [(part, batch(cut(part), part)) for part in parts]
        found: dict[str, dict] = {name: {"batch": size, "reader": name} for name in answerers}
        for kind, process in {"reading": reading, "answering": answering}.items():
            candidates = {name: process(answerer) for name, answerer in answerers.items()}
            timings = interleave(candidates, items, config.rounds)
            for name, row in found.items():
                seconds = quartiles(timings.seconds[name]).median / len(examples)
                slower = [1 / ratio for ratio in timings.speedups(name, first)]
                row[f"{kind}_ms"] = 1000 * seconds
                row[f"{kind}_ratio"] = quartiles(slower).median
        rows += found.values()
    return rows


def step_rows(data: Dataset, student: Run, cache: Run, config: DistillationBenchmark) -> list[dict]:
    """Milliseconds of a training step, plain and with all teachers of the student."""
    from qalib.study.stages import distillation

    training = student.settings(distillation.StudentTraining)
    base, budget = training.base, training.base.train.tokens_per_batch
    part = make_dataset(f"{data.name}-first", data.examples[: budget // 8], data.path)
    plain, _ = distillation.word_task(distillation.new_reader(base), part, base)
    tasks = {"plain": plain}
    tasks["distillation"] = distillation.student_task(
        distillation.new_reader(base), part, training, cache
    )
    plan = training_batches(plain.lengths, budget, seed=0, epoch=0)
    plan = (plan * config.steps)[: config.steps]

    def trainer(task: Any) -> Callable:
        step = training_step(distillation.new_reader(base), task.loss, best_precision(), base.train)
        return lambda rows: step(task.collate(rows))

    trainers = {name: trainer(task) for name, task in tasks.items()}
    timings = interleave(trainers, plan, config.rounds)
    rows = []
    for name in tasks:
        seconds = quartiles(timings.seconds[name]).median / len(plan)
        slower = quartiles([1 / ratio for ratio in timings.speedups(name, "plain")]).median
        rows.append({"step": name, "milliseconds": 1000 * seconds, "ratio": slower})
    return rows
