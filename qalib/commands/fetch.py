"""The ``fetch`` command: download data by name."""

from typing import Annotated

import typer


def fetch_command(
    names: Annotated[list[str] | None, typer.Argument(help="sources; none: list them")] = None,
) -> None:
    """Download data by name, verify it and print its path; without a name, list the sources."""
    from qalib.data.sources import fetch

    if not names:
        print(_sources())
    for name in names or ():
        print(fetch(name))


def _sources() -> str:
    from tabulate import tabulate

    from qalib.data.sources import SOURCES, find

    rows = [
        [source.name, "here" if find(source.name) else "", source.questions, source.file]
        for source in SOURCES.values()
    ]
    return tabulate(rows, headers=["name", "", "questions", "file"], intfmt=",")
