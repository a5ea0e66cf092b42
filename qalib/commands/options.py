"""Options that several commands share; those of run_qa.py have its names and meaning."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pathlib import Path

    from qalib.inference import AnswerConfig

MODEL_HELP = "folder, Hub name or run; default: the published reader"
ModelOption = Annotated[str, typer.Option("--model", "--checkpoint", help=MODEL_HELP)]
SkimmerOption = Annotated[str, typer.Option("--skimmer", help="folder that `skim train` wrote")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON")]
SkipBadOption = Annotated[bool, typer.Option("--skip-bad", help="leave out bad rows of the data")]
MaxSeqLengthOption = Annotated[
    int | None, typer.Option(help="longest input in word pieces; default: as trained")
]
DocStrideOption = Annotated[int | None, typer.Option(help="overlap of neighbouring inputs")]
MaxQueryLengthOption = Annotated[int | None, typer.Option(help="longest question in word pieces")]
MaxAnswerLengthOption = Annotated[int, typer.Option(help="longest answer in word pieces")]
NBestSizeOption = Annotated[
    int, typer.Option("--n-best-size", "--n-best", help="number of answers for each question")
]
NullOption = Annotated[
    bool,
    typer.Option("--null", "--version-2-with-negative", help='allow "no answer" (SQuAD 2.0)'),
]
NullThresholdOption = Annotated[
    float,
    typer.Option(
        "--null-score-diff-threshold",
        help='"no answer" if its score exceeds the best span\'s by more than this',
    ),
]
BatchSizeOption = Annotated[int | None, typer.Option(min=1, help="inputs of full length at a time")]
DeviceOption = Annotated[str, typer.Option(help="cuda, mps or cpu; default: cuda, or else cpu")]
PrecisionOption = Annotated[str, typer.Option(help="auto, fp32 or bf16")]


def answer_config(
    model: "str | Path" = "",
    *,
    max_seq_length: int | None = None,
    doc_stride: int | None = None,
    max_query_length: int | None = None,
    null: bool = False,
    batch_size: int | None = None,
    **settings,
) -> "AnswerConfig":
    """The settings of a model's answerer; None: as the model was trained.

    ``settings``: further ones of :class:`qalib.inference.AnswerConfig`.
    """
    from dataclasses import replace

    from qalib.inference import AnswerConfig
    from qalib.models.pretrained import windows_of

    given = {
        "max_length": max_seq_length,
        "doc_stride": doc_stride,
        "max_query_length": max_query_length,
    }
    given = {name: value for name, value in given.items() if value is not None}
    windows = replace(windows_of(model), null=null, **given)
    if batch_size:
        settings["tokens_per_batch"] = batch_size * windows.max_length
    return AnswerConfig(windows=windows, **settings)
