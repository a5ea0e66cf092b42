"""The ``train`` command, and what it shares with other commands that train.

Such a command works in ``OUTPUT.partial``: checkpoints, the log, settings.json. Killed and given
again, it goes on there; finished, it becomes the model folder ``OUTPUT``.
"""

import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qalib.commands.options import (
    BatchSizeOption,
    DeviceOption,
    DocStrideOption,
    MaxQueryLengthOption,
    MaxSeqLengthOption,
    PrecisionOption,
    SkipBadOption,
)
from qalib.commands.output import is_main_process, to_json
from qalib.errors import QalibError
from qalib.files import exclusive, pretty, translate_os_errors, write_atomically

if TYPE_CHECKING:
    from qalib.data.schema import Dataset
    from qalib.data.windows import WindowConfig
    from qalib.models.encoder import EncoderReader
    from qalib.training import TrainConfig

DataArgument = Annotated[str, typer.Argument(help="file, or a name that `qalib fetch` lists")]
DevOption = Annotated[str, typer.Option(help="file or name of data to score after every epoch")]
EpochsOption = Annotated[
    int | None, typer.Option("--num-train-epochs", "--epochs", help="default: 2")
]
MaxStepsOption = Annotated[int | None, typer.Option(help="stop after so many steps")]
RateOption = Annotated[
    float | None,
    typer.Option("--learning-rate", help="default: 3e-5, or 1.5e-4 below a width of 512"),
]
BudgetOption = Annotated[
    int | None, typer.Option("--tokens-per-batch", help="instead of --batch-size; default: 4096")
]
SeedOption = Annotated[int, typer.Option(help="random seed")]
SaveStepsOption = Annotated[int, typer.Option(min=1, help="steps between checkpoints")]
LoggingStepsOption = Annotated[int, typer.Option(min=1, help="steps between lines of log.jsonl")]
FORMER = ("encoder", "bytes", "words", "block-skim")  # readers of the study


def train_command(
    data: DataArgument,
    model: Annotated[str, typer.Option(help="folder, Hub name or run to start from")] = "minilm-l6",
    output: Annotated[
        Path | None, typer.Option(help="new folder of the model; default: name of DATA + -model")
    ] = None,
    dev: DevOption = "",
    skip_bad: SkipBadOption = False,
    null: Annotated[
        bool | None,
        typer.Option(
            "--null/--no-null",
            "--version-2-with-negative",
            help='learn "no answer"; default: if questions have none',
        ),
    ] = None,
    num_train_epochs: EpochsOption = None,
    max_steps: MaxStepsOption = None,
    learning_rate: RateOption = None,
    warmup_ratio: Annotated[float | None, typer.Option(help="default: 0.06")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="default: 0.01")] = None,
    batch_size: BatchSizeOption = None,
    tokens_per_batch: BudgetOption = None,
    max_seq_length: MaxSeqLengthOption = None,
    doc_stride: DocStrideOption = None,
    max_query_length: MaxQueryLengthOption = None,
    train_embeddings: Annotated[
        bool, typer.Option("--train-embeddings", help="of words too; they stay as they are")
    ] = False,
    precision: PrecisionOption = "auto",
    device: DeviceOption = "",
    seed: SeedOption = 0,
    save_steps: SaveStepsOption = 200,
    logging_steps: LoggingStepsOption = 20,
) -> None:
    """Train a model on your own file of questions; give it again to resume after a kill.

    OUTPUT becomes a Hugging Face folder with a card. Works under `accelerate launch -m qalib`.
    """
    output = output or Path(Path(data).name.split(".")[0] + "-model")
    check_new_folder(output)
    dataset, scored = load_training_data(data, dev, skip_bad)
    from qalib.models.pretrained import load_reader
    from qalib.training import encoder_task, train_and_score

    device = choose_device(device)
    reader = load_reader(model, new_head=True)
    reader.encoder.get_input_embeddings().weight.requires_grad_(train_embeddings)
    impossible = not all(example.answerable for example in dataset)
    windows = training_windows(
        model,
        null=impossible if null is None else null,
        max_length=max_seq_length,
        doc_stride=doc_stride,
        max_query_length=max_query_length,
    )
    config = train_config(
        reader,
        windows,
        device,
        precision,
        batch_size,
        num_train_epochs=num_train_epochs,
        max_steps=max_steps,
        learning_rate=learning_rate,
        warmup_ratio=warmup_ratio,
        weight_decay=weight_decay,
        tokens_per_batch=tokens_per_batch,
    )
    settings = {"model": model, "windows": windows, "train": config, "seed": seed}
    settings |= {"train_embeddings": train_embeddings, "data": dataset.content_sha256}
    with working_folder(output, settings) as work:
        task, _ = encoder_task(reader, dataset.examples, windows)
        summary = train_and_score(
            reader,
            task,
            config,
            work,
            windows,
            scored,
            seed,
            report=report_epoch,
            save_steps=save_steps,
            logging_steps=logging_steps,
        )
        facts = {"base model": model_name(model), "data": dataset.name, "questions": len(dataset)}
        facts |= {**summary, "seed": seed}
        publish_model(work, output, reader, windows, facts, seen_passages(dataset, [model]))


