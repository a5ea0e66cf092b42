"""Stages of notebooks 08 and 09: train teachers, cache their outputs, train students.

Teacher n is the plain reader with seed n. A student has the seed, and so the initial weights and
the order of the questions, of a plain reader: the two differ only in what they are taught.

Notation: P passage tokens, N question tokens, T teachers, R rows.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from qalib.data.schema import Dataset, Example, hold_out
from qalib.data.words import WordConfig
from qalib.distill.teacher_cache import TeacherCacheConfig
from qalib.errors import QalibError
from qalib.losses import DistillConfig
from qalib.models.mnemonic_reader import MnemonicConfig
from qalib.settings import settings
from qalib.study.run_cache import Run, stage
from qalib.study.stages.baseline import EncoderTraining, load_encoder_reader, recorded_scores
from qalib.study.stages.bytes import ByteTraining, byte_optimizer, byte_task
from qalib.training import TrainConfig

if TYPE_CHECKING:
    from torch import nn

    from qalib.distill.alignment import TokenSpan
    from qalib.distill.distractors import DistractorSpans
    from qalib.distill.teacher_cache import Outputs, TeacherTargets
    from qalib.training import TrainingTask

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
class ShallowTraining:
    """An encoder that starts with some layers of the pretrained one, counted from 1.

    It has ``teachers`` and a ``loss``, or neither.
    """

    base: EncoderTraining = field(default_factory=EncoderTraining)
    layers: tuple[int, ...] = (2, 4, 6)
    loss: DistillConfig | None = None
    teachers: tuple[int, ...] = ()


@settings
class ByteStudent:
    """A byte-level reader with teachers; ``loss`` is added to its Gaussian loss."""

    base: ByteTraining
    loss: DistillConfig
    teachers: tuple[int, ...]


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
class OtherStudents:
    """Section [distill_others]: encoders that teach a shallow encoder and a byte-level reader."""

    teachers: Count = 2
    layers: tuple[int, ...] = (2, 4, 6)  # of the pretrained encoder, where the shallow one starts
    epochs: int = 0  # of the shallow one; 0 = as its teachers


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

    def task(reader: "nn.Module", rest: Dataset) -> "TrainingTask":
        return student_task(reader, rest, config, cache, out_of_fold)

    return _train_words(config.base, work, data, task, start)


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
    return _distilled(
        *word_task(reader, data, config.base),
        targets,
        config.loss,
        distractors=_distractors(targets, data, config, out_of_fold),
        tokenizer=tokenizer_hash(reader.vocabulary.tokenizer),
    )


def _distilled(task: "TrainingTask", spans: list, *targets_and_loss, **options) -> "TrainingTask":
    """A task with the distillation objective in place of its own loss."""
    from qalib.distill.objective import Distillation

    joint = Distillation(task.collate, spans, *targets_and_loss, **options)
    return replace(task, collate=joint.collate, loss=joint.loss, log_metrics=joint.log_metrics)


def _distractors(
    targets: "TeacherTargets", data: Dataset, config: StudentTraining, out_of_fold: Run | None
) -> "DistractorSpans":
    """The distractor of every row of the targets; none where there is nothing to mine from."""
    from qalib.distill.alignment import match_rows
    from qalib.distill.distractors import DistractorMiner, DistractorSpans, random_distractors

    if (out_of_fold is not None) != (config.distractors == "out-of-fold"):
        raise QalibError("the input out_of_fold and distractors = 'out-of-fold' need each other.")
    mined = targets.distractors()
    if out_of_fold is not None:
        folds = out_of_fold.config["folds"]
        theirs = teacher_targets(out_of_fold, range(folds))
        rows = match_rows(theirs.spans, targets.spans)
        spans, confidence = np.full_like(mined.spans, -1), np.zeros_like(mined.confidence)
        allowed = _not_trained_on(theirs.spans, data, folds)
        spans[rows], confidence[rows] = theirs.distractors(allowed)
        return DistractorSpans(spans, confidence)
    if config.distractors == "random":
        known = {example.id for example in data.examples}  # the cache may cover more questions
        learnt = np.array([span.id in known for span in targets.spans])
        mined = mined._replace(confidence=np.where(learnt, mined.confidence, 0.0))
        miner = DistractorMiner(data.examples)
        return random_distractors(mined, targets.spans, miner, config.base.seed)
    return mined


def _train_words(
    config: WordTraining, work: Path, data: Dataset, task: Callable, start: Run | None = None
) -> dict:
    """Train a word-level reader; score it on the held-out passages after every epoch."""
    from qalib.metrics import score

    rest, held = hold_out(data, config.held_out) if config.held_out else (data, None)
    reader = new_reader(config)
    if start is not None:
        _put_weights(reader, start)

    def held_out_scores(epoch: int = 0) -> dict:
        if held is None:
            return {}
        found = _answerer(reader, config).predictions(held.examples)
        return {f"held_out_{name}": value for name, value in score(held, found).items()}

    task = task(reader, rest)
    summary = _train(reader, task, config.train, work, config.seed, after_epoch=held_out_scores)
    return {"questions": len(rest), **summary, **held_out_scores()}


def _train(
    reader: "nn.Module",
    task: "TrainingTask",
    config: TrainConfig,
    work: Path,
    seed: int,
    **options: Any,
) -> dict:
    """Train a reader and write what training changed to weights.safetensors.  -> metrics"""
    from qalib.checkpoints import save_weights, trained_tensors
    from qalib.training import make_accelerator, train

    summary = train(reader, task, config, work, seed, **options)
    if make_accelerator().is_main_process:
        save_weights(trained_tensors(reader), work / "weights.safetensors")
    parameters = sum(p.numel() for p in reader.parameters() if p.requires_grad)
    return {"windows": len(task.lengths), "parameters": parameters, **summary}


# --- the teachers' outputs --------------------------------------------------------------------


@stage("cache-teachers", publish=())
def cache_teachers(
    config: TeacherCacheConfig, work: Path, data: Dataset, teachers: list[Run]
) -> dict:
    """Cache what word-level readers or encoders predict for ``data``, in the folder "cache".

    A killed run resumes with the teacher that it was processing. The metrics describe the
    distractors, see :func:`qalib.distill.distractors.mining_report`.
    """
    from qalib.data.batching import collate
    from qalib.data.windows import make_windows, training_windows
    from qalib.data.words import collate_words
    from qalib.distill.alignment import token_spans, tokenizer_hash
    from qalib.distill.distractors import DistractorMiner, mining_report
    from qalib.distill.teacher_cache import TeacherTargets, cache_teacher_outputs

    first = load_word_reader(teachers[0])
    if teachers[0].stage == "train-encoder":
        tokenizer, how = first.tokenizer, teachers[0].settings(EncoderTraining).windows
        windows = training_windows(make_windows(data.examples, tokenizer, how))
        make_batch = lambda chosen: collate(chosen, tokenizer.pad_token_id or 0)  # noqa: E731
    else:
        tokenizer, make_batch = first.vocabulary.tokenizer, collate_words
        windows = _word_windows(first, data, word_training(teachers[0]))
    hops = [f"align {n}" for n in range(1, first.config.hops + 1)] if config.attention else []
    spans, miner = token_spans(windows, data.examples), DistractorMiner(data, config.mining)
    functions = [lambda run=run: _outputs(run, windows, make_batch) for run in teachers]
    folder = work / "cache"
    cache_teacher_outputs(folder, spans, functions, miner, hops, tokenizer_hash(tokenizer))
    targets = TeacherTargets(folder, range(len(teachers)))
    allowed = _not_trained_on(spans, data, config.folds) if config.folds else None
    report = mining_report(targets.distractors(allowed), spans, miner)
    return {"windows": len(windows), "teachers": len(teachers), **report}


def _outputs(run: Run, windows: list, make_batch: Callable, budget: int = 8192) -> "Outputs":
    """The outputs of a run's reader, in batches of similar length."""
    import torch

    from qalib.data.batching import inference_batches
    from qalib.training import choose_precision

    device = "cuda" if torch.cuda.is_available() else "cpu"
    reader = load_word_reader(run).to(device)
    bf16 = choose_precision("auto", device)[0] == "bf16"
    for rows in inference_batches([len(window) for window in windows], budget):
        batch = make_batch([windows[row] for row in rows]).to(torch.device(device))
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


