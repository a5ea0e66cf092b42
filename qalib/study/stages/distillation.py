"""Stages of notebooks 08 and 09: train teachers, cache their outputs, train students.

Teacher n is the plain reader with seed n. A student has the seed, and so the first weights and the
order of the questions, of a plain reader: the two differ only in what they are taught.

Notation: P passage tokens, N question tokens, T teachers, R rows, B rows of a batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from qalib.data.schema import Dataset, hold_out
from qalib.data.words import WordConfig
from qalib.distill.teacher_cache import TeacherCacheConfig
from qalib.errors import QalibError
from qalib.losses import DistillConfig
from qalib.models.mnemonic_reader import MnemonicConfig
from qalib.settings import settings
from qalib.study.run_cache import Run, stage
from qalib.study.stages import baseline
from qalib.study.stages.baseline import EncoderTraining
from qalib.study.stages.bytes import ByteTraining, byte_task, make_optimizer
from qalib.training import TrainConfig

if TYPE_CHECKING:
    from torch import nn

    from qalib.distill.alignment import TokenSpan
    from qalib.distill.distractors import DistractorSpans
    from qalib.distill.teacher_cache import Outputs, TeacherTargets
    from qalib.training import TrainingTask

CACHE = "cache"  # the folder of a ``cache_teachers`` run
MAX_ANSWER = 20  # word pieces of an answer, in mining and decoding
Share = Annotated[float, Field(ge=0, lt=1)]
Teachers = Annotated[tuple[int, ...], Field(min_length=1)]  # numbers of the teachers in the cache


# --- settings ---------------------------------------------------------------------------------


@settings
class WordTraining:
    """Everything that the weights of a word-level reader depend on, besides the data."""

    reader: MnemonicConfig = field(default_factory=MnemonicConfig)
    text: WordConfig = field(default_factory=WordConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    smoothing: Share = 0.0  # of the gold label, spread over all positions
    held_out: Share = 0.0  # of the passages, scored after every epoch
    seed: int = 0


@settings
class StudentTraining:
    """Everything that a student depends on, besides its data and the teachers' outputs.

    ``distractors`` of the margin loss: mined from the teachers, random wrong answers in their
    places, or mined from teachers that were not trained on the passage.
    """

    base: WordTraining = field(default_factory=WordTraining)
    loss: DistillConfig = field(default_factory=DistillConfig)
    teachers: Teachers = (0,)
    distractors: Literal["mined", "random", "out-of-fold"] = "mined"

    def __post_init__(self):
        if self.base.smoothing:
            raise QalibError("a student's labels are smoothed by loss.smoothing; set base's to 0.")


@settings
class ShallowTraining:
    """An encoder that starts with some layers of the pretrained one, counted from 1.

    It has ``teachers`` and a ``loss``, or neither.
    """

    base: EncoderTraining = field(default_factory=EncoderTraining)
    layers: Annotated[tuple[int, ...], Field(min_length=1)] = (2, 4, 6)
    loss: DistillConfig | None = None
    teachers: tuple[int, ...] = ()


@settings
class ByteStudent:
    """A byte-level reader with teachers; its Gaussian loss takes the place of cross-entropy."""

    base: ByteTraining = field(default_factory=ByteTraining)
    loss: DistillConfig = field(
        default_factory=lambda: DistillConfig(ce_weight=0.0, attention_weight=0.0)
    )
    teachers: Teachers = (0,)


@settings
class DistillStudy:
    """Section [distill] of a profile: what notebooks 08 and 09 train."""

    base: WordTraining = field(default_factory=WordTraining)  # of teachers and students
    teachers: Annotated[int, Field(ge=1)] = 4
    seeds: Annotated[int, Field(ge=1)] = 1  # of the single reader and the student
    choices: tuple[
        tuple[float, int], ...
    ] = ()  # (learning rate, epochs) tried on held-out passages
    held_out: Share = 0.1
    folds: Annotated[int, Field(ge=0)] = 0  # of the out-of-fold teachers; 0 = none
    ablation_epochs: int = 0  # 0 = as ``base``
    row_seeds: Annotated[int, Field(ge=1)] = 1  # of each row of the ablations
    counts: tuple[int, ...] = ()  # numbers of teachers below ``teachers``

    def __post_init__(self):
        if self.seeds > self.teachers:
            raise QalibError(
                f"distill: seeds must be at most {self.teachers}, the number of teachers: the "
                "single readers are among them."
            )


@settings
class DistillTests:
    """Section [distill_tests]: every how many-th question, and how many sentences for the worst."""

    every: Annotated[int, Field(ge=1)] = 1
    candidates: Annotated[int, Field(ge=2)] = 4


@settings
class OtherStudents:
    """Section [distill_others]: encoders that teach a shallow encoder and a byte-level reader."""

    teachers: Annotated[int, Field(ge=1)] = 2
    layers: tuple[int, ...] = (2, 4, 6)  # of the pretrained encoder, where the shallow one starts
    epochs: Annotated[int, Field(ge=0)] = 0  # of the shallow one; 0 = as its teachers
    variant: str = "plain"  # of the byte-level reader


# --- training ---------------------------------------------------------------------------------


@stage("train-words")
def train_words(config: WordTraining, work: Path, data: Dataset) -> dict:
    """Train a word-level reader on ``data``, without teachers.

    Writes log.jsonl (with EM and F1 on the held-out passages) and weights.safetensors.
    """
    rest, held = hold_out(data, config.held_out) if config.held_out else (data, None)
    reader = new_reader(config)
    task, _ = word_task(reader, rest, config)
    return _train_words(reader, task, config, work, len(rest), held)


def new_reader(config: WordTraining) -> "nn.Module":
    """A word-level reader before training."""
    from qalib.models.mnemonic_reader import build_mnemonic_reader

    return build_mnemonic_reader(config.reader, seed=config.seed)


def word_task(
    reader: "nn.Module", data: Dataset, config: WordTraining
) -> "tuple[TrainingTask, list[TokenSpan]]":
    """Cross-entropy on windows with a gold answer, and the token spans of these windows."""
    from qalib.data.words import collate_words
    from qalib.distill.alignment import token_spans
    from qalib.losses import smoothed_span_loss
    from qalib.training import TrainingTask

    windows = _word_windows(reader, data, config)
    task = TrainingTask(
        lengths=[len(window) for window in windows],
        collate=lambda rows: collate_words([windows[row] for row in rows]),
        loss=lambda output, batch: smoothed_span_loss(
            output, batch.answer_spans, batch.answer_weights, config.smoothing
        ),
    )
    return task, token_spans(windows, data.examples)


def _word_windows(reader: "nn.Module", data: Dataset, config: WordTraining) -> list:
    from qalib.data.windows import training_windows
    from qalib.data.words import word_windows

    return training_windows(word_windows(data.examples, reader.vocabulary, config.text))


def _train_words(
    reader: "nn.Module",
    task: "TrainingTask",
    config: WordTraining,
    work: Path,
    questions: int,
    held: Dataset | None,
) -> dict:
    """Train a word-level reader and score it on held-out passages after every epoch.  -> metrics"""
    from qalib.metrics import score

    def held_out_scores(epoch: int = 0) -> dict:
        if held is None:
            return {}
        found = _word_answerer(reader, config).predictions(held.examples)
        return {f"held_out_{name}": value for name, value in score(held, found).items()}

    summary = _train(reader, task, config.train, work, config.seed, after_epoch=held_out_scores)
    return {"questions": questions, **summary, **held_out_scores()}


def _train(
    reader: "nn.Module",
    task: "TrainingTask",
    config: TrainConfig,
    work: Path,
    seed: int,
    **options: Any,
) -> dict:
    """Train a reader and write what training changed to weights.safetensors.  -> metrics"""
    from accelerate import Accelerator

    from qalib.checkpoints import save_weights, trained_tensors
    from qalib.training import train

    summary = train(reader, task, config, work, seed, **options)
    if Accelerator(mixed_precision="no").is_main_process:
        save_weights(trained_tensors(reader), work / "weights.safetensors")
    parameters = sum(p.numel() for p in reader.parameters() if p.requires_grad)
    return {"windows": len(task.lengths), "parameters": parameters, **summary}


@stage("train-student")
def train_student(
    config: StudentTraining,
    work: Path,
    data: Dataset,
    cache: Run,
    start: Run | None = None,
    out_of_fold: Run | None = None,
) -> dict:
    """Train a word-level reader on gold answers and on the cached outputs of its teachers.

    ``start``: a student to continue from. ``out_of_fold``: the ``cache_teachers`` run with folds,
    for distractors of that name. Writes log.jsonl, with the parts of the loss, and
    weights.safetensors. Raises QalibError if the teachers have not read the data.
    """
    base = config.base
    rest, held = hold_out(data, base.held_out) if base.held_out else (data, None)
    reader = new_reader(base)
    if start is not None:
        _put_weights(reader, start)
    task = student_task(reader, rest, config, cache, out_of_fold)
    return _train_words(reader, task, base, work, len(rest), held)


def student_task(
    reader: "nn.Module",
    data: Dataset,
    config: StudentTraining,
    cache: Run,
    out_of_fold: Run | None = None,
) -> "TrainingTask":
    """The joint objective of a word-level student: windows with their teachers' targets."""
    from qalib.distill.alignment import tokenizer_hash

    targets = teacher_targets(cache, config.teachers)
    return _taught(
        *word_task(reader, data, config.base),
        targets,
        config.loss,
        distractors=_distractors(targets, data, config, out_of_fold),
        tokenizer=tokenizer_hash(reader.vocabulary.tokenizer),
    )