# --- shared with other commands that train --------------------------------------------------------


def load_training_data(
    data: str, dev: str = "", skip_bad: bool = False
) -> tuple["Dataset", dict[str, "Dataset"]]:
    """Training data, read strictly, and the data to score on by name ("dev"), if there is any."""
    from qalib.data.sources import load_data

    if data in FORMER and not Path(data).exists():
        raise QalibError(
            f"there is no file {data}; the study's readers are trained by: qalib study train {data}"
        )
    dataset = load_data(data, purpose="train", skip_bad=skip_bad)
    return dataset, {"dev": load_data(dev, purpose="score")} if dev else {}


def choose_device(device: str) -> str:
    """The type of the device to train on: "cuda", "mps", "cpu". Raises QalibError if not here."""
    from qalib.training import make_accelerator

    found = make_accelerator(cpu=device == "cpu").device
    if device not in ("", found.type, str(found)):
        raise QalibError(f"--device {device}: not available here; training would use {found.type}.")
    return found.type


def training_windows(model: str, **changes: int | bool | None) -> "WindowConfig":
    """The windows of a model; ``changes`` that are None leave them as they are."""
    from dataclasses import replace

    from qalib.models.pretrained import windows_of

    return replace(windows_of(model), **{k: v for k, v in changes.items() if v is not None})


def train_config(
    reader: "EncoderReader",
    windows: "WindowConfig",
    device: str,
    precision: str,
    batch_size: int | None,
    **settings: float | None,
) -> "TrainConfig":
    """How to train: ``settings`` that are None have the defaults, and the choices are printed.

    A batch of N is a budget of N inputs of full length. Raises QalibError for impossible settings.
    """
    from qalib.training import TrainConfig, choose_precision

    if reader.untrained:
        say("this model has no trained question-answering head; a new one is trained")
    settings = {name: value for name, value in settings.items() if value is not None}
    if batch_size and "tokens_per_batch" in settings:
        raise QalibError("--batch-size and --tokens-per-batch limit the same; give one of them.")
    if batch_size:
        settings["tokens_per_batch"] = batch_size * windows.max_length
    width = getattr(reader.encoder.config, "hidden_size", 0)
    settings.setdefault("learning_rate", 1.5e-4 if width < 512 else 3e-5)
    precision, reason = choose_precision(precision, device)
    config = TrainConfig(**settings, precision=precision)
    say(
        f"training on {device} in {precision} ({reason}), learning rate {config.learning_rate:g}, "
        f"up to {config.tokens_per_batch:,} tokens a step"
    )
    return config


