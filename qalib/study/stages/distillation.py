"""Stages of notebooks 08 and 09: train teachers, cache their outputs, train students.

Teacher n is the plain reader with seed n. Students have seeds that no teacher has; a plain reader
of the same seed has the same initial weights and order of questions as the student.

Notation: P passage tokens, N question tokens, T teachers, R rows.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import field, replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from safetensors.numpy import save_file
from torch import nn

from qalib.checkpoints import load_weights, put_weights, save_weights, trained_tensors
from qalib.data.batching import inference_batches
from qalib.data.schema import Dataset, hold_out
from qalib.data.windows import training_windows
from qalib.data.words import WordConfig, collate_words, word_windows
from qalib.decoding import decode_spans
from qalib.distill.alignment import TokenSpan, match_rows, span_positions, token_spans
from qalib.distill.distractors import (
    DistractorMiner,
    DistractorSpans,
    MiningConfig,
    mining_report,
    random_distractors,
)
from qalib.distill.encoders import align_layers, distilled_task, teacher_outputs
from qalib.distill.teacher_cache import TeacherCacheConfig, TeacherTargets, cache_teacher_outputs
from qalib.errors import QalibError
from qalib.inference import AnswerConfig, WordQuestionAnswerer, choose_device
from qalib.losses import DistillConfig, smoothed_span_loss, teacher_probabilities
from qalib.metrics import f1, score
from qalib.models.ensemble import Ensemble
from qalib.models.mnemonic_reader import MnemonicConfig, build_mnemonic_reader
from qalib.settings import settings
from qalib.study.run_cache import Run, stage
from qalib.study.stages.baseline import EncoderTraining, encoder_training, load_encoder_reader
from qalib.training import TrainConfig, TrainingTask, encoder_task, make_accelerator, train

Task = tuple[TrainingTask, list[TokenSpan]]  # and the passage tokens of its rows
MAX_ANSWER = 20  # word pieces of an answer, in mining and decoding
DECODING = AnswerConfig(max_answer_length=MAX_ANSWER, precision="fp32")
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

    choices: tuple[WordTraining, ...]  # the best on held-out passages is used; one needs no choice
    tests: tuple[tuple[str, str], ...]  # (title, section): clean, then with misleading sentences
    teachers: Count = 4
    seeds: Count = 1  # of the student
    row_seeds: Count = 1  # of each row of the ablations
    temperatures: tuple[float, ...] = ()  # of the soft targets, compared on held-out passages
    folds: int = 0  # of the out-of-fold teachers; 0 = none
    counts: tuple[int, ...] = ()  # numbers of teachers below ``teachers``
    story_teachers: Count = 2  # of the readers of stories, with free-form answers


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


def best_choice(runs: Sequence[Run]) -> WordTraining:
    """The settings of the ``train-words`` run with the best F1 on held-out passages."""
    best = max(runs, key=lambda run: run.metrics["held_out_f1"])
    return replace(best.settings(WordTraining), held_out=0.0)


def new_reader(config: WordTraining) -> nn.Module:
    """A word-level reader before training."""
    return build_mnemonic_reader(config.reader, seed=config.seed)


def word_task(reader: nn.Module, data: Dataset, config: WordTraining) -> Task:
    """Cross-entropy on windows with a gold answer."""
    windows = training_windows(word_windows(data.examples, reader.vocabulary, config.text))
    task = TrainingTask(
        lengths=[len(window) for window in windows],
        collate=lambda rows: collate_words([windows[row] for row in rows]),
        loss=lambda output, batch: smoothed_span_loss(
            output, batch.answer_spans, batch.answer_weights, config.smoothing
        ),
    )
    return task, token_spans(windows, data.examples)


def encoder_rows(reader: nn.Module, data: Dataset, config: EncoderTraining) -> Task:
    """As :func:`word_task`, for an encoder."""
    task, windows = encoder_task(reader, data.examples, config.windows)
    return task, token_spans(windows, data.examples, reader.before)


def student_task(
    reader: nn.Module,
    data: Dataset,
    config: StudentTraining,
    caches: Sequence[Run],
    out_of_fold: Sequence[Run] | None = None,
) -> TrainingTask:
    """The joint objective of a word-level student: windows with their teachers' targets."""
    targets = teacher_targets(caches)
    return distilled_task(
        *word_task(reader, data, config.base),
        targets,
        config.loss,
        distractors=_distractors(targets, data, config, out_of_fold),
    )


def _distractors(
    targets: TeacherTargets,
    data: Dataset,
    config: StudentTraining,
    out_of_fold: Sequence[Run] | None,
) -> DistractorSpans:
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
        return DistractorSpans(spans, confidence)
    if config.distractors == "random":
        known = {example.id for example in data.examples}  # the cache may cover more questions
        learnt = np.array([span.id in known for span in targets.spans])
        mined = mined._replace(confidence=np.where(learnt, mined.confidence, 0.0))
        miner = DistractorMiner(data.examples)
        return random_distractors(mined, targets.spans, miner, config.base.seed)
    return mined


