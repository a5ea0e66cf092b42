"""The ``train`` command, and the code that it shares with other commands that train.

They keep checkpoints, log and settings.json in ``OUTPUT.partial``. A command that was killed and is
run again resumes there; at the end, the model folder ``OUTPUT`` takes the place of that folder.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qalib.commands import options
from qalib.commands.output import is_main_process, to_json
from qalib.errors import QalibError
from qalib.files import exclusive, pretty, translate_os_errors, write_atomically

if TYPE_CHECKING:
    from qalib.data.schema import Dataset
    from qalib.data.windows import WindowConfig
    from qalib.models.encoder import EncoderReader
    from qalib.training import TrainConfig, TrainingTask

DataArgument = Annotated[str, typer.Argument(help="file, or a name that `qalib fetch` lists")]


@dataclass(frozen=True)
class TrainingOptions:
    """Options of every command that trains; None means the default of the model or the command."""

    dev: Annotated[str, typer.Option(help="file or name of data to score after every epoch")] = ""
    skip_bad: options.SkipBadOption = False
    num_train_epochs: Annotated[
        int | None, typer.Option("--num-train-epochs", "--epochs", help="default: 2")
    ] = None
    max_steps: Annotated[int | None, typer.Option(help="stop after so many steps")] = None
    learning_rate: Annotated[float | None, typer.Option(help="default: by the model")] = None
    batch_size: options.BatchSizeOption = None
    max_seq_length: options.MaxSeqLengthOption = None
    doc_stride: options.DocStrideOption = None
    precision: options.PrecisionOption = "auto"
    device: options.DeviceOption = ""
    seed: Annotated[int, typer.Option(min=0, help="random seed")] = 0
    save_steps: Annotated[int, typer.Option(min=1, help="steps between checkpoints")] = 200

    def load(self, data: str, output: Path) -> tuple["Dataset", dict[str, "Dataset"]]:
        """Training data (strict unless ``skip_bad``), and data to score on: {"dev": ...} or {}."""
        from qalib.data.schema import check_example
        from qalib.data.sources import load_data

        check_new_folder(output)
        dataset = load_data(data, purpose="train", skip_bad=self.skip_bad)
        dev = load_data(self.dev, purpose="score") if self.dev else None
        for example in dev or ():
            check_example(example, f"{self.dev}, question {example.id!r}")
        return dataset, {"dev": dev} if dev else {}

    def windows(self, model: str, null: bool = False) -> "WindowConfig":
        """The window settings of a model, with the lengths that were given as options."""
        lengths = {"max_seq_length": self.max_seq_length, "doc_stride": self.doc_stride}
        return options.AnswerOptions(null=null, **lengths).config(model).windows

    def config(
        self, reader: "EncoderReader", windows: "WindowConfig", learning_rate: float = 0.0
    ) -> "TrainConfig":
        """The training settings; prints the choices that depend on the machine and the model.

        ``learning_rate``: the default; 0 means 3e-5, or 1.5e-4 for encoders of a width below 512.
        A batch size of N is a budget of N windows of full length. Raises QalibError if the device
        is not available.
        """
        from qalib.inference import choose_device
        from qalib.models.bf16 import choose_precision
        from qalib.training import TrainConfig, make_accelerator

        device = make_accelerator(cpu=self.device == "cpu").device
        if self.device and str(choose_device(self.device)) not in (str(device), device.type):
            raise QalibError(
                f"--device {self.device}: training uses {device} here; choose a GPU with the "
                "environment variable CUDA_VISIBLE_DEVICES."
            )
        precision, reason = choose_precision(self.precision, device.type)
        usual = 1.5e-4 if getattr(reader.encoder.config, "hidden_size", 0) < 512 else 3e-5
        given = {
            "num_train_epochs": self.num_train_epochs,
            "max_steps": self.max_steps,
            "learning_rate": self.learning_rate,
            "tokens_per_batch": self.batch_size and self.batch_size * windows.max_length,
        }
        given = {name: value for name, value in given.items() if value is not None}
        given = {"learning_rate": learning_rate or usual, **given}
        config = TrainConfig(**given, precision=precision)
        if reader.untrained:
            say("this model has no trained question-answering head; a new one is trained")
        say(
            f"training on {device} in {precision} ({reason}), learning rate "
            f"{config.learning_rate:g}, up to {config.tokens_per_batch:,} tokens a step"
        )
        return config


@options.takes(TrainingOptions, "training")
def train_command(
    data: DataArgument,
    training: TrainingOptions,
    model: Annotated[
        str, typer.Option(help='folder, Hub name or run to start from; "": the published reader')
    ] = "minilm-l6",
    output: Annotated[
        Path | None, typer.Option(help="new folder of the model; default: name of DATA + -model")
    ] = None,
    null: Annotated[
        bool | None,
        typer.Option(
            "--null/--no-null",
            "--version-2-with-negative",
            help='learn "no answer"; default: if questions have none',
        ),
    ] = None,
) -> None:
    """Train a model on your own questions; run it again to resume after an interruption.

    OUTPUT becomes a Hugging Face folder with a model card. Word embeddings are not trained. Works
    under `accelerate launch -m qalib`.
    """
    output = output or Path(Path(data).name.split(".")[0] + "-model")
    dataset, scored = training.load(data, output)
    from qalib.models.pretrained import load_reader
    from qalib.training import encoder_task

    reader = load_reader(model, new_head=True)
    impossible = not all(example.answerable for example in dataset)
    windows = training.windows(model, null=impossible if null is None else null)
    train_model(
        lambda work: encoder_task(reader, dataset.examples, windows)[0],
        reader,
        windows,
        output,
        training,
        dataset,
        scored,
        {"models": [model]},
    )


# --- shared with other commands that train --------------------------------------------------------


def train_model(
    make_task: Callable[[Path], "TrainingTask"],
    reader: "EncoderReader",
    windows: "WindowConfig",
    output: Path,
    training: TrainingOptions,
    dataset: "Dataset",
    scored: Mapping[str, "Dataset"],
    request: Mapping[str, object],
    **facts: object,
) -> None:
    """Train a reader in ``OUTPUT.partial``, save it as the model folder ``output``, print facts.

    ``make_task``: makes the task, given the working folder. ``request``: what the result depends on
    besides data, windows and options, including the "models" it is made from. ``facts``: additional
    entries for the model card.
    """
    from qalib.data.schema import SAMPLE, file_sha256, passage_digests
    from qalib.models.pretrained import passages_of, save_model
    from qalib.training import train_and_score

    reader.encoder.get_input_embeddings().weight.requires_grad_(False)
    config, models = training.config(reader, windows), request["models"]
    data = [dataset.content_sha256, dataset.raw_sha256]  # the content in any order, the file's
    weights = [file for model in models if model for file in Path(model).glob("*.safetensors")]
    request = {**request, "windows": windows, "train": config, "seed": training.seed}
    request["weights"] = {str(file): file_sha256(file) for file in weights}
    with working_folder(output, request | {"data": data}) as work:
        summary = train_and_score(
            reader,
            make_task(work),
            config,
            work,
            windows,
            scored,
            training.seed,
            report=report_epoch,
            save_steps=training.save_steps,
        )

        def save(folder: Path, card: str) -> None:
            seen = {digest for model in models for digest in passages_of(model)}
            seen.update(passage_digests(dataset, SAMPLE))
            save_model(folder, reader, windows, card, sorted(seen))
            shutil.copy(work / "log.jsonl", folder)

        facts = {**basic_facts(models[0], dataset), **facts, **summary, "seed": training.seed}
        save_and_publish(work, output, facts, save)


def basic_facts(model: str, dataset: "Dataset") -> dict[str, object]:
    """The first entries of every model card."""
    return {"base model": model_name(model), "data": dataset.name, "questions": len(dataset)}


def check_new_folder(output: Path) -> None:
    """Raise QalibError if ``output`` exists, unless it is an empty folder that can be replaced."""
    fixed = output.is_mount() or (output.exists() and not output.is_dir())
    if fixed or (output.is_dir() and any(output.iterdir())):
        raise QalibError(f"{output}: exists already; name a new folder, or remove it first.")


@contextmanager
def working_folder(output: Path, settings: Mapping[str, object]) -> Iterator[Path]:
    """``OUTPUT.partial``, locked for one command at a time and tied to one set of settings.

    ``settings``: all that the result depends on. Raises QalibError if another process is working
    there, if the folder holds an unfinished run of other settings, or if the disk is full.
    """
    work = output.resolve().with_name(f"{output.resolve().name}.partial")
    if not is_main_process():
        yield work
        return
    with translate_os_errors(work), exclusive(work / "lock", str(output)):
        file, text = work / "settings.json", pretty(settings)
        begun = any((work / name).exists() for name in ("scratch", "cache"))
        if not file.exists() or not begun:
            write_atomically(file, text)
        elif file.read_text(encoding="utf-8") != text:
            raise QalibError(
                f"{work} holds an unfinished run of other settings or data (settings.json); repeat "
                "that command, or remove the folder to start anew."
            )
        else:
            say(f"going on with the unfinished run in {work}")
        yield work


def save_and_publish(
    work: Path, output: Path, facts: Mapping[str, object], save: Callable[[Path, str], None]
) -> None:
    """Write a model with ``save(folder, card)``, move it to ``output`` and print the facts."""
    if is_main_process():
        shutil.rmtree(work / "model", ignore_errors=True)  # left by a killed attempt
        save(work / "model", model_card(output.name, facts))
        publish_folder(work, output)
        print(to_json(facts))


def publish_folder(work: Path, output: Path) -> None:
    """Move the finished folder ``work``/model to ``output``, and remove ``work``."""
    os.replace(work / "model", output.resolve())
    for name in ("scratch", "cache"):  # before settings.json, which says which run they belong to
        shutil.rmtree(work / name, ignore_errors=True)
    shutil.rmtree(work)
    say(f"{output}: written")


def model_card(name: str, facts: Mapping[str, object]) -> str:
    """The README.md of a trained model: what it was made from, and its scores."""
    from qalib.models.pretrained import CARD

    rows = {k.replace("_", " "): f"{v:.6g}" if type(v) is float else v for k, v in facts.items()}
    table = [f"| {key} | {value} |" for key, value in rows.items()]
    return "\n".join([CARD.format(name=name), "| | |", "|---|---|", *table]) + "\n"


def model_name(model: str) -> str:
    """A model's folder name, without the path on this machine, or its name on the Hub."""
    if not model:
        return "the published reader"
    return Path(model).resolve().name if Path(model).exists() else model


def report_epoch(line: Mapping[str, float]) -> None:
    """Print the scores after an epoch."""
    scores = [f"{name.replace('_', ' ')} {value:.1f}" for name, value in line.items()][1:]
    say(f"epoch {line['epoch']} finished{': ' if scores else ''}{', '.join(scores)}")


def say(line: str) -> None:
    """Print a line to standard error, in the main process only."""
    if is_main_process():
        print(f"qalib: {line}", file=sys.stderr, flush=True)