def check_new_folder(output: Path) -> None:
    """Raise QalibError if something is there already."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise QalibError(f"{output}: exists already; name a new folder, or remove it first.")


@contextmanager
def working_folder(output: Path, settings: Mapping[str, object]) -> Iterator[Path]:
    """``OUTPUT.partial``, where a command works on one request, alone.

    ``settings``: all that the result depends on. Raises QalibError if ``output`` exists, if another
    process works there, if the folder holds unfinished work of other settings, and if the disk is
    full.
    """
    check_new_folder(output)
    work = output.resolve().with_name(f"{output.resolve().name}.partial")
    if not is_main_process():
        yield work
        return
    with translate_os_errors(work), exclusive(work / "lock", str(output)):
        file, text = work / "settings.json", pretty(settings)
        if not file.exists():
            write_atomically(file, text)
        elif file.read_text(encoding="utf-8") != text:
            raise QalibError(
                f"{work} holds an unfinished run of other settings or data (settings.json); repeat "
                "that command, or remove the folder to start anew."
            )
        else:
            say(f"going on with the unfinished run in {work}")
        yield work


def publish_model(
    work: Path,
    output: Path,
    reader: "EncoderReader",
    windows: "WindowConfig",
    facts: Mapping[str, object],
    passages: Sequence[str] = (),
) -> None:
    """Save a trained reader as the model folder ``output``, and print ``facts`` as JSON."""
    from qalib.models.pretrained import save_model

    if not is_main_process():
        return
    shutil.rmtree(work / "model", ignore_errors=True)  # of a killed attempt
    save_model(work / "model", reader, windows, model_card(output.name, facts), passages)
    shutil.copy(work / "log.jsonl", work / "model")
    publish_folder(work, output)
    print(to_json(dict(facts)))


def seen_passages(dataset: "Dataset", models: Iterable[str]) -> list[str]:
    """Digests of passages that a model has been trained on, some of its own and of its origins."""
    from qalib.data.schema import SAMPLE, passage_digests
    from qalib.models.pretrained import passages_of

    own = passage_digests(dataset, SAMPLE)
    return sorted({*own, *(digest for model in models for digest in passages_of(model))})


def publish_folder(work: Path, output: Path) -> None:
    """Make the finished folder ``work``/model the folder ``output``, and remove ``work``."""
    os.replace(work / "model", output)
    shutil.rmtree(work)
    say(f"{output}: written")


def model_card(name: str, facts: Mapping[str, object]) -> str:
    """README.md of a trained model: what it was made from, and the scores."""
    base = str(facts["base model"])
    known = [f"base_model: {base}"] if "/" in base else []  # a name on the Hub
    head = ["---", "library_name: transformers", "pipeline_tag: question-answering", *known, "---"]
    rows = [f"| {k.replace('_', ' ')} | {v:.6g} |" for k, v in facts.items() if _is_number(v)]
    rows = [f"| {k} | {v} |" for k, v in facts.items() if isinstance(v, str)] + rows
    text = [
        "",
        f"# {name}",
        "",
        "A model for extractive question answering, trained with qalib. `qalib answer --model "
        "FOLDER` answers with it, and transformers' `AutoModelForQuestionAnswering` loads it.",
        "",
        "| | |",
        "|---|---|",
        *rows,
    ]
    return "\n".join([*head, *text]) + "\n"


def model_name(model: str) -> str:
    """The name of a model's folder, which says nothing of this machine, or its name on the Hub."""
    return Path(model).resolve().name if Path(model).exists() else model


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def report_epoch(line: dict) -> None:
    """Print the scores after an epoch."""
    scores = [f"{name.replace('_', ' ')} {value:.1f}" for name, value in line.items()][1:]
    say(f"epoch {line['epoch']} finished{': ' if scores else ''}{', '.join(scores)}")


def say(line: str) -> None:
    """Print a line to standard error, in one process of several."""
    if is_main_process():
        print(f"qalib: {line}", file=sys.stderr, flush=True)