def _taught(
    task: "TrainingTask",
    spans: "Sequence[TokenSpan]",
    targets: "TeacherTargets",
    loss: DistillConfig,
    **options: Any,
) -> "TrainingTask":
    """A task with the distillation objective in place of its own loss."""
    from qalib.distill.objective import Distillation

    distillation = Distillation(task.collate, spans, targets, loss, **options)
    return replace(
        task,
        collate=distillation.collate,
        loss=distillation.loss,
        log_metrics=distillation.log_metrics,
    )


def _distractors(
    targets: "TeacherTargets", data: Dataset, config: StudentTraining, out_of_fold: Run | None
) -> "DistractorSpans":
    """The distractor of every row of the targets."""
    from qalib.distill.distractors import DistractorMiner, DistractorSpans, random_distractors

    if (out_of_fold is not None) != (config.distractors == "out-of-fold"):
        raise QalibError(
            "the input out_of_fold belongs to distractors = 'out-of-fold'; give both or neither."
        )
    mined = targets.distractors()
    if config.distractors == "mined":
        return mined
    if out_of_fold is not None:
        return _out_of_fold(targets, data, out_of_fold)
    known = {example.id for example in data.examples}  # the cache may cover more questions
    learnt = np.array([span.id in known for span in targets.spans])
    mined = DistractorSpans(mined.spans, np.where(learnt, mined.confidence, 0.0))
    return random_distractors(
        mined, targets.spans, DistractorMiner(data.examples), config.base.seed
    )


def _out_of_fold(targets: "TeacherTargets", data: Dataset, out_of_fold: Run) -> "DistractorSpans":
    """Out-of-fold distractors at the rows of other targets; none where there is no such row."""
    from qalib.distill.alignment import match_rows
    from qalib.distill.distractors import DistractorSpans

    folds = out_of_fold.config["folds"]
    theirs = teacher_targets(out_of_fold, range(folds))
    mined = theirs.distractors(_not_trained_on(theirs.spans, data, folds))
    rows = match_rows(theirs.spans, targets.spans)
    spans = np.full((len(targets), 2), -1, dtype=np.int32)
    confidence = np.zeros(len(targets), dtype=np.float32)
    spans[rows], confidence[rows] = mined
    return DistractorSpans(spans, confidence)


# --- the teachers' outputs --------------------------------------------------------------------


@stage("cache-teachers", publish=())
def cache_teachers(
    config: TeacherCacheConfig, work: Path, data: Dataset, teachers: list[Run]
) -> dict:
    """Cache what word-level readers or encoders predict for ``data``, in the folder "cache".

    A killed run resumes with the teacher that it was processing. The metrics describe the
    distractors, see :func:`qalib.distill.distractors.mining_report`.
    """
    from qalib.distill.alignment import token_spans, tokenizer_hash
    from qalib.distill.distractors import DistractorMiner, mining_report
    from qalib.distill.teacher_cache import TeacherTargets, cache_teacher_outputs

    windows, collate, tokenizer, hops = _teacher_inputs(teachers[0], data)
    if config.attention and not hops:
        raise QalibError("encoders have no attention on the question apart; set attention to 0.")
    miner = DistractorMiner(data.examples, config.mining)
    cache_teacher_outputs(
        work / CACHE,
        token_spans(windows, data.examples),
        [lambda run=run: _outputs(run, windows, collate) for run in teachers],
        miner,
        hops if config.attention else (),
        tokenizer_hash(tokenizer),
    )
    targets = TeacherTargets(work / CACHE, range(len(teachers)))
    allowed = _not_trained_on(targets.spans, data, config.folds) if config.folds else None
    report = mining_report(targets.distractors(allowed), targets.spans, miner)
    return {"windows": len(windows), "teachers": len(teachers), **report}