def _train_words(
    config: WordTraining, work: Path, data: Dataset, make_task: Callable, start: Run | None = None
) -> dict:
    """Train a word-level reader; score it on the held-out passages after every epoch."""
    rest, held = hold_out(data, config.held_out) if config.held_out else (data, None)
    reader = new_reader(config)
    if start is not None:
        _put_weights(reader, start)

    def held_out_scores(epoch: int = 0) -> dict:
        if held is None:
            return {}
        found = WordQuestionAnswerer(reader, DECODING, config.text).predictions(held.examples)
        return {f"held_out_{name}": value for name, value in score(held, found).items()}

    task = make_task(reader, rest)
    summary = _train(reader, task, config.train, work, config.seed, after_epoch=held_out_scores)
    return {"questions": len(rest), **summary, **held_out_scores()}


def _train(
    reader: nn.Module,
    task: TrainingTask,
    config: TrainConfig,
    work: Path,
    seed: int,
    **options: Any,
) -> dict:
    """Train a reader and write what training changed to weights.safetensors.  -> metrics"""
    summary = train(reader, task, config, work, seed, **options)
    if make_accelerator().is_main_process:
        save_weights(trained_tensors(reader), work / "weights.safetensors")
    parameters = sum(p.numel() for p in reader.parameters() if p.requires_grad)
    return {"windows": len(task.lengths), "parameters": parameters, **summary}


# --- the teachers' outputs --------------------------------------------------------------------


@stage("cache-teacher", publish=())
def cache_teacher(config: TeacherCacheConfig, work: Path, data: Dataset, teacher: Run) -> dict:
    """Cache what a word-level reader or an encoder predicts for ``data``, in "teacher-0".

    The metrics describe its distractors, see :func:`qalib.distill.distractors.mining_report`.
    """
    reader = load_word_reader(teacher)
    if teacher.stage in ("train-encoder", "train-adapter"):
        task, spans = encoder_rows(reader, data, encoder_training(teacher))
        count = align_layers(reader) if config.attention else 0
    else:
        task, spans = word_task(reader, data, word_training(teacher))
        count = reader.config.hops if config.attention else 0
    miner, hops = DistractorMiner(data, config.mining), [f"align {n + 1}" for n in range(count)]
    outputs = lambda: teacher_outputs(reader, task, config.precision)  # noqa: E731
    cache_teacher_outputs(work, spans, [outputs], miner, hops)
    mined = TeacherTargets([work / "teacher-0"]).distractors()
    return {"windows": len(spans), **mining_report(mined)}


def teacher_targets(caches: Sequence[Run]) -> TeacherTargets:
    """The targets of ``cache_teacher`` runs. Raises QalibError if a cache is not here."""
    return TeacherTargets([run.file("teacher-0/start.npy").parent for run in caches])


def fold_of(context: str, folds: int) -> int:
    """The fold of a passage, from its text alone."""
    digest = sha256(context.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[4:8]) % folds  # other bytes than those that ``hold_out`` reads


@settings
class TargetSummary:
    """How many rows are summarized, and the temperature that softens."""

    rows: Count = 2000
    temperature: float = 2.0


