"""The ``score`` command: EM and F1 of a file of predictions."""

import json
from pathlib import Path

import typer  # noqa: F401


def score_command(dataset: Path, predictions: Path) -> None:
    """Score PREDICTIONS (one JSON object: id to answer text) as the official SQuAD scripts do."""
    from qalib.metrics import score_files

    print(json.dumps(score_files(dataset, predictions), indent=2, allow_nan=False))
