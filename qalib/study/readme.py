"""The table of results in the README, made from the recorded runs of ``evaluate``.

``data/results/table.toml`` has one entry per row of the table:

    test = "f7d2..."            # content hash of the test data
    [[row]]
    label = "MiniLM-L6, as trained"
    reader = "encoder"          # the label of the reader in the records
    test = "4cb4..."            # optional, in place of the one at the top
    paper = "bst-bert-base-em"  # optional, the claim in data/paper to show beside its EM

All recorded runs of a reader on a test set (its seeds) share a row: mean and standard deviation.
"""

import tomllib
from pathlib import Path

from qalib.errors import QalibError
from qalib.paths import ROOT
from qalib.study.claims import load_claims, markdown_table, mean_and_spread
from qalib.study.run_cache import RECORDS, read_records

README = ROOT / "README.md"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def readme_table(records: Path = RECORDS) -> str:
    """The table as markdown. Raises QalibError for a damaged record or an invalid table.toml."""
    runs, claims = read_records(records / "evaluate.jsonl").values(), load_claims()
    path, table = records / "table.toml", []
    try:
        spec = tomllib.loads(path.read_text(encoding="utf-8"))
        for row in spec["row"]:
            chosen = row["reader"], row.get("test", spec["test"])
            found = [
                run.metrics for run in runs if (run.config["reader"], run.inputs["test"]) == chosen
            ]
            mean = {
                name: mean_and_spread([metrics[key] for metrics in found]) if found else "-"
                for name, key in (("EM", "exact_match"), ("F1", "f1"))
            }
            paper = claims[row["paper"]].value if "paper" in row else "-"
            questions = f"{found[0]['questions']:,}" if found else "-"
            columns = {"EM, paper": paper, "questions": questions, "seeds": len(found)}
            table.append({"": row["label"], **mean, **columns})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise QalibError(f"{path}: a row cannot be shown ({error!r}).") from None
    return markdown_table(table)


def updated_readme(records: Path = RECORDS, path: Path = README) -> str:
    """The README with the current table. Raises QalibError if its two marker lines are missing."""
    head, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise QalibError(f"{path}: has no lines {BEGIN} and {END} to put the table between.")
    return f"{head}{begin}\n\n{readme_table(records)}\n\n{end}{tail}"
