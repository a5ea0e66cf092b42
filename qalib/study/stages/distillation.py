"""Stages of notebooks 08 and 09: train teachers, cache their outputs, train students.

Teacher n is the plain reader with seed n. Students have seeds that no teacher has; a plain reader
of the same seed has the same initial weights and order of questions as the student.

Notation: P passage tokens, N question tokens, T teachers, R rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from qalib.data.schema import Dataset, hold_out
from qalib.data.windows import training_windows
from qalib.data.words import WordConfig, collate_words, word_windows
from qalib.distill import distractors
from qalib.distill.alignment import TokenSpan, match_rows, token_spans
from qalib.distill.encoders import align_layers, distilled_task, teacher_outputs
from qalib.distill.teacher_cache import TeacherCacheConfig, TeacherTargets, cache_teacher_outputs
from qalib.errors import QalibError
from qalib.inference import AnswerConfig, WordQuestionAnswerer, choose_device
from qalib.losses import DistillConfig, span_loss
from qalib.metrics import score
from qalib.models.ensemble import Ensemble
from qalib.models.mnemonic_reader import MnemonicConfig, build_mnemonic_reader
from qalib.settings import settings
from qalib.study.run_cache import Run, stage
from qalib.study.stages import baseline
from qalib.training import TrainConfig, TrainingTask, encoder_task, train

Task = tuple[TrainingTask, list[TokenSpan]]  # and the passage tokens of its rows
MAX_ANSWER = 20  # word pieces of an answer, in mining and decoding
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]


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
    distractors: Literal["mined", "random", "out-of-fold"] = "mined"


@settings
class DistillStudy:
    """Section [distill] of a profile: what notebooks 08 and 09 train."""

    choices: tuple[WordTraining, ...]  # compared on held-out passages; a single one is taken
    tests: tuple[tuple[str, str], ...]  # (title, section): clean, then with misleading sentences
    teachers: Count = 4
    seeds: Count = 1  # of the student
    row_seeds: Count = 1  # of each row of the ablations
    temperatures: tuple[float, ...] = ()  # of the soft targets, compared on held-out passages
    folds: int = 0  # of the out-of-fold teachers; 0 = none
    counts: tuple[int, ...] = ()  # other numbers of teachers
    story_teachers: int = 0  # of the readers of stories, with free-form answers; 0 = none
    rows: tuple[str, ...] = ()  # of the ablations; none = all


# --- word-level readers -----------------------------------------------------------------------


@stage("train-words")
def train_words(config: WordTraining, work: Path, data: Dataset) -> dict:
    """Train a word-level reader on ``data``, without teachers.

    Writes log.jsonl (with EM and F1 on the held-out passages) and weights.safetensors.
    """
    return _train_words(config, work, data, lambda r, rest: word_task(r, rest, config)[0])


@stage("train-student")
def train_student(
    config: StudentTraining,
    work: Path,
    data: Dataset,
    caches: list[Run],
    start: Run | None = None,
    out_of_fold: list[Run] | None = None,
) -> dict:
    """Train a word-level reader on gold answers and on the cached outputs of its teachers.

    ``start``: a student to continue from. ``out_of_fold``: for distractors of that name, caches
    of teachers for the passages that each was not trained on. The log has the parts of the loss.
    Raises QalibError if the teachers have not read the data.
    """

    def make_task(reader: nn.Module, rest: Dataset) -> TrainingTask:
        return student_task(reader, rest, config, caches, out_of_fold)

    return _train_words(config.base, work, data, make_task, start)


def new_reader(config: WordTraining) -> nn.Module:
    """A word-level reader before training."""
    return build_mnemonic_reader(config.reader, seed=config.seed)


def word_task(reader: nn.Module, data: Dataset, config: WordTraining) -> Task:
    """Cross-entropy on windows with a gold answer."""
    windows = training_windows(word_windows(data.examples, reader.vocabulary, config.text))
    task = TrainingTask(
        lengths=[len(window) for window in windows],
        collate=lambda rows: collate_words([windows[row] for row in rows]),
        loss=lambda output, batch: span_loss(
            output, batch.answer_spans, batch.answer_weights, smoothing=config.smoothing
        ),
    )
    return task, token_spans(windows, data.examples)


def student_task(
    reader: nn.Module,
    data: Dataset,
    config: StudentTraining,
    caches: Sequence[Run],
    out_of_fold: Sequence[Run] | None = None,
) -> TrainingTask:
    """The joint objective of a word-level student: windows with their teachers' targets."""
    targets = teacher_targets(caches)
    found = _distractors(targets, data, config, out_of_fold)
    task = word_task(reader, data, config.base)
    return distilled_task(*task, targets, config.loss, distractors=found)


