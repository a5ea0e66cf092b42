"""Benchmarks of training, byte-level readers, answering and distillation, on this machine's CPU.

All time their candidates in turn (``qalib.timing``), so that speed-ups are ratios within a round.
Notebooks 03 and 08 record two of them; ``python -m qalib bench`` runs them anew. Those of
Block-Skim are in ``stages.skim_benchmarks``.
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
from qalib.data.windows import Window, WindowConfig
from qalib.models.byte_reader import ByteReaderConfig
from qalib.models.encoder import EncoderConfig
from qalib.settings import settings
from qalib.study.run_cache import Run, stage
from qalib.study.stages.skim_benchmarks import DTYPES, FULL, PADDED, Dtype, in_dtypes
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


# --- training an encoder --------------------------------------------------------------------------


@settings
class TrainingBenchmark:
    """``steps`` training steps of each set-up in a round."""

    rounds: Count = 5
    steps: Count = 3
    tokens_per_batch: Count = 4096
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

    def trainer(self, seed: int) -> Callable:
        """A training step on a fresh reader."""
        from qalib.losses import span_loss
        from qalib.models.encoder import build_encoder, use_byte_dropout

        encoder = EncoderConfig(
            attention_dropout=self.attention_dropout, train_embeddings=not self.freeze_embeddings
        )
        reader = build_encoder(encoder, seed, fast_dropout=False)
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


def time_training(
    windows: Sequence[Window], config: TrainingBenchmark, progress: Progress | None = None
) -> list[dict]:
    """A row per set-up: setup, tokens_per_second without padding, speedup over the first.

    On a processor without bf16 units the bf16 set-ups run in fp32, as training does.
    """
    tokens: dict[str, list[int]] = {name: [] for name in TRAINING_SETUPS}

    def trainer(setup: TrainingSetup) -> Callable[[int], int]:
        step = setup.trainer(config.seed)
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
        {name: trainer(setup) for name, setup in TRAINING_SETUPS.items()},
        range(1 + config.rounds),
        config.rounds,
        items_per_round=1,
        observe=observe,
        progress=progress,
    )
    rates = {name: timings.rates(name, counts) for name, counts in tokens.items()}
    base, rows = next(iter(rates.values())), []
    for name, values in rates.items():
        ratios = [ours / theirs for ours, theirs in zip(values, base, strict=True)]
        row = {"setup": name, **columns("tokens_per_second", values)}
        rows.append(row | {"speedup": quartiles(ratios).median})
    return rows


# --- byte-level readers ---------------------------------------------------------------------------


@settings
class ByteModelBenchmark:
    """The cost of readers with equally many parameters, on questions of the embedded corpus."""

    rounds: Count = 5
    questions: Count = 1024
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


@stage("bench-byte-models")
def bench_byte_models(
    config: ByteModelBenchmark, work: Path | None = None, progress: Progress | None = None
) -> dict:
    """:func:`time_byte_models` of all variants, on the embedded corpus."""
    corpus = CorpusConfig(questions=config.questions, length=config.length, seed=config.seed)
    examples = build_corpus(corpus).examples
    return time_byte_models(examples, config, byte_variants(config.reader), progress)


def time_byte_models(
    examples: Sequence[Example],
    config: ByteModelBenchmark,
    variants: Mapping[str, ByteReaderConfig],
    progress: Progress | None = None,
) -> dict:
    """``variants``: rows of variant, parameters, multiply-adds ("macs") of a question at the mean
    lengths ``passage`` and ``question``, and questions per second in training and in answering.
    """
    from qalib.data.bytes import QuestionRows, passage_features
    from qalib.inference import ByteQuestionAnswerer
    from qalib.losses import gaussian_span_loss
    from qalib.models.byte_reader import build_byte_reader, count_parameters, multiply_adds

    rows = QuestionRows(passage_features(examples))
    plan = rows.batches(config.batch_size, config.seed, 0)
    readers = {name: build_byte_reader(v, config.seed) for name, v in variants.items()}

    def loss(output, batch):
        return gaussian_span_loss(output, batch.answer_spans, batch.answer_weights, sigma=2.0)

    def trainer(reader: "nn.Module") -> Callable:
        step = training_step(reader, loss, best_precision(), TrainConfig(learning_rate=1e-3))
        return lambda chosen: step(rows.collate(chosen))

    def answerer(reader: "nn.Module") -> Callable:
        answer = ByteQuestionAnswerer(reader).answer_many
        return lambda chosen: answer([examples[rows.example(row)] for row in chosen])

    def rates(kind: Callable) -> dict[str, float]:
        candidates = {name: kind(reader) for name, reader in readers.items()}
        options = {"items_per_round": 1, "progress": progress}
        timings = interleave(candidates, plan, config.rounds, **options)
        sizes = [len(plan[(1 + n) % len(plan)]) for n in range(timings.rounds)]
        return {name: quartiles(timings.rates(name, sizes)).median for name in readers}

    training, answering = rates(trainer), rates(answerer)
    passage = round(np.mean([len(example.context) for example in examples]))
    question = round(np.mean([len(example.question) for example in examples]))
    found = [
        {
            "variant": name,
            "parameters": count_parameters(reader),
            "macs": multiply_adds(reader.config, passage, question),
            "train_questions_per_second": training[name],
            "answer_questions_per_second": answering[name],
        }
        for name, reader in readers.items()
    ]
    return {"variants": found, "passage": passage, "question": question}


# --- answering ------------------------------------------------------------------------------------


@settings
class EndToEndBenchmark:
    """Answering whole questions: tokenisation, encoder, decoding."""

    questions: Count = 200  # the first ones of the data
    rounds: Count = 3
    dtypes: Annotated[tuple[Dtype, ...], Field(min_length=1)] = DTYPES
    windows: WindowConfig = field(default_factory=WindowConfig)


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
    from qalib.inference import AnswerConfig, QuestionAnswerer
    from qalib.metrics import score
    from qalib.skim.baselines import PaddedReader
    from qalib.skim.reader import SkimReader

    test = make_dataset(data.name, data.examples[: config.questions], data.path, data.raw_sha256)
    readers: dict[tuple[str, str], nn.Module] = {}
    for dtype, converted in in_dtypes(reader, config.dtypes).items():
        readers[FULL, dtype] = converted
        if skimmer is not None:
            readers["Block-Skim", dtype] = SkimReader(converted, skimmer).eval()
    padded = f"padded to {PADDED}", "fp32"
    readers[padded] = PaddedReader(reader, PADDED)
    candidates = {}
    for key, model in readers.items():
        precision = "bf16" if key[1].startswith("bf16") else "fp32"
        answer = AnswerConfig(windows=config.windows, precision=precision)
        candidates[key] = QuestionAnswerer(model, answer).predict
    predictions: dict = {}
    timings = interleave(
        candidates,
        [test.examples],
        config.rounds,
        observe=lambda number, key, item, found: predictions.update({key: found}),
        progress=progress,
    )
    rows = []
    for key, found in predictions.items():
        texts = {e.id: p.candidates[0].text for e, p in zip(test, found, strict=True)}
        scores, base = score(test, texts), (FULL, key[1])
        row = {"reader": key[0], "dtype": key[1]}
        rates = timings.rates(key, [len(test)] * timings.rounds)
        row |= columns("questions_per_second", rates)
        row |= columns("speedup", timings.speedups(key, base if base in readers else padded))
        row |= columns("speedup_over_padded", timings.speedups(key, padded))
        row |= {"exact_match": scores["exact_match"], "f1": scores["f1"]}
        rows.append(row | {"token_fraction": float(np.mean([p.token_fraction for p in found]))})
    return rows


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
    reader = distillation.new_reader(base)
    plain, _ = distillation.word_task(reader, part, base)
    taught = distillation.student_task(reader, part, training, cache)
    plan = training_batches(plain.lengths, budget, seed=0, epoch=0)
    plan = (plan * config.steps)[: config.steps]

    def trainer(task: Any) -> Callable:
        fresh = distillation.new_reader(base)
        step = training_step(fresh, task.loss, best_precision(), base.train)
        return lambda rows: step(task.collate(rows))

    trainers = {"plain": trainer(plain), "distillation": trainer(taught)}
    timings = interleave(trainers, plan, config.rounds)
    rows = []
    for name in trainers:
        seconds = quartiles(timings.seconds[name]).median / len(plan)
        slower = quartiles([1 / ratio for ratio in timings.speedups(name, "plain")]).median
        rows.append({"step": name, "milliseconds": 1000 * seconds, "ratio": slower})
    return rows
