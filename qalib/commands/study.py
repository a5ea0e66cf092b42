"""The ``study`` commands: notebooks, published checkpoints, rows of Block-Skim's Table 1."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from qalib.commands import train
from qalib.errors import QalibError

app = typer.Typer(help="The study: notebooks, runs, checkpoints.", no_args_is_help=True)


@app.command("run-notebooks")
def run_notebooks_command(
    profile: Annotated[
        str, typer.Option("--profile", "-P", help="default: laptop; with --check: study")
    ] = "",
    only: Annotated[list[str] | None, typer.Option(help="notebook numbers, e.g. 00")] = None,
    force: Annotated[bool, typer.Option(help="compute every run again")] = False,
    check: Annotated[bool, typer.Option(help="only report what is out of date")] = False,
) -> None:
    """Run the notebooks with papermill and regenerate their figures.

    --check runs nothing: it compares figures, notebooks and, in profile study, the README with
    what they were made from.
    """
    from qalib.files import write_atomically
    from qalib.study import notebooks
    from qalib.study.readme import README, updated_readme

    profile = profile or ("study" if check else "laptop")
    if check:
        problems = notebooks.check(profile)
        if profile == "study" and updated_readme() != README.read_text(encoding="utf-8"):
            problems.append("README.md: its results are not those recorded; run the notebooks.")
        print("\n".join(problems) or "Everything is up to date.")
        raise typer.Exit(bool(problems))
    failed = list(filter(None, notebooks.run_notebooks(profile, only, force).values()))
    if profile == "study":
        write_atomically(README, updated_readme())
    if failed:
        print(f"\n{len(failed)} failed:", *failed, sep="\n")
        raise typer.Exit(1)


@app.command("export-checkpoint")
def export_checkpoint(
    what: Annotated[str, typer.Argument(help="reader, base or skimmer")] = "reader",
    profile: Annotated[str, typer.Option("--profile", "-P", help="ci to paper")] = "study",
    force: Annotated[bool, typer.Option(help="train again, if the weights are not here")] = False,
) -> None:
    """Write data/checkpoints from what a profile trained: adapter, scores, model card."""
    from qalib.study.publish import export_reader, export_skimmer
    from qalib.study.session import open_study

    sizes = {"reader": "small", "base": "base"}
    if what not in (known := (*sizes, "skimmer")):
        raise QalibError(f"{what!r} is not shipped; choose {' or '.join(known)}.")
    study = open_study("export-checkpoint", profile)
    study.force = datetime.now(UTC).isoformat(timespec="seconds") if force else study.force
    print(export_reader(study, sizes[what]) if what in sizes else export_skimmer(study))


@app.command("paper-row")
def paper_row_command(
    name: Annotated[str, typer.Argument(help="such as bert-base/squad; default: all")] = "",
    output: Annotated[Path | None, typer.Option(help="train it into this new folder")] = None,
    plain: Annotated[bool, typer.Option(help="without the loss of the modules")] = False,
    model: Annotated[str, typer.Option(help="another encoder in its place")] = "",
    data: Annotated[str, typer.Option(help="other questions to train on")] = "",
    dev: Annotated[str, typer.Option(help="questions to score on; with --data no default")] = "",
    max_steps: Annotated[int, typer.Option(help="stop after so many steps; 0: never")] = 0,
) -> None:
    """Print shape and cost of rows of Block-Skim's Table 1, or train one with --output.

    Printing needs no weights and no network. Training works under `accelerate launch -m qalib`, and
    ends with EM and F1 on the row's test set, read without skimming.
    """
    from tabulate import tabulate

    from qalib.study.paper import describe_row, paper_rows

    rows = paper_rows()
    if output is not None:
        encoder, sets = rows.find(name)
        test = dev or (sets.test if not data else "")
        config = rows.training(name, plain, max_steps)
        _train_row(name, output, config, model or encoder.hub, data or sets.train, test)
        return
    names = [name] if name else [f"{encoder}/squad" for encoder in rows.encoders]
    names += [] if name else [f"bert-base/{data}" for data in rows.sets if data != "squad"]
    found = [describe_row(rows, row) for row in names]
    print(tabulate(found, headers="keys", tablefmt="github", floatfmt=".3g"))


def _train_row(name: str, output: Path, config, model: str, data: str, dev: str) -> None:
    from qalib.data.sources import load_data
    from qalib.inference import AnswerConfig, QuestionAnswerer
    from qalib.metrics import score
    from qalib.models.encoder import EncoderConfig, build_encoder
    from qalib.models.pretrained import save_model
    from qalib.skim.storage import save_skimmer
    from qalib.skim.training import add_predictors, fit

    train.check_new_folder(output)
    dataset, test = load_data(data), load_data(dev, "score") if dev else None
    full = EncoderConfig(model, attention_dropout=0.1, train_embeddings=True)
    skims = add_predictors(build_encoder(full, config.seed), config)
    settings = {"row": name, "model": model, "skim": config, "data": dataset.content_sha256}
    with train.working_folder(output, settings) as work:
        facts = {"row": name} | train.basic_facts(model, dataset)
        facts |= fit(skims, dataset, config, work)
        if test and train.is_main_process():
            answerer = QuestionAnswerer(skims.reader, AnswerConfig(windows=config.windows))
            facts |= score(test, answerer.predictions(test.examples))

        def save(folder: Path, card: str) -> None:
            save_model(folder, skims.reader, config.windows, card)
            save_skimmer(folder, skims.skimmer, skims.reader.encoder)

        train.save_and_publish(work, output, facts, save)
