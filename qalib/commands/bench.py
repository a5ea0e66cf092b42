"""The ``bench`` commands: how fast this machine trains and answers."""

from typing import Annotated

import typer

from qalib.commands.options import JsonOption, SkimmerOption

app = typer.Typer(help="How fast this machine trains and answers.", no_args_is_help=True)

RoundsOption = Annotated[int, typer.Option(help="interleaved rounds; the median is reported")]


@app.command("answer")
def bench_answer(
    data: Annotated[str, typer.Option(help="almanac (embedded), a source or a file")] = "almanac",
    skimmer: SkimmerOption = "",
    questions: Annotated[int, typer.Option(help="the first so many of the data")] = 200,
    rounds: RoundsOption = 3,
    as_json: JsonOption = False,
) -> None:
    """Questions per second with tokenisation and decoding, and EM and F1."""
    from qalib.study import bench

    print(bench.end_to_end_report(data, skimmer, questions, rounds, as_json=as_json))