def teacher_targets(cache: Run, teachers: Sequence[int] | None = None) -> "TeacherTargets":
    """The targets of some teachers of a ``cache_teachers`` run, by default of all.

    Raises QalibError if the run has fewer teachers, or if its files are not on this machine.
    """
    from qalib.distill.teacher_cache import TeacherTargets

    count = sum(name.startswith("teachers.") for name in cache.inputs)
    teachers = range(count) if teachers is None else teachers
    if max(teachers, default=count) >= count:
        raise QalibError(f"{cache.short} has teachers 0 to {count - 1}, not {tuple(teachers)}.")
    return TeacherTargets(cache.file("cache/rows.json").parent, teachers)


@settings
class TargetSummary:
    """How many rows are averaged over, and the temperature of the softened ensemble."""

    rows: Count = 2000
    temperature: float = 2.0


@stage("summarize-targets", publish=())
def summarize_targets(config: TargetSummary, work: Path, data: Dataset, cache: Run) -> dict:
    """What the ensemble of all teachers of a cache predicts for its training data.

    Metrics: ``rows``; by "one" (mean of single teachers), "all" and "softened" (at the temperature)
    ``gold``, the probability of the first gold answer in percent, and ``entropy`` of start and end
    in bits; ``agree``, percent of rows where all teachers have the same best start and end;
    ``mistakes``, the most confident ones.
    """
    from qalib.losses import entropy, teacher_probabilities

    targets = teacher_targets(cache)
    examples = {example.id: example for example in data.examples}
    rows = _gold_rows(targets, examples, config.rows)
    sums: Counter[tuple[str, str]] = Counter()
    for row, first, last in rows:
        start, end, mask = targets.logits([row])
        alone = [(start[t : t + 1], end[t : t + 1], 1.0) for t in range(len(start))]
        ensembles = {"one": alone, "all": [(start, end, 1.0)]}
        ensembles["softened"] = [(start, end, config.temperature)]
        for name, members in ensembles.items():
            for *sides, tau in members:
                q1, q2 = (teacher_probabilities(x, mask, tau).double() for x in sides)
                sums["gold", name] += 100 * float(q1[0, first] * q2[0, last]) / len(members)
                sums["entropy", name] += float(entropy(q1, q2)) / np.log(2) / len(members)
        best = {(int(s.argmax()), int(e.argmax())) for s, e, _ in alone}
        sums["agree", ""] += 100 * (len(best) == 1)
    means = {key: value / len(rows) for key, value in sums.items()}
    return {
        "rows": len(rows),
        "agree": means["agree", ""],
        "gold": {name: means["gold", name] for name in ensembles},
        "entropy": {name: means["entropy", name] for name in ensembles},
        "mistakes": _mistakes(targets, examples),
    }