def _teacher_inputs(run: Run, data: Dataset) -> tuple[list, Callable, Any, list[str]]:
    """Windows with a gold answer, how they become a batch, tokenizer and attention maps."""
    from qalib.data.batching import collate
    from qalib.data.windows import make_windows, training_windows
    from qalib.data.words import collate_words

    if run.stage == "train-encoder":
        tokenizer = baseline.load_reader(run).tokenizer
        config = run.settings(EncoderTraining).windows
        windows = training_windows(make_windows(data.examples, tokenizer, config))
        return windows, lambda w: collate(w, tokenizer.pad_token_id or 0), tokenizer, []
    reader = load_reader(run)
    hops = [f"align {n}" for n in range(1, reader.config.hops + 1)]
    windows = _word_windows(reader, data, training_of(run))
    return windows, collate_words, reader.vocabulary.tokenizer, hops


def _outputs(run: Run, windows: list, collate: Callable, budget: int = 8192) -> "Outputs":
    """The outputs of a run's reader, in batches of similar length."""
    import torch

    from qalib.data.batching import inference_batches
    from qalib.training import choose_precision

    load = baseline.load_reader if run.stage == "train-encoder" else load_reader
    device = "cuda" if torch.cuda.is_available() else "cpu"
    reader = load(run).eval().to(device)
    bf16 = choose_precision("auto", device)[0] == "bf16"
    for rows in inference_batches([len(window) for window in windows], budget):
        batch = collate([windows[row] for row in rows]).to(torch.device(device))
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=bf16):
            yield rows, reader(batch)


def fold_of(context: str, folds: int) -> int:
    """The fold of a passage, from its text alone."""
    digest = sha256(context.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[4:8]) % folds  # other bytes than those that ``hold_out`` reads


def _not_trained_on(spans: "Sequence[TokenSpan]", data: Dataset, folds: int) -> np.ndarray:
    """Which teacher was not trained on which row: teacher k on fold k.  -> (T, R) bool"""
    contexts = {example.id: example.context for example in data.examples}
    fold = np.array([fold_of(contexts[span.id], folds) for span in spans])
    return np.arange(folds)[:, None] == fold


def teacher_targets(cache: Run, teachers: Sequence[int]) -> "TeacherTargets":
    """The targets of some teachers of a ``cache_teachers`` run.

    Raises QalibError if the run has fewer teachers, or if its files are not on this machine.
    """
    from qalib.distill.teacher_cache import TeacherTargets

    count = sum(name.startswith("teachers.") for name in cache.inputs)
    if max(teachers) >= count:
        raise QalibError(
            f"{cache.short} has {count} teachers, there is no teacher {max(teachers)}."
        )
    return TeacherTargets(cache.file(f"{CACHE}/rows.json").parent, teachers)


# --- other students ---------------------------------------------------------------------------


@stage("student-encoder")
def train_shallow(
    config: ShallowTraining, work: Path, data: Dataset, cache: Run | None = None
) -> dict:
    """Train an encoder of few layers, with teachers (``cache``) or without.

    Encoders attend to passage and question at once, so attention is not distilled.
    """
    from qalib.data.batching import collate
    from qalib.data.windows import make_windows, training_windows
    from qalib.distill.alignment import token_spans
    from qalib.losses import span_loss
    from qalib.training import TrainingTask

    reader = _shallow_reader(config)
    tokenizer = reader.tokenizer
    windows = training_windows(make_windows(data.examples, tokenizer, config.base.windows))
    task = TrainingTask(
        lengths=[len(window) for window in windows],
        collate=lambda rows: collate([windows[r] for r in rows], tokenizer.pad_token_id or 0),
        loss=lambda output, batch: span_loss(output, batch.answer_spans, batch.answer_weights),
    )
    if cache is not None:
        targets, spans = (
            teacher_targets(cache, config.teachers),
            token_spans(windows, data.examples),
        )
        task = _taught(task, spans, targets, config.loss)
    summary = _train(reader, task, config.base.train, work, config.base.seed)
    return {"questions": len(data), **summary}


