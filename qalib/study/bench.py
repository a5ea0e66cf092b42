"""The reports of ``python -m qalib bench``: every benchmark measured anew, as a table or as JSON.

Progress goes to the standard error output, a line every few seconds.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace

from qalib.data.corpus import CorpusConfig, build_corpus
from qalib.data.schema import Dataset
from qalib.data.windows import WindowConfig, make_windows, training_windows
from qalib.study.stages import benchmarks


def print_progress(line: str) -> None:
    """Show a line while something is measured."""
    print(f"bench: {line}", file=sys.stderr, flush=True)


def training_report(rounds: int = 5, as_json: bool = False) -> str:
    """Training throughput, from the defaults of transformers to qalib."""
    from qalib.models.encoder import EncoderConfig, build_encoder
    from qalib.training import choose_precision

    print_progress("this processor trains in {} ({})".format(*choose_precision()))
    data = build_corpus(CorpusConfig(questions=2000))
    tokenizer = build_encoder(EncoderConfig()).tokenizer
    windows = training_windows(make_windows(data.examples, tokenizer, WindowConfig()))
    return report(benchmarks.time_training(windows, rounds, progress=print_progress), as_json)


def block_skim_report(
    data: str = "almanac", skimmer: str = "", seconds: float = 200.0, as_json: bool = False
) -> str:
    """Block-Skim against other ways to run the same encoder, in about ``seconds``."""
    from qalib.skim.storage import DEFAULT_SKIMMER, load_skimmer

    config = benchmarks.BlockSkimBenchmark(seconds=seconds)
    inputs = bench_data(data), load_skimmer(skimmer or DEFAULT_SKIMMER)
    found = benchmarks.time_block_skim(config, *inputs, print_progress)
    for cell in found["skipped"]:
        print_progress(f"{cell}: skipped, the time was over")
    return report(found["rows"], as_json)


def answer_report(
    model: str = "",
    skimmer: str = "",
    data: str = "almanac",
    questions: int = 200,
    rounds: int = 3,
    as_json: bool = False,
) -> str:
    """Whole questions per second, with EM and F1: padded as run_qa.py does, without, and skimming.

    The published reader has a published skimmer; another model skims if ``skimmer`` is given.
    """
    from qalib.inference import AnswerConfig, QuestionAnswerer
    from qalib.models.pretrained import windows_of
    from qalib.skim.baselines import PaddedReader
    from qalib.skim.reader import load_skim_answerer

    test = bench_data(data, "answer")
    test = replace(test, examples=test.examples[:questions])
    windows = windows_of(model)
    fp32 = AnswerConfig(windows=windows, precision="fp32")
    full = QuestionAnswerer.load(model, fp32)
    padded = PaddedReader(full.reader, windows.max_length).eval()
    answerers = {f"padded to {windows.max_length}": QuestionAnswerer(padded, fp32), "full": full}
    auto = AnswerConfig(windows=windows)
    if benchmarks.best_precision() == "bf16":
        answerers["full, bf16"] = QuestionAnswerer.load(model, auto)
    if skimmer or not model:
        answerers["skimming"] = load_skim_answerer(model, auto, skimmer)
    return report(benchmarks.time_answering(answerers, test, rounds, print_progress), as_json)


def bench_data(name: str, purpose: str = "train") -> Dataset:
    """A data set by name or file; "almanac" is the embedded corpus with its longest passages."""
    from qalib.data.sources import load_data

    if name == "almanac":
        return build_corpus(CorpusConfig(questions=400, length=2500))
    return load_data(name, purpose)


def report(rows: Sequence[dict], as_json: bool = False) -> str:
    """Rows as JSON, or the medians as a table with processor and threads above."""
    import torch
    from tabulate import tabulate

    from qalib.study.provenance import cpu_model

    if as_json:
        return json.dumps(rows, indent=2)
    names = [name for name in rows[0] if not name.endswith(("_low", "_high"))]
    cells = [[row[name] for name in names] for row in rows]
    headers = [name.replace("_", " ") for name in names]
    title = f"{cpu_model()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    note = "medians over interleaved rounds; --json adds their quartiles"
    return f"{title}; {note}\n\n{tabulate(cells, headers, floatfmt=',.3g', intfmt=',')}"