def _distractors(
    targets: TeacherTargets,
    data: Dataset,
    config: StudentTraining,
    out_of_fold: Sequence[Run] | None,
) -> distractors.DistractorSpans:
    """The distractor of every row of the targets; none where there is nothing to mine from."""
    if (out_of_fold is not None) != (config.distractors == "out-of-fold"):
        raise QalibError("the input out_of_fold and distractors = 'out-of-fold' need each other.")
    mined = targets.distractors()
    if out_of_fold is not None:
        spans, confidence = np.full_like(mined.spans, -1), np.zeros_like(mined.confidence)
        for run in out_of_fold:
            theirs = teacher_targets([run])
            rows = match_rows(theirs.spans, targets.spans)
            spans[rows], confidence[rows] = theirs.distractors()
        return distractors.DistractorSpans(spans, confidence)
    if config.distractors == "random":
        known = {example.id for example in data.examples}  # the cache may cover more questions
        learnt = np.array([span.id in known for span in targets.spans])
        mined = mined._replace(confidence=np.where(learnt, mined.confidence, 0.0))
        miner = distractors.DistractorMiner(data.examples)
        return distractors.random_distractors(mined, targets.spans, miner, config.base.seed)
    return mined


def _train_words(
    config: WordTraining, work: Path, data: Dataset, make_task: Callable, start: Run | None = None
) -> dict:
    """Train a word-level reader; score it on the held-out passages after every epoch."""
    rest, held = hold_out(data, config.held_out) if config.held_out else (data, None)
    reader = new_reader(config)
    if start is not None:
        baseline.put_trained(reader, start)

    def held_out_scores(epoch: int = 0) -> dict:
        if held is None:
            return {}
        decoding = AnswerConfig(max_answer_length=MAX_ANSWER, precision=config.train.precision)
        found = WordQuestionAnswerer(reader, decoding, config.text).predictions(held.examples)
        return {f"held_out_{name}": value for name, value in score(held, found).items()}

    task = make_task(reader, rest)
    summary = train(reader, task, config.train, work, config.seed, after_epoch=held_out_scores)
    counts = {"questions": len(rest), "windows": len(task.lengths)}
    counts["parameters"] = baseline.save_trained(reader, work, torch.float16)
    return {**counts, **summary, **held_out_scores()}


# --- the teachers' outputs --------------------------------------------------------------------


@stage("cache-teacher", publish=())
def cache_teacher(config: TeacherCacheConfig, work: Path, data: Dataset, teacher: Run) -> dict:
    """Cache what a word-level reader or an encoder predicts for ``data``, in "teacher-0".

    The metrics describe its distractors, see :func:`qalib.distill.distractors.mining_report`.
    """
    if teacher.stage in ("train-encoder", "train-adapter"):
        reader = baseline.load_encoder_reader(teacher)
        windows = baseline.encoder_training(teacher).windows
        task, windows = encoder_task(reader, data.examples, windows)
        spans = token_spans(windows, data.examples, reader.before)
        count = align_layers(reader) if config.attention else 0
    else:
        reader = load_word_reader(teacher)
        task, spans = word_task(reader, data, word_training(teacher))
        count = reader.config.hops if config.attention else 0
    outputs = partial(teacher_outputs, reader, task, config.precision)
    miner = distractors.DistractorMiner(data, config.mining)
    cache_teacher_outputs(work, spans, [outputs], miner, [f"align {n + 1}" for n in range(count)])
    mined = TeacherTargets([work / "teacher-0"]).distractors()
    return {"windows": len(spans), **distractors.mining_report(mined)}


def teacher_targets(caches: Sequence[Run]) -> TeacherTargets:
    """The targets of ``cache_teacher`` runs. Raises QalibError if a cache is not here."""
    return TeacherTargets([run.file("teacher-0/start.npy").parent for run in caches])


# --- loading ----------------------------------------------------------------------------------


def word_training(run: Run) -> WordTraining:
    """How the word-level reader of a run was trained."""
    if run.stage == "train-student":
        return run.settings(StudentTraining).base
    return run.settings(WordTraining)


def load_word_reader(run: Run) -> nn.Module:
    """The reader of a run of this module, in evaluation mode."""
    return baseline.put_trained(new_reader(word_training(run)), run).eval()


def word_answerer(weights: Run | Sequence[Run], settings: AnswerConfig) -> WordQuestionAnswerer:
    """A run of this module, or an ensemble of word-level readers, ready to answer questions."""
    runs = [weights] if isinstance(weights, Run) else list(weights)
    readers = [load_word_reader(run).to(choose_device()) for run in runs]
    reader = readers[0] if len(readers) == 1 else Ensemble(readers)
    return WordQuestionAnswerer(reader, settings, word_training(runs[0]).text)
