"""The same distillation across tokenizers: encoders, which read word pieces, teach a byte reader.

What they say of word pieces reaches the bytes through the characters of the passage. Attention is
not taught, the tokens differ. The student stands beside the same reader trained without teachers.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

from qalib.data.squad import Dataset
from qalib.distill.losses import DistillConfig
from qalib.study.byte_stages import ByteStudy, ByteTraining, byte_task, variant
from qalib.study.distill_others import (
    asked,
    encoder_knowledge,
    encoder_teachers,
    evaluate_shallow,
    learn_other,
    learnt_from,
    shallow,
)
from qalib.study.distill_teaching import lessons_of
from qalib.study.entries import Run
from qalib.study.parallel import get_or_run
from qalib.study.session import Study
from qalib.study.stages import evaluate
from qalib.train import Task

SHALLOW, BYTES = "shallow encoder", "bytes"
PLAIN, TAUGHT = "plain", "taught"


@dataclass(frozen=True)
class ByteStudent:
    """A byte-level reader with teachers; its Gaussian loss takes the place of cross-entropy."""

    base: ByteTraining = field(default_factory=ByteTraining)
    loss: DistillConfig = field(default_factory=lambda: DistillConfig(ce=0.0, delta=0.0))
    teachers: tuple[int, ...] = ()


def byte_base(study: Study) -> ByteTraining:
    """How the byte reader is trained, with teachers and without."""
    plan = study.section("bytes", ByteStudy)
    name = asked(study).variant
    config = variant(plan.base, name)
    rate = plan.rates.get(name, config.train.learning_rate)
    return replace(config, train=replace(config.train, learning_rate=rate), seed=study.seed)


def byte_reader(study: Study, taught: bool) -> Run:
    """The byte-level reader on the same data, with encoders as teachers or without."""
    from qalib.study.byte_stages import train_bytes

    data, base, plan = learnt_from(study), byte_base(study), asked(study)
    if not taught:
        return study.keep(train_bytes(study.store, data, base, force=study.force))
    loss, knowledge = replace(plan.loss, ce=0.0), encoder_knowledge(study)
    config = ByteStudent(base, loss, tuple(range(plan.teachers)))

    def compute(work: Path) -> dict:
        from qalib.readers.byte_reader import build_byte_reader
        from qalib.study.byte_stages import make_optimizer

        reader = build_byte_reader(base.reader, base.seed)
        task = taught_bytes(data, config, knowledge)
        return learn_other(work, reader, task, data, base, make_optimizer(reader, base))

    inputs = {"data": data.content_sha256, "knowledge": knowledge.key}
    return study.keep(
        get_or_run(study.store, "student-bytes", config, compute, inputs=inputs, force=study.force)
    )


def taught_bytes(data: Dataset, config: ByteStudent, knowledge: Run) -> Task:
    """The Gaussian loss of the byte reader, and what encoders say carried to its characters."""
    from qalib.data.byte_batches import QuestionRows
    from qalib.data.byte_features import passage_features
    from qalib.distill.characters import byte_places
    from qalib.distill.objective import Distillation

    task = byte_task(data, config.base)
    rows = QuestionRows(passage_features(data.examples, config.base.text))  # as those of the task
    lessons = lessons_of(knowledge, config.teachers)
    places = byte_places(rows, data.examples)
    distillation = Distillation(task.collate, places, lessons, config.loss)

    def loss(output, batch):
        return task.loss(output, batch) + distillation(output, batch)

    taught = replace(task, collate=distillation.collate, loss=loss)
    return replace(taught, told=distillation.told)


def evaluate_bytes(study: Study, run: Run) -> Run:
    """A byte-level reader on the test data."""
    from qalib.byte_answer import ByteAnswerConfig, ByteAnswerer
    from qalib.checkpoints import load_weights, put_weights
    from qalib.readers.byte_reader import build_byte_reader

    base = byte_base(study)
    settings = ByteAnswerConfig(text=base.text)

    def answer(test: Dataset) -> dict[str, str]:
        reader, path = build_byte_reader(base.reader), run.file("weights.safetensors")
        put_weights(reader, load_weights(path), str(path))
        return ByteAnswerer(reader, settings).predictions(test.examples)

    return evaluate(study, "bytes, first answer", {"weights": run.key}, answer, settings, lean=True)


def other_scores(study: Study) -> dict[str, dict[str, list[Run]]]:
    """Plain and taught, on the test data, by student: one run each."""
    return {
        SHALLOW: {
            n: [evaluate_shallow(study, shallow(study, n == TAUGHT))] for n in (PLAIN, TAUGHT)
        },
        BYTES: {
            n: [evaluate_bytes(study, byte_reader(study, n == TAUGHT))] for n in (PLAIN, TAUGHT)
        },
    }


def trained(study: Study) -> list[Run]:
    """All that notebook 08 trains here: encoders as teachers, what they know, four readers."""
    kinds = (True, False)
    readers = [f(study, taught) for f in (shallow, byte_reader) for taught in kinds]
    return [*encoder_teachers(study), encoder_knowledge(study), *readers]
