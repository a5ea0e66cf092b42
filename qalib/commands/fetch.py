"""The ``fetch`` command: download data by name."""

from typing import Annotated

import typer


def fetch_command(
    names: Annotated[list[str] | None, typer.Argument(help="sources; none: list them")] = None,
) -> None:
    """Download data by name, verify it and print its path; without a name, list the sources."""
    from tabulate import tabulate

    from qalib.data.sources import SOURCES, fetch, find

    for name in names or ():
        print(fetch(name))
    if not names:
        rows = [
            [s.name, "here" if find(s.name) else "", s.questions, s.file] for s in SOURCES.values()
        ]
        print(tabulate(rows, headers=["name", "", "questions", "file"], intfmt=","))