@stage("summarize-targets", publish=())
def summarize_targets(config: TargetSummary, work: Path, data: Dataset, caches: list[Run]) -> dict:
    """What targets hold beyond the label: means over some training rows.

    ``gold`` (percent) and ``entropy`` (bits) for one teacher, all, and all softened; ``agree``, in
    how many percent of the rows all teachers have the same best start and end; and the ensemble's
    :func:`qalib.distill.distractors.mining_report`.
    """
    targets, sums = teacher_targets(caches), Counter()
    examples = {e.id: e for e in data}
    for row in range(0, len(targets), -(-len(targets) // config.rows)):
        span = targets.spans[row]._replace(context_start=0)
        answer = examples[span.id].answers[0]
        gold = span_positions(answer.start, answer.end, span)
        if gold is None:
            continue  # the window does not hold all of it
        sides = [x[:, :1] for x in targets.logits([row])[:2]]  # (T, 1, P)
        real = torch.ones(1, len(span.offsets), dtype=torch.bool)
        kinds = {"one": [([t], 1.0) for t in range(len(caches))]}
        kinds |= {"all": [(slice(None), 1.0)], "softened": [(slice(None), config.temperature)]}
        for name, members in kinds.items():
            for who, tau in members:
                q1, q2 = (teacher_probabilities(x[who], real, tau)[0] for x in sides)
                bits = torch.special.entr(torch.cat([q1, q2])).sum().item() / math.log(2)
                sums["gold", name] += 100 * (q1[gold[0]] * q2[gold[1]]).item() / len(members)
                sums["entropy", name] += bits / len(members)
        best = {tuple(x[t].argmax().item() for x in sides) for t in range(len(caches))}
        sums["agree", ""] += 100 * (len(best) == 1)
        sums["rows", ""] += 1
    count = sums["rows", ""]
    means = {what: {n: sums[what, n] / count for n in kinds} for what in ("gold", "entropy")}
    means |= mining_report(targets.distractors())
    return {"rows": count, "agree": sums["agree", ""] / count, **means}


@stage("confusing-answers", publish=("confusing.safetensors",))
@torch.inference_mode()
def confusing_answers(
    config: MiningConfig, work: Path, test: Dataset, teachers: list[Run], readers: list[Run]
) -> dict:
    """The ensemble's confusing answer to every test question, and what readers make of it.

    For questions whose passage is one window, confusing.safetensors has ``row``, the question's
    place in ``test`` (Q,); ``teachers``, the ensemble's probability of its most probable wrong
    span among the k best (Q,), 0 where there is none; ``readers``, their probabilities of this
    span, and ``f1`` of their answers, each (readers, Q).
    """
    device = choose_device()
    ensemble = Ensemble([load_word_reader(run) for run in teachers]).to(device)
    others = [load_word_reader(run).to(device) for run in readers]
    windows = word_windows(test.examples, ensemble.vocabulary, word_training(teachers[0]).text)
    counts = Counter(window.example for window in windows)
    windows = [window for window in windows if counts[window.example] == 1]
    spans, miner = token_spans(windows, test.examples), DistractorMiner(test, config)
    confidence = np.zeros(len(windows), dtype=np.float32)
    probability, right = np.zeros((2, len(others), len(windows)), dtype=np.float32)
    for rows in inference_batches([len(window) for window in windows], 8192):
        batch = collate_words([windows[row] for row in rows]).to(device)
        mined = miner.mine(*ensemble(batch)[:3], [spans[row] for row in rows])
        confidence[rows] = mined.confidence
        for number, reader in enumerate(others):
            output = reader(batch)
            p1, p2 = (x.masked_fill(~batch.mask, -torch.inf).softmax(1).cpu() for x in output[:2])
            best = decode_spans(*output[:3], k=1, max_length=config.max_length)
            for line, row in enumerate(rows):
                example = test.examples[windows[row].example]
                a, b = windows[row].characters(int(best.starts[line, 0]), int(best.ends[line, 0]))
                right[number, row] = 100 * f1(example.context[a:b], example.answer_texts)
                wrong = span_positions(*mined.spans[line].tolist(), spans[row])
                if wrong is not None:
                    probability[number, row] = p1[line, wrong[0]] * p2[line, wrong[1]]
    row = np.array([window.example for window in windows])
    arrays = {"row": row, "teachers": confidence, "readers": probability, "f1": right}
    save_file(arrays, work / "confusing.safetensors")
    return {"questions": len(windows), "confusing": int((confidence > 0).sum())}


@stage("free-form-answers", publish=("predictions.json",))
def free_form_answers(
    config: AnswerConfig, work: Path, test: Dataset, weights: Run | Sequence[Run]
) -> dict:
    """The answers of a reader or an ensemble, for metrics of free text: predictions.json."""
    predictions = word_answerer(weights, config).predictions(test.examples)
    text = json.dumps(predictions, ensure_ascii=False)
    (work / "predictions.json").write_text(text, encoding="utf-8")
    return {"questions": len(test), **score(test, predictions)}


# --- loading ----------------------------------------------------------------------------------


def word_training(run: Run) -> WordTraining:
    """How the word-level reader of a run was trained."""
    if run.stage == "train-student":
        return run.settings(StudentTraining).base
    return run.settings(WordTraining)


def load_word_reader(run: Run) -> nn.Module:
    """The reader of a run of this module, or of an encoder teacher, in evaluation mode."""
    if run.stage in ("train-encoder", "train-adapter"):
        return load_encoder_reader(run).eval()
    reader = new_reader(word_training(run))
    _put_weights(reader, run)
    return reader.eval()


def _put_weights(reader: nn.Module, run: Run) -> None:
    path = run.file("weights.safetensors")
    put_weights(reader, load_weights(path), str(path))


def word_answerer(weights: Run | Sequence[Run], settings: Any):
    """A run of this module, or an ensemble of word-level readers, ready to answer questions."""
    runs = [weights] if isinstance(weights, Run) else list(weights)
    readers = [load_word_reader(run).to(choose_device()) for run in runs]
    reader = readers[0] if len(readers) == 1 else Ensemble(readers)
    return WordQuestionAnswerer(reader, settings, word_training(runs[0]).text)
