"""The same distillation for encoders: several of them into one with fewer layers.

Attention is not taught: encoders keep no map of question and passage apart. The student stands
beside the same reader trained without teachers.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

from qalib.data.squad import Dataset
from qalib.distill.distractors import MiningConfig
from qalib.distill.losses import DistillConfig
from qalib.errors import QalibError
from qalib.study.distill_settings import LONGEST
from qalib.study.distill_teaching import Asking, Kind, ask_teachers, lessons_of
from qalib.study.entries import Run
from qalib.study.marks import LEAN
from qalib.study.parallel import get_or_run
from qalib.study.session import Study
from qalib.study.skim_study import asked as skim_asked
from qalib.study.stages import EncoderTraining, evaluate, note_data, train_encoder, trained_reader
from qalib.train import Task


@dataclass(frozen=True)
class OtherStudents:
    """Who teaches and who learns. ``keep``: the teacher's layers that the shallow one starts with,
    from 1. ``epochs``: of the shallow one; 0 = as many as its teachers had. ``loss``: without
    attention. ``variant``: of the byte reader."""

    teachers: int = 2
    keep: tuple[int, ...] = (2, 4, 6)
    epochs: int = 0
    loss: DistillConfig = field(default_factory=lambda: DistillConfig(delta=0.0))
    variant: str = "plain"

    def __post_init__(self):
        if self.teachers < 1 or not self.keep or min(self.keep) < 1:
            raise QalibError("distill_others: teachers and layers to keep count from 1.")
        if self.epochs < 0:
            raise QalibError(f"distill_others: epochs must be at least 0, not {self.epochs}.")
        if self.loss.delta:
            raise QalibError("distill_others: encoders and bytes learn no attention; delta is 0.")


@dataclass(frozen=True)
class ShallowTraining:
    """An encoder of some of the layers, with teachers or (loss None) without."""

    base: EncoderTraining = field(default_factory=EncoderTraining)
    keep: tuple[int, ...] = ()
    loss: DistillConfig | None = None
    teachers: tuple[int, ...] = ()


def asked(study: Study) -> OtherStudents:
    """The profile's section."""
    return study.section("distill_others", OtherStudents)


def learnt_from(study: Study) -> Dataset:
    """What these teachers and students learn from."""
    return study.data("train", "distill_others_data")


def encoder_teachers(study: Study) -> list[Run]:
    """Encoders of several seeds, as notebooks 05 and 07 train them without predictors."""
    base, data = skim_asked(study).base, learnt_from(study)
    configs = [replace(base, seed=study.seed + n) for n in range(asked(study).teachers)]
    return [study.keep(train_encoder(study.store, data, c, force=study.force)) for c in configs]


def encoders(config: EncoderTraining) -> Kind:
    """How encoders are asked."""
    from qalib.data.batches import collate
    from qalib.distill.characters import window_places

    return Kind(
        load=trained_reader,
        windows=lambda reader, data, run: _windows(reader, data, config),
        places=window_places,
        collate=lambda reader, windows: collate(windows, reader.tokenizer.pad_token_id or 0),
        tokenizer=lambda reader: reader.tokenizer,
    )


def encoder_knowledge(study: Study) -> Run:
    """What the encoders know of their data."""
    config = Asking(MiningConfig(max_length=LONGEST), attention=False)
    told = (learnt_from(study), encoder_teachers(study), config, study.force)
    run = ask_teachers(study.store, *told, encoders(skim_asked(study).base))
    return study.keep(run, LEAN)


def _windows(reader, data: Dataset, config: EncoderTraining) -> list:
    from qalib.data.features import make_windows, training_windows

    return training_windows(make_windows(data.examples, reader.tokenizer, config.windows))


# --- encoders into a shallow one -----------------------------------------------------------------


def shallow_reader(config: ShallowTraining):
    """The pretrained encoder with some of its layers and a fresh head.

    Raises QalibError for a layer that it does not have.
    """
    from torch import nn

    from qalib.readers.encoder_reader import build_encoder

    reader = build_encoder(config.base.encoder, config.base.seed)
    body = reader.encoder.base_model.encoder
    if max(config.keep) > len(body.layer):
        raise QalibError(
            f"keep names layer {max(config.keep)}, the encoder has {len(body.layer)} layers."
        )
    body.layer = nn.ModuleList(body.layer[number - 1] for number in config.keep)
    reader.encoder.config.num_hidden_layers = len(config.keep)
    return reader


def shallow(study: Study, taught: bool) -> Run:
    """The shallow encoder on their data, with teachers or without."""
    plan, data = asked(study), learnt_from(study)
    base = replace(skim_asked(study).base, seed=study.seed)
    if plan.epochs:
        base = replace(base, train=replace(base.train, epochs=plan.epochs))
    config = ShallowTraining(base, plan.keep)
    if taught:
        config = replace(config, loss=plan.loss, teachers=tuple(range(plan.teachers)))
    knowledge = encoder_knowledge(study) if taught else None

    def compute(work: Path) -> dict:
        reader = shallow_reader(config)
        return learn_other(work, reader, shallow_task(reader, data, config, knowledge), data, base)

    inputs = {"data": data.content_sha256} | ({"knowledge": knowledge.key} if knowledge else {})
    return study.keep(
        get_or_run(
            study.store, "student-encoder", config, compute, inputs=inputs, force=study.force
        )
    )


def shallow_task(reader, data: Dataset, config: ShallowTraining, knowledge: Run | None) -> Task:
    """What a shallow encoder learns: gold answers, and what its teachers say if it has any."""
    from qalib.data.batches import collate
    from qalib.distill.characters import window_places
    from qalib.distill.objective import Distillation
    from qalib.losses import span_loss

    windows, pad = _windows(reader, data, config.base), reader.tokenizer.pad_token_id or 0
    lengths = [len(window) for window in windows]

    def collate_rows(rows):
        return collate([windows[row] for row in rows], pad)

    if knowledge is None:
        return Task(lengths, collate_rows, lambda o, b: span_loss(o, b.spans, b.weights))
    lessons, places = lessons_of(knowledge, config.teachers), window_places(windows, data.examples)
    distillation = Distillation(collate_rows, places, lessons, config.loss)
    return Task(lengths, distillation.collate, distillation, told=distillation.told)


def learn_other(work: Path, reader, task: Task, data: Dataset, config, optimizer=None) -> dict:
    """Train a reader in the folder of its run and keep what training moved.  -> metrics"""
    from accelerate import Accelerator

    from qalib.checkpoints import save_weights, trained_tensors
    from qalib.train import train

    note_data(work, data)
    summary = train(reader, task, config.train, work, config.seed, optimizer=optimizer)
    if Accelerator(mixed_precision="no").is_main_process:
        save_weights(trained_tensors(reader), work / "weights.safetensors")
    return {"questions": len(data), **summary}


def evaluate_shallow(study: Study, run: Run) -> Run:
    """A shallow encoder on the test data."""
    from qalib.answer import AnswerConfig, Answerer
    from qalib.checkpoints import load_weights, put_weights
    from qalib.study.profiles import build

    config = build(run.config, ShallowTraining, f"{run.short}: config")
    settings = AnswerConfig(windows=config.base.windows)

    def answer(test: Dataset) -> dict[str, str]:
        reader, path = shallow_reader(config), run.file("weights.safetensors")
        put_weights(reader, load_weights(path), str(path))
        return Answerer(reader, settings).predictions(test.examples)

    return evaluate(study, "shallow encoder", {"weights": run.key}, answer, settings, lean=True)
