"""Stages of notebooks 08 and 09: train teachers, cache their outputs, train students.

Teacher n is the plain reader with seed n. A student has the seed, and so the initial weights and
the order of the questions, of a plain reader: the two differ only in what they are taught.

Notation: P passage tokens, N question tokens, T teachers, R rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
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
    teachers: tuple[int, ...] = (0,)  # their numbers in the cache
    distractors: Literal["mined", "random", "out-of-fold"] = "mined"


@settings
class DistillStudy:
    """Section [distill] of a profile: what notebooks 08 and 09 train."""

    base: WordTraining = field(default_factory=WordTraining)  # of teachers and students
    teachers: Count = 4
    seeds: Count = 1  # of the single reader, which is a teacher, and of the student
    choices: tuple[tuple[float, int], ...] = ()  # (learning rate, epochs), scored on held-out data
    held_out: Share = 0.1
    folds: int = 0  # of the out-of-fold teachers; 0 = none
    ablation_epochs: int = 0  # 0 = as ``base``
    row_seeds: Count = 1  # of each row of the ablations
    counts: tuple[int, ...] = ()  # numbers of teachers below ``teachers``
    misleading: dict[str, str] = field(default_factory=dict)  # hashes of recorded test sets


@settings
class EnsembleCache:
    """What is cached of several word-level readers.

    ``folds``: teacher k was not trained on the passages of fold k, and only it contributes
    confusing answers there (out-of-fold); 0 = all teachers were trained on everything.
    """

    mining: distractors.MiningConfig = distractors.MiningConfig()
    attention: bool = True
    folds: Annotated[int, Field(ge=0)] = 0


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
    cache: Run,
    start: Run | None = None,
    out_of_fold: Run | None = None,
) -> dict:
    """Train a word-level reader on gold answers and on the cached outputs of its teachers.

    ``start``: a student to continue from. ``out_of_fold``: the ``cache_teachers`` run with folds,
    for distractors of that name. The log has the parts of the loss. Raises QalibError if the
    teachers have not read the data.
    """

    def make_task(reader: nn.Module, rest: Dataset) -> TrainingTask:
        return student_task(reader, rest, config, cache, out_of_fold)

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
    cache: Run,
    out_of_fold: Run | None = None,
) -> TrainingTask:
    """The joint objective of a word-level student: windows with their teachers' targets."""
    targets = ensemble_targets(cache, config.teachers)
    return distilled_task(
        *word_task(reader, data, config.base),
        targets,
        config.loss,
        distractors=_distractors(targets, data, config, out_of_fold),
    )


def _distractors(
    targets: TeacherTargets, data: Dataset, config: StudentTraining, out_of_fold: Run | None
) -> distractors.DistractorSpans:
    """The distractor of every row of the targets; none where there is nothing to mine from."""
    if (out_of_fold is not None) != (config.distractors == "out-of-fold"):
        raise QalibError("the input out_of_fold and distractors = 'out-of-fold' need each other.")
    mined = targets.distractors()
    if out_of_fold is not None:
        folds = out_of_fold.config["folds"]
        theirs = ensemble_targets(out_of_fold, range(folds))
        rows = match_rows(theirs.spans, targets.spans)
        spans, confidence = np.full_like(mined.spans, -1), np.zeros_like(mined.confidence)
        allowed = _not_trained_on(theirs.spans, data, folds)
        spans[rows], confidence[rows] = theirs.distractors(allowed)
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
        decoding = AnswerConfig(max_answer_length=MAX_ANSWER)
        found = WordQuestionAnswerer(reader, decoding, config.text).predictions(held.examples)
        return {f"held_out_{name}": value for name, value in score(held, found).items()}

    task = make_task(reader, rest)
    summary = train(reader, task, config.train, work, config.seed, after_epoch=held_out_scores)
    counts = {"questions": len(rest), "windows": len(task.lengths)}
    counts["parameters"] = baseline.save_trained(reader, work)
    return {**counts, **summary, **held_out_scores()}


# --- the teachers' outputs --------------------------------------------------------------------


@stage("cache-teachers", publish=())
def cache_teachers(config: EnsembleCache, work: Path, data: Dataset, teachers: list[Run]) -> dict:
    """Cache what word-level readers predict for ``data``, in the folder "cache".

    A killed run resumes with the teacher that it was processing. The metrics describe the
    distractors, see :func:`qalib.distill.distractors.mining_report`.
    """
    first = load_word_reader(teachers[0])
    task, spans = word_task(first, data, word_training(teachers[0]))
    hops = [f"align {n}" for n in range(1, first.config.hops + 1)] if config.attention else []
    functions = [
        lambda run=run: teacher_outputs(load_word_reader(run), task, "fp32") for run in teachers
    ]
    miner, folder = distractors.DistractorMiner(data, config.mining), work / "cache"
    cache_teacher_outputs(folder, spans, functions, miner, hops)
    targets = TeacherTargets([folder / f"teacher-{n}" for n in range(len(teachers))])
    allowed = _not_trained_on(spans, data, config.folds) if config.folds else None
    report = distractors.mining_report(targets.distractors(allowed))
    return {"windows": len(spans), "teachers": len(teachers), **report}


@stage("cache-teacher", publish=())
def cache_teacher(config: TeacherCacheConfig, work: Path, data: Dataset, teacher: Run) -> dict:
    """Cache what an encoder predicts for ``data`` in "teacher-0"; metrics: ``mining_report``."""
    reader = baseline.load_encoder_reader(teacher)
    task, windows = encoder_task(reader, data.examples, baseline.encoder_training(teacher).windows)
    spans = token_spans(windows, data.examples, reader.before)
    hops = [f"align {n + 1}" for n in range(align_layers(reader))] if config.attention else []
    outputs = partial(teacher_outputs, reader, task, config.precision)
    cache_teacher_outputs(
        work, spans, [outputs], distractors.DistractorMiner(data, config.mining), hops
    )
    mined = TeacherTargets([work / "teacher-0"]).distractors()
    return {"windows": len(spans), **distractors.mining_report(mined)}


def fold_of(context: str, folds: int) -> int:
    """The fold of a passage, from its text alone."""
    digest = sha256(context.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[4:8]) % folds  # other bytes than those that ``hold_out`` reads


def _not_trained_on(spans: Sequence[TokenSpan], data: Dataset, folds: int) -> np.ndarray:
    """Which teacher was not trained on which row: teacher k on fold k.  -> (T, R) bool"""
    contexts = {example.id: example.context for example in data.examples}
    fold = np.array([fold_of(contexts[span.id], folds) for span in spans])
    return np.arange(folds)[:, None] == fold


def ensemble_targets(cache: Run, teachers: Sequence[int] | None = None) -> TeacherTargets:
    """The targets of some teachers of a ``cache_teachers`` run, by default of all.

    Raises QalibError if the run has fewer teachers, or if its files are not on this machine.
    """
    count = sum(name.startswith("teachers.") for name in cache.inputs)
    teachers = range(count) if teachers is None else sorted(teachers)
    if max(teachers, default=count) >= count:
        raise QalibError(f"{cache.short} has teachers 0 to {count - 1}, not {tuple(teachers)}.")
    folder = cache.file("cache/rows.json").parent
    return TeacherTargets([folder / f"teacher-{number}" for number in teachers])


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