def _gold_rows(targets: "TeacherTargets", examples: dict, count: int) -> list[tuple]:
    """At most ``count`` evenly spaced rows with the tokens of their first gold answer."""
    from qalib.distill.alignment import span_positions

    found = []
    for row in range(0, len(targets), -(-len(targets) // count)):
        span = targets.spans[row]
        answer = examples[span.id].answers[0]
        tokens = span_positions(answer.start, answer.end, span._replace(context_start=0))
        if tokens:
            found.append((row, *tokens))
    return found


def _mistakes(targets: "TeacherTargets", examples: dict, count: int = 5) -> list[dict]:
    """The most confident distractors, each question once."""
    spans, confidence = targets.distractors()
    found: dict[str, dict] = {}
    for row in np.argsort(-confidence, kind="stable").tolist():
        example, (a, b) = examples[targets.spans[row].id], spans[row].tolist()
        if confidence[row] > 0 and len(found) < count:
            texts = {"gold": example.answers[0].text, "predicted": example.context[a:b]}
            mistake = {**texts, "probability": float(confidence[row])}
            found.setdefault(example.id, {"question": example.question, **mistake})
    return list(found.values())


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

    reader, base = _shallow_reader(config), config.base
    tokenizer = reader.tokenizer
    windows = training_windows(make_windows(data.examples, tokenizer, base.windows))
    task = TrainingTask(
        lengths=[len(window) for window in windows],
        collate=lambda rows: collate([windows[r] for r in rows], tokenizer.pad_token_id or 0),
        loss=lambda output, batch: span_loss(output, batch.answer_spans, batch.answer_weights),
    )
    if cache is not None:
        targets = teacher_targets(cache, config.teachers)
        task = _distilled(task, token_spans(windows, data.examples), targets, config.loss)
    return {"questions": len(data), **_train(reader, task, base.train, work, base.seed)}


def _shallow_reader(config: ShallowTraining) -> "nn.Module":
    """The pretrained encoder with some of its layers and a new span head."""
    from torch import nn

    from qalib.models.encoder import build_encoder

    reader = build_encoder(config.base.encoder, config.base.seed)
    body = reader.encoder.base_model.encoder
    if max(config.layers) > len(body.layer):
        raise QalibError(f"there is no layer {max(config.layers)} of {len(body.layer)} to keep.")
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

    base = config.base
    reader, task = build_byte_reader(base.reader, base.seed), byte_task(data, base)
    rows = QuestionRows(passage_features(data.examples, base.text))  # those of the task
    spans, targets = byte_spans(rows, data.examples), teacher_targets(cache, config.teachers)
    joint = _distilled(task, spans, targets, config.loss)
    both = replace(joint, loss=lambda out, batch: task.loss(out, batch) + joint.loss(out, batch))
    optimizer = byte_optimizer(reader, base)
    summary = _train(reader, both, base.train, work, base.seed, optimizer=optimizer)
    return {"questions": len(data), **summary}


# --- loading ----------------------------------------------------------------------------------


def word_training(run: Run) -> WordTraining:
    """How the word-level reader of a run was trained."""
    if run.stage == "train-student":
        return run.settings(StudentTraining).base
    return run.settings(WordTraining)


def load_word_reader(run: Run) -> "nn.Module":
    """The reader of a run of this module, or of an encoder teacher, in evaluation mode."""
    from qalib.models.byte_reader import build_byte_reader

    if run.stage == "train-encoder":
        return load_encoder_reader(run).eval()
    if run.stage == "student-encoder":
        reader = _shallow_reader(run.settings(ShallowTraining))
    elif run.stage == "student-bytes":
        reader = build_byte_reader(run.settings(ByteStudent).base.reader)
    else:
        reader = new_reader(word_training(run))
    _put_weights(reader, run)
    return reader.eval()


def _put_weights(reader: "nn.Module", run: Run) -> None:
    from qalib.checkpoints import load_weights, put_weights

    path = run.file("weights.safetensors")
    put_weights(reader, load_weights(path), str(path))


def word_answerer(weights: Run | Sequence[Run], settings: Any):
    """A run of this module, or an ensemble of word-level readers, ready to answer questions."""
    from qalib.inference import ByteQuestionAnswerer, QuestionAnswerer
    from qalib.models.ensemble import Ensemble

    runs = [weights] if isinstance(weights, Run) else list(weights)
    readers = [load_word_reader(run) for run in runs]
    if runs[0].stage == "student-bytes":
        return ByteQuestionAnswerer(readers[0], settings)
    if runs[0].stage == "student-encoder":
        return QuestionAnswerer(readers[0], settings)
    reader = readers[0] if len(readers) == 1 else Ensemble(readers)
    return _answerer(reader, word_training(runs[0]), settings)


def _answerer(reader: "nn.Module", config: WordTraining, settings: Any = None):
    from qalib.inference import AnswerConfig, WordQuestionAnswerer

    settings = settings or AnswerConfig(max_answer_length=MAX_ANSWER)
    return WordQuestionAnswerer(reader, settings, config.text)


# --- one question in detail -------------------------------------------------------------------


@settings
class AlignmentExample:
    """Only questions whose passage has at most so many tokens fit the figure."""

    max_tokens: Count = 160


@stage("alignment-example", publish=("example.json", "arrays.safetensors"))
def alignment_example(
    config: AlignmentExample,
    work: Path,
    test: Dataset,
    readers: list[Run],
    evaluations: list[Run],
) -> dict:
    """A question of ``test`` that the first of two readers gets wrong and the second right.

    Of these (the first 400 that fit) it is the one that the first reader is most confident about;
    if there are none, any that it gets wrong. Metrics: how many are ``fixed``, and how many
    ``broken``, the other way round. Writes example.json and arrays.safetensors: attention, each
    passage token's mean attention to the question (readers, P, N); start and end (readers, P).
    """
    from safetensors.numpy import save_file

    from qalib.distill.alignment import span_positions, token_spans

    (em1, f1), (em2, f2) = (recorded_scores(run).values() for run in evaluations)
    fixed, broken, wrong = (f1 == 0) & (em2 == 100), (f2 == 0) & (em1 == 100), f1 == 0
    chosen = next((c for c in (fixed, wrong) if c.any()), f1 >= 0)
    answerers = [word_answerer(run, None) for run in readers]
    candidates = [test.examples[i] for i in np.flatnonzero(chosen)[:400]]
    example = _most_confident(answerers[0], candidates, config.max_tokens)
    window = answerers[0].make_windows([example])[0]
    found = [_alignment(answerer, window, example) for answerer in answerers]
    arrays = {name: np.stack([one[name] for one in found]) for name in found[0]}
    save_file(arrays, work / "arrays.safetensors")
    answers = [answerer.answer_many([example])[0][0] for answerer in answerers]
    (span,) = token_spans([window], [example])
    gold = example.answers[0]
    tokens = [span_positions(a.start, a.end, span) for a in (gold, answers[0])]
    content = {
        "question": example.question,
        "gold": gold.text,
        "predictions": [answer.text for answer in answers],
        "question_tokens": [example.question[a:b] for a, b in window.question.offsets.tolist()],
        "passage_tokens": [example.context[a:b] for a, b in window.offsets.tolist()],
        "gold_tokens": tokens[0],
        "predicted_tokens": tokens[1],
    }
    text = json.dumps(content, ensure_ascii=False)
    (work / "example.json").write_text(text, encoding="utf-8")
    return {"fixed": int(fixed.sum()), "broken": int(broken.sum())}


def _most_confident(answerer: Any, examples: Sequence[Example], max_tokens: int) -> Example:
    sizes = {e.id: sum(len(w) for w in answerer.make_windows([e])) for e in examples}
    fitting = [e for e in examples if sizes[e.id] <= max_tokens]
    fitting = fitting or [min(examples, key=lambda e: sizes[e.id])]
    pairs = zip(fitting, answerer.answer_many(fitting), strict=True)
    return max(pairs, key=lambda pair: pair[1][0].probability)[0]


def _alignment(answerer: Any, window: Any, example: Example) -> dict[str, np.ndarray]:
    """attention (P, N), start (P,) and end (P,) of one reader, float32."""
    import torch

    with torch.inference_mode():
        output = answerer.reader(answerer.collate([window], [example]).to(answerer.device))
    hops = [maps[0] for name, maps in output.attentions.items() if name.startswith("align ")]
    words, question = len(window), len(window.question)  # batches are padded
    start, end = (logits[0, :words].float().softmax(dim=0) for logits in output[:2])
    attention = torch.stack(hops).float().mean(dim=0)[:words, :question]
    arrays = {"attention": attention, "start": start, "end": end}
    return {name: values.cpu().numpy() for name, values in arrays.items()}
