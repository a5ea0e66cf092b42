"""The ``bench answer`` command: how fast this machine answers, in interleaved rounds."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import typer

from qalib.commands.options import JsonOption, ModelOption, SkimmerOption
from qalib.commands.output import to_json
from qalib.commands.train import say

app = typer.Typer(help="How fast this machine answers.", no_args_is_help=True)
RoundsOption = Annotated[int, typer.Option(help="interleaved rounds; the median is reported")]


@app.command("answer")
def bench_answer_command(
    data: Annotated[str, typer.Option(help="almanac (embedded), a source or a file")] = "almanac",
    model: ModelOption = "",
    skimmer: SkimmerOption = "",
    questions: Annotated[int, typer.Option(help="the first so many of the data")] = 200,
    rounds: RoundsOption = 3,
    as_json: JsonOption = False,
) -> None:
    """Measure EM, F1 and questions per second, tokenisation and decoding included.

    Times the model with padding as in run_qa.py, without padding, in bf16 where that is faster, and
    with skimming if there is a skimmer.
    """
    from qalib.data.corpus import CorpusConfig, build_corpus
    from qalib.data.sources import load_data
    from qalib.inference import AnswerConfig, QuestionAnswerer
    from qalib.models.pretrained import windows_of
    from qalib.skim.baselines import PaddedReader
    from qalib.skim.reader import load_skim_answerer, skimmer_folders
    from qalib.study.stages.benchmarks import best_precision, time_answering

    long = CorpusConfig(questions=questions, length=2500)
    test = build_corpus(long) if data == "almanac" else load_data(data, "answer")
    test = replace(test, examples=test.examples[:questions])
    model, folder = skimmer_folders(model, skimmer)
    windows = windows_of(model)
    fp32, auto = (AnswerConfig(windows=windows, precision=name) for name in ("fp32", "auto"))
    full = QuestionAnswerer.load(model, fp32)
    padded = PaddedReader(full.reader, windows.max_length).eval()
    answerers = {f"padded to {windows.max_length}": QuestionAnswerer(padded, fp32), "full": full}
    if best_precision() == "bf16":
        answerers["full, bf16"] = QuestionAnswerer.load(model, auto)
    if skimmer or (folder / "skim.json").is_file():
        answerers["skimming"] = load_skim_answerer(model, folder, auto)
    print(report(time_answering(answerers, test, rounds, say), as_json))


def report(rows: Sequence[dict], as_json: bool = False) -> str:
    """Rows as JSON, or their medians as a table, headed by processor, threads and torch version."""
    import torch
    from tabulate import tabulate

    from qalib.study.provenance import cpu_model

    if as_json:
        return to_json(rows)
    names = [name for name in rows[0] if not name.endswith(("_low", "_high"))]
    cells = [[row[name] for name in names] for row in rows]
    headers = [name.replace("_", " ") for name in names]
    title = f"{cpu_model()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    note = "medians over interleaved rounds; --json adds their quartiles"
    return f"{title}; {note}\n\n{tabulate(cells, headers, floatfmt=',.3g', intfmt=',')}"
