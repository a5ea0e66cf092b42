"""Options shared by several commands; those that run_qa.py has keep its names and meanings."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from qalib.inference import AnswerConfig

ModelOption = Annotated[
    str,
    typer.Option(
        "--model", "--checkpoint", help="folder, Hub name or run; default: the published reader"
    ),
]
SkimmerOption = Annotated[str, typer.Option("--skimmer", help="folder that `skim train` wrote")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON")]
SkipBadOption = Annotated[bool, typer.Option("--skip-bad", help="leave out bad rows of the data")]
MaxSeqLengthOption = Annotated[
    int | None, typer.Option(help="longest input in word pieces; default: as trained")
]
DocStrideOption = Annotated[int | None, typer.Option(help="overlap of neighbouring inputs")]
BatchSizeOption = Annotated[int | None, typer.Option(min=1, help="inputs of full length at a time")]
DeviceOption = Annotated[str, typer.Option(help="cuda, mps or cpu; default: cuda, or else cpu")]
PrecisionOption = Annotated[str, typer.Option(help="auto, fp32 or bf16")]


@dataclass(frozen=True)
class AnswerOptions:
    """How a model answers; None keeps the windows of its training and the default batch size."""

    n_best_size: Annotated[
        int, typer.Option("--n-best-size", "--n-best", help="number of answers for each question")
    ] = 1
    max_seq_length: MaxSeqLengthOption = None
    doc_stride: DocStrideOption = None
    max_query_length: Annotated[
        int | None, typer.Option(help="longest question in word pieces")
    ] = None
    max_answer_length: Annotated[int, typer.Option(help="longest answer in word pieces")] = 30
    null: Annotated[
        bool | None,
        typer.Option(
            "--null/--no-null",
            "--version-2-with-negative",
            help='allow "no answer" (SQuAD 2.0); default: as trained',
        ),
    ] = None
    null_score_diff_threshold: Annotated[
        float,
        typer.Option(help='"no answer" if its score exceeds the best span\'s by more than this'),
    ] = 0.0
    batch_size: BatchSizeOption = None
    precision: PrecisionOption = "auto"

    def config(self, model: str | Path) -> "AnswerConfig":
        """The answerer settings for a model: its own windows, changed by the given options."""
        from qalib.inference import AnswerConfig
        from qalib.models.pretrained import windows_of

        given = {
            "max_length": self.max_seq_length,
            "doc_stride": self.doc_stride,
            "max_query_length": self.max_query_length,
            "null": self.null,
        }
        given = {name: value for name, value in given.items() if value is not None}
        windows = replace(windows_of(model), **given)
        names = ("n_best_size", "max_answer_length", "null_score_diff_threshold", "precision")
        settings = {name: getattr(self, name) for name in names}
        if self.batch_size:
            settings["tokens_per_batch"] = self.batch_size * windows.max_length
        return AnswerConfig(windows=windows, **settings)


def takes(kind: type, name: str) -> Callable[[Callable], Callable]:
    """A command decorator: fields of ``kind`` become options, passed as one argument ``name``."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    shared = [
        inspect.Parameter(field.name, keyword, default=field.default, annotation=field.type)
        for field in fields(kind)
    ]

    def declare(command: Callable) -> Callable:
        own = inspect.signature(command).parameters.values()
        own = [p.replace(kind=keyword) for p in own if p.name != name]

        @functools.wraps(command)
        def with_options(**given) -> None:
            options = kind(**{p.name: given.pop(p.name) for p in shared})
            command(**given, **{name: options})

        with_options.__signature__ = inspect.Signature([*own, *shared])
        return with_options

    return declare
