"""The command line: ``python -m qalib COMMAND``; ``--help`` lists the commands."""

import signal
import sys
import warnings

import typer

from qalib.commands import answer, bench, distill, fetch, score, skim, study, train
from qalib.commands.output import is_main_process
from qalib.errors import DataWarning, QalibError

app = typer.Typer(
    help="Extractive question answering: answer, train, distill and skim.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"token_normalize_func": lambda name: name.replace("_", "-")},  # as run_qa.py
)
app.command("answer")(answer.answer_command)
app.command("score")(score.score_command)
app.command("train")(train.train_command)
app.command("distill", cls=distill.SeveralTeachers)(distill.distill_command)
app.add_typer(skim.app, name="skim")
app.add_typer(bench.app, name="bench")
app.command("fetch")(fetch.fetch_command)
app.add_typer(study.app, name="study")


class _Interrupted(BaseException):
    """Raised by Ctrl-C, because typer exits without a message on a KeyboardInterrupt."""


def _interrupt(*_) -> None:
    raise _Interrupted


def main() -> None:
    """Run the command line. A QalibError is one line and exit status 2, Ctrl-C status 130."""
    signal.signal(signal.SIGINT, _interrupt)
    show_other = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place, **options) -> None:
        if not issubclass(category, DataWarning):
            show_other(message, category, *place, **options)
        elif is_main_process():
            print(f"qalib: {message}", file=sys.stderr)

    warnings.showwarning = show
    warnings.simplefilter("always", DataWarning)
    if hasattr(sys.stdout, "reconfigure"):  # not in a notebook
        sys.stdout.reconfigure(errors="backslashreplace")  # where the locale has no such sign
    try:
        app()
    except QalibError as error:
        print(f"qalib: {error}", file=sys.stderr)
        sys.exit(2)
    except _Interrupted:
        print("qalib: interrupted; finished runs and checkpoints are kept.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
