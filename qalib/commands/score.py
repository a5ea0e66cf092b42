"""The ``score`` command: EM and F1 of a file of predictions."""

from pathlib import Path
from typing import Annotated

import typer

from qalib.commands.output import to_json


def score_command(
    dataset: Annotated[str, typer.Argument(help="data with reference answers: a file or a name")],
    predictions: Annotated[Path, typer.Argument(help="JSON object: id to answer text")],
    na_prob_file: Annotated[
        Path | None, typer.Option(help="JSON object: id to the probability or odds of no answer")
    ] = None,
    characters: Annotated[
        bool, typer.Option("--characters", help="F1 over characters (Chinese, Japanese, Korean)")
    ] = False,
) -> None:
    """Score predictions as the official SQuAD 1.1 and 2.0 scripts do."""
    from qalib.metrics import score_files

    print(to_json(score_files(dataset, predictions, na_prob_file, characters)))
