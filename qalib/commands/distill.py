"""The ``distill`` command: train a smaller or faster model on its teachers' predictions."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperCommand

from qalib.commands.options import takes
from qalib.commands.output import is_main_process
from qalib.commands.train import DataArgument, TrainingOptions, model_name, say, train_model
from qalib.errors import QalibError

if TYPE_CHECKING:
    from qalib.data.schema import Dataset
    from qalib.data.windows import WindowConfig
    from qalib.models.encoder import EncoderReader
    from qalib.training import TrainingTask


class SeveralTeachers(TyperCommand):
    """A command whose --teachers option takes all words up to the next option."""

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        """Repeat the option before each of its values, as click expects."""
        spread, inside = [], False
        for word in args:
            if word.startswith("-") or not inside:
                inside = word == "--teachers"
                spread += [] if inside else [word]
            else:
                spread += ["--teachers", word]
        return super().parse_args(ctx, spread)


@takes(TrainingOptions, "training")
def distill_command(
    data: DataArgument,
    training: TrainingOptions,
    teachers: Annotated[list[str], typer.Option(help="folders, Hub names or runs, one or more")],
    student: Annotated[
        str,
        typer.Option(
            help="folder, Hub name or run to start from, or layers:3: so many layers of the first "
            "teacher, at equal distances"
        ),
    ],
    output: Annotated[Path, typer.Option(help="new folder of the model")],
    temperature: Annotated[float, typer.Option(help="of the soft targets")] = 2.0,
    ce_weight: Annotated[float, typer.Option(help="of gold answers")] = 1.0,
    kd_weight: Annotated[float, typer.Option(help="of soft targets")] = 1.0,
    margin_weight: Annotated[float, typer.Option(help="of confusing answers")] = 0.3,
    attention_weight: Annotated[float, typer.Option(help="of attention on the question")] = 0.0,
) -> None:
    """Train a small model on gold answers and on what its teachers predict.

    The losses are those of answer distillation (Hu et al. 2018), as in notebook 08. The attention
    loss is slower and needs teachers and students with the same tokens. OUTPUT becomes a Hugging
    Face folder with a model card. Run the same command again to resume after an interruption.
    """
    dataset, scored = training.load(data, output)
    from qalib.distill.alignment import token_spans
    from qalib.distill.encoders import align_layers, distilled_task
    from qalib.distill.teacher_cache import TeacherTargets
    from qalib.losses import DistillConfig
    from qalib.training import encoder_task, make_accelerator

    loss = DistillConfig(
        ce_weight=ce_weight,
        kd_weight=kd_weight,
        margin_weight=margin_weight,
        attention_weight=attention_weight,
        temperature=temperature,
    )
    shallow = student.startswith("layers:")
    read = training.windows(teachers[0])  # the teachers' windows
    windows = read if shallow else training.windows(student)
    reader = load_student(student, teachers[0])
    if attention_weight:
        align_layers(reader)

    def make_task(work: Path) -> "TrainingTask":
        if is_main_process():
            precision, attention = training.precision, bool(attention_weight)
            cache_outputs(work / "cache", teachers, dataset, read, attention, precision)
        make_accelerator().wait_for_everyone()
        targets = TeacherTargets([work / "cache" / f"teacher-{n}" for n in range(len(teachers))])
        known = {span.id for span in targets.spans}  # questions with an answer inside one window
        examples = [example for example in dataset if example.id in known]
        task, rows = encoder_task(reader, examples, windows)
        spans = token_spans(rows, examples, reader.before)
        return distilled_task(task, spans, targets, loss)

    models = list(teachers) if shallow else [student, *teachers]
    facts = {"teachers": ", ".join(map(model_name, teachers))}
    facts |= {"student": student} if shallow else {}
    request = {"models": models, "student": student, "loss": loss}
    train_model(make_task, reader, windows, output, training, dataset, scored, request, **facts)


def load_student(student: str, teacher: str) -> "EncoderReader":
    """The student before training: a model, or evenly spaced teacher layers ("layers:3")."""
    from qalib.distill.encoders import keep_layers, spread_layers
    from qalib.models.pretrained import load_reader

    if not student.startswith("layers:"):
        return load_reader(student, new_head=True)
    count = student.removeprefix("layers:")
    if not count.isdecimal():
        raise QalibError(f"--student {student}: give the number of layers, as in layers:3.")
    encoder = (reader := load_reader(teacher)).encoder
    keep_layers(encoder, spread_layers(int(count), encoder.config.num_hidden_layers))
    return reader


def cache_outputs(
    folder: Path,
    teachers: Sequence[str],
    dataset: "Dataset",
    windows: "WindowConfig",
    attention: bool = False,
    precision: str = "auto",
) -> None:
    """Write every teacher's outputs for the windows with a gold answer to ``folder``.

    Teachers that an interrupted command has already finished are not run again. Raises QalibError
    if the vocabularies of the teachers' tokenizers differ.
    """
    from qalib.data.windows import check_windows
    from qalib.distill.alignment import token_spans
    from qalib.distill.distractors import DistractorMiner
    from qalib.distill.encoders import align_layers, teacher_outputs
    from qalib.distill.teacher_cache import cache_teacher_outputs
    from qalib.models.pretrained import load_reader
    from qalib.training import encoder_task

    first = load_reader(teachers[0])
    task, rows = encoder_task(first, dataset.examples, windows)
    if left_out := len(dataset) - len({row.example for row in rows}):
        say(f"left out: {left_out:,} of {len(dataset):,} questions, with no answer in one input")

    def outputs(number: int):
        reader = load_reader(teachers[number]) if number else first
        if reader.tokenizer.get_vocab() != first.tokenizer.get_vocab():
            raise QalibError(
                f"the teachers {teachers[0]} and {teachers[number]} have different tokenizers; "
                "choose teachers with the same one (the student may have another)."
            )
        check_windows(windows, reader.max_length)
        if attention:
            align_layers(reader)
        say(f"teacher {number + 1} of {len(teachers)} answers {len(rows):,} inputs")
        return teacher_outputs(reader, task, precision, f"teacher {number + 1}")

    functions = [partial(outputs, number) for number in range(len(teachers))]
    spans = token_spans(rows, dataset.examples, first.before)
    hops = [f"align {n}" for n in (1, 2, 3)] if attention else []
    cache_teacher_outputs(folder, spans, functions, DistractorMiner(dataset), hops)
