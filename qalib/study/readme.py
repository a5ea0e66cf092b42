"""The table of results in the README, made from the recorded runs of ``evaluate``.

``data/results/table.toml`` has a row for each of its lines:

    test = "f7d2..."            # content hash of the test data
    [[row]]
    label = "MiniLM-L6, as trained"
    reader = "encoder"          # the label of the reader in the records
    test = "4cb4..."            # if it is not that at the top
    paper = "bst-bert-base-em"  # a claim of data/paper to stand beside its EM, if there is one

Runs of one reader that differ in their seed share a row: mean and spread.
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
    """The table as markdown. Raises QalibError for a damaged record or a broken table.toml."""
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
    """The README with the table of the records. Raises QalibError if it has no place for one."""
    head, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise QalibError(f"{path}: has no lines {BEGIN} and {END} to put the table between.")
    return f"{head}{begin}\n\n{readme_table(records)}\n\n{end}{tail}"