def _shallow_reader(config: ShallowTraining) -> "nn.Module":
    """The pretrained encoder with some of its layers and a new span head."""
    from torch import nn

    from qalib.models.encoder import build_encoder

    reader = build_encoder(config.base.encoder, config.base.seed)
    body = reader.encoder.base_model.encoder
    if max(config.layers) > len(body.layer):
        raise QalibError(
            f"layers names layer {max(config.layers)}, the encoder has {len(body.layer)} layers."
        )
    body.layer = nn.ModuleList(body.layer[number - 1] for number in config.layers)
    reader.encoder.config.num_hidden_layers = len(config.layers)
    return reader


@stage("student-bytes")
def train_byte_student(config: ByteStudent, work: Path, data: Dataset, cache: Run) -> dict:
    """Train a byte-level reader on its Gaussian loss and on encoders' outputs.

    Probabilities of word pieces are projected onto the bytes; attention is not distilled.
    """
    from qalib.data.bytes import QuestionRows, passage_features
    from qalib.distill.alignment import byte_spans
    from qalib.models.byte_reader import build_byte_reader

    reader = build_byte_reader(config.base.reader, config.base.seed)
    task = byte_task(data, config.base)
    rows = QuestionRows(passage_features(data.examples, config.base.text))  # those of the task
    targets, spans = teacher_targets(cache, config.teachers), byte_spans(rows, data.examples)
    taught = _taught(task, spans, targets, config.loss)
    both = replace(taught, loss=lambda out, batch: task.loss(out, batch) + taught.loss(out, batch))
    optimizer = make_optimizer(reader, config.base)
    train, seed = config.base.train, config.base.seed
    summary = _train(reader, both, train, work, seed, optimizer=optimizer)
    return {"questions": len(data), **summary}


# --- loading ----------------------------------------------------------------------------------


def training_of(run: Run) -> WordTraining:
    """How the word-level reader of a run was trained."""
    if run.stage == "train-student":
        return run.settings(StudentTraining).base
    return run.settings(WordTraining)


def load_reader(run: Run) -> "nn.Module":
    """The reader of a run of this module, in evaluation mode."""
    from qalib.models.byte_reader import build_byte_reader

    if run.stage == "student-encoder":
        reader = _shallow_reader(run.settings(ShallowTraining))
    elif run.stage == "student-bytes":
        reader = build_byte_reader(run.settings(ByteStudent).base.reader)
    else:
        reader = new_reader(training_of(run))
    _put_weights(reader, run)
    return reader.eval()


def _put_weights(reader: "nn.Module", run: Run) -> None:
    from qalib.checkpoints import load_weights, put_weights

    path = run.file("weights.safetensors")
    put_weights(reader, load_weights(path), str(path))


def load_answerer(weights: Run | Sequence[Run], settings: Any):
    """A run of this module, or an ensemble of word-level readers, ready to answer questions."""
    from qalib.inference import ByteQuestionAnswerer, QuestionAnswerer
    from qalib.models.ensemble import Ensemble

    runs = [weights] if isinstance(weights, Run) else list(weights)
    readers = [load_reader(run) for run in runs]
    if runs[0].stage == "student-bytes":
        return ByteQuestionAnswerer(readers[0], settings)
    if runs[0].stage == "student-encoder":
        return QuestionAnswerer(readers[0], settings)
    reader = readers[0] if len(readers) == 1 else Ensemble(readers)
    return _word_answerer(reader, training_of(runs[0]), settings)


def _word_answerer(reader: "nn.Module", config: WordTraining, settings: Any = None):
    from qalib.inference import AnswerConfig, WordQuestionAnswerer

    settings = settings or AnswerConfig(max_answer_length=MAX_ANSWER)
    return WordQuestionAnswerer(reader, settings, config.text)
