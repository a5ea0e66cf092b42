"""The ``distill`` command: models that answer teach a smaller or faster one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperCommand

from qalib.commands.options import (
    BatchSizeOption,
    DeviceOption,
    DocStrideOption,
    MaxQueryLengthOption,
    MaxSeqLengthOption,
    PrecisionOption,
    SkipBadOption,
)
from qalib.commands.output import is_main_process
from qalib.commands.train import (
    BudgetOption,
    DataArgument,
    DevOption,
    EpochsOption,
    LoggingStepsOption,
    MaxStepsOption,
    RateOption,
    SaveStepsOption,
    SeedOption,
    check_new_folder,
    choose_device,
    load_training_data,
    model_name,
    publish_model,
    report_epoch,
    say,
    seen_passages,
    train_config,
    training_windows,
    working_folder,
)
from qalib.errors import QalibError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qalib.data.schema import Dataset
    from qalib.data.windows import WindowConfig
    from qalib.models.encoder import EncoderReader


class SeveralTeachers(TyperCommand):
    """A command whose option --teachers takes all words up to the next option."""

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        """Repeat the option before each of its values, as click expects it."""
        spread, inside = [], False
        for word in args:
            if word.startswith("-") or not inside:
                inside = word == "--teachers"
                spread += [] if inside else [word]
            else:
                spread += ["--teachers", word]
        return super().parse_args(ctx, spread)


def distill_command(
    data: DataArgument,
    teachers: Annotated[list[str], typer.Option(help="folders, Hub names or runs, one or more")],
    student: Annotated[
        str,
        typer.Option(
            help="folder, Hub name or run to start from; layers:3 = three layers of the first "
            "teacher at equal distances, layers:1,2,6 = these layers"
        ),
    ],
    output: Annotated[Path, typer.Option(help="new folder of the model")],
    dev: DevOption = "",
    skip_bad: SkipBadOption = False,
    temperature: Annotated[float | None, typer.Option(help="default: 2")] = None,
    ce_weight: Annotated[float | None, typer.Option(help="gold answers; default: 1")] = None,
    kd_weight: Annotated[float | None, typer.Option(help="soft targets; default: 1")] = None,
    margin_weight: Annotated[
        float | None, typer.Option(help="teachers' confusing answers; default: 0.3")
    ] = None,
    attention_weight: Annotated[
        float, typer.Option(help="attention of the last layer on the question, e.g. 0.1; slower")
    ] = 0.0,
    num_train_epochs: EpochsOption = None,
    max_steps: MaxStepsOption = None,
    learning_rate: RateOption = None,
    batch_size: BatchSizeOption = None,
    tokens_per_batch: BudgetOption = None,
    max_seq_length: MaxSeqLengthOption = None,
    doc_stride: DocStrideOption = None,
    max_query_length: MaxQueryLengthOption = None,
    precision: PrecisionOption = "auto",
    device: DeviceOption = "",
    seed: SeedOption = 0,
    save_steps: SaveStepsOption = 200,
    logging_steps: LoggingStepsOption = 20,
) -> None:
    """Train a small model on gold answers and on what its teachers predict.

    The losses are those of answer distillation (Hu et al. 2018), as notebook 08 shows them. OUTPUT
    becomes a Hugging Face folder with a card; the command given again resumes after a kill.
    """
    check_new_folder(output)
    dataset, scored = load_training_data(data, dev, skip_bad)
    from qalib.distill.encoders import AlignmentReader, distilled_task, question_spans
    from qalib.distill.teacher_cache import TeacherTargets
    from qalib.losses import DistillConfig
    from qalib.training import encoder_task, make_accelerator, train_and_score

    weights = {"ce": ce_weight, "kd": kd_weight, "margin": margin_weight}
    given = {f"{name}_weight": value for name, value in weights.items() if value is not None}
    given |= {} if temperature is None else {"temperature": temperature}
    loss = DistillConfig(attention_weight=attention_weight, **given)
    device = choose_device(device)
    lengths = {"max_length": max_seq_length, "doc_stride": doc_stride}
    lengths |= {"max_query_length": max_query_length, "null": False}
    read = training_windows(teachers[0], **lengths)  # by the teachers
    reader = load_student(student, teachers[0])
    reader.encoder.get_input_embeddings().weight.requires_grad_(False)  # as `train` does
    shallow = student.startswith("layers:")
    windows = read if shallow else training_windows(student, **lengths)
    config = train_config(
        reader,
        windows,
        device,
        precision,
        batch_size,
        num_train_epochs=num_train_epochs,
        max_steps=max_steps,
        learning_rate=learning_rate,
        tokens_per_batch=tokens_per_batch,
    )
    settings = {"teachers": teachers, "student": student, "loss": loss, "windows": windows}
    settings |= {"train": config, "seed": seed, "data": dataset.content_sha256}
    with working_folder(output, settings) as work:
        if is_main_process():
            cache_teachers(work / "cache", teachers, dataset, read, device, attention_weight > 0)
        make_accelerator().wait_for_everyone()
        targets = TeacherTargets(work / "cache", range(len(teachers)))
        known = {span.id for span in targets.spans}  # those with an answer that fits one input
        examples = [example for example in dataset if example.id in known]
        if attention_weight:
            reader = AlignmentReader(reader)
        task, rows = encoder_task(reader, examples, windows)
        spans = question_spans(rows, examples, reader.tokenizer)
        summary = train_and_score(
            reader,
            distilled_task(task, spans, targets, loss),
            config,
            work,
            windows,
            scored,
            seed,
            report=report_epoch,
            save_steps=save_steps,
            logging_steps=logging_steps,
        )
        facts = {"base model": model_name(teachers[0] if shallow else student)}
        facts |= {"teachers": ", ".join(map(model_name, teachers)), "data": dataset.name}
        facts |= {"student": student} if shallow else {}
        facts |= {"questions": len(examples), **summary, "seed": seed}
        passages = seen_passages(dataset, teachers if shallow else [*teachers, student])
        publish_model(work, output, reader, windows, facts, passages)


def load_student(student: str, teacher: str) -> "EncoderReader":
    """The student before training: a model, or some layers of the teacher.

    Raises QalibError if "layers:" is not followed by a number, or by several with commas.
    """
    from qalib.distill.encoders import keep_layers, spread_layers
    from qalib.models.pretrained import load_reader

    if not student.startswith("layers:"):
        return load_reader(student, new_head=True)
    try:
        numbers = [int(text) for text in student.removeprefix("layers:").split(",")]
    except ValueError:
        raise QalibError(f"--student {student}: give layers:3 or layers:2,4,6.") from None
    reader = load_reader(teacher)
    depth = reader.encoder.config.num_hidden_layers
    if len(numbers) == 1 and 1 <= numbers[0] <= depth:
        numbers = list(spread_layers(numbers[0], depth))
    keep_layers(reader, numbers)
    return reader


def cache_teachers(
    folder: Path,
    teachers: "Sequence[str]",
    dataset: "Dataset",
    windows: "WindowConfig",
    device: str,
    attention: bool,
) -> None:
    """Write what every teacher predicts for the windows with a gold answer to ``folder``.

    Teachers that a killed command has finished are not asked again. Raises QalibError if their
    tokenizers differ.
    """
    from qalib.distill.distractors import DistractorMiner
    from qalib.distill.encoders import ALIGNMENT, AlignmentReader, question_spans, teacher_outputs
    from qalib.distill.teacher_cache import cache_teacher_outputs
    from qalib.models.pretrained import load_reader
    from qalib.training import encoder_task

    first = load_reader(teachers[0])
    task, rows = encoder_task(first, dataset.examples, windows)
    left_out = len(dataset) - len({row.example for row in rows})
    if left_out:
        say(f"left out: {left_out:,} of {len(dataset):,} questions, with no answer in one input")

    def outputs(number: int):
        reader = load_reader(teachers[number]) if number else first
        if reader.tokenizer.get_vocab() != first.tokenizer.get_vocab():
            raise QalibError(
                f"the teachers {teachers[0]} and {teachers[number]} have different tokenizers; "
                "choose teachers with the same one (the student may have another)."
            )
        say(f"teacher {number + 1} of {len(teachers)} answers {len(rows):,} inputs")
        reader = (AlignmentReader(reader) if attention else reader).to(device).eval()
        return teacher_outputs(reader, task, f"teacher {number + 1}", progress=True)

    functions = [lambda number=number: outputs(number) for number in range(len(teachers))]
    spans = question_spans(rows, dataset.examples, first.tokenizer)
    hops = [ALIGNMENT] if attention else []
    cache_teacher_outputs(folder, spans, functions, DistractorMiner(dataset), hops)
