"""The commands ``skim train``, ``skim calibrate`` and ``skim extract``."""

import typer

app = typer.Typer(help="Skimming: read only what may hold the answer.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass
