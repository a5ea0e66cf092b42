"""Save figures together with their data points and provenance.

Every figure is four files in ``figures/<profile>/``: ``name.png``, ``name.svg`` (the same bytes
whenever the points are the same), ``name.csv`` with the points and ``name.json`` with the
provenance: notebook and cell, runs and data. Versions, commit and date are in the stamp of the
notebook and in the records of the runs. Only ``figures/study/`` is committed.
"""

import hashlib
import io
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from qalib.errors import QalibError
from qalib.files import log_usage, pretty, write_atomically
from qalib.paths import ROOT

if TYPE_CHECKING:
    from qalib.study.session import Study

FIGURES = ROOT / "figures"
NOTEBOOKS = ROOT / "notebooks"
STABLE_SVG = {"svg.fonttype": "path", "svg.hashsalt": "qalib"}  # the same bytes on every machine


def save_figure(
    study: "Study", name: str, fig, data, caption: str = "", folder: Path = FIGURES
) -> Path:
    """Save a matplotlib figure as png and svg with its points and provenance, and close it.

    ``data``: the points, a DataFrame or anything that pandas makes one of. Returns the path of the
    png. Raises QalibError for a name with other characters than a-z, 0-9, - and _.
    """
    import matplotlib.pyplot as plt
    import pandas as pd

    profile = study.profile.name
    for what, word in (("figure", name), ("profile", profile)):
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", word):
            raise QalibError(
                f"The {what} {word!r} must be named by small letters, digits, - and _."
            )
    stem = folder / profile / name
    table = pd.DataFrame(data)
    has_names = table.index.name is not None or not isinstance(table.index, pd.RangeIndex)
    contents = {
        "png": _render(fig, "png", {"Software": None}),
        "svg": _render(fig, "svg", {"Date": None}),
        "csv": table.to_csv(index=has_names, lineterminator="\n").encode(),
    }
    plt.close(fig)
    for kind, content in contents.items():
        write_atomically(stem.with_name(f"{name}.{kind}"), content)
    record = {
        "figure": name,
        "caption": caption,
        "notebook": study.name,
        "cell": _cell_that_names(study.name, name),
        "profile": profile,
        "seed": study.seed,
        "runs": sorted(study.runs),
        "data": {data.name: data.provenance() for data in study.datasets.values()},
        "sha256": {kind: hashlib.sha256(content).hexdigest() for kind, content in contents.items()},
    }
    write_atomically(stem.with_name(f"{name}.json"), pretty(record, f"figure {name}"))
    log_usage("figure", name, record["sha256"])
    return stem.with_name(f"{name}.png")


def _render(fig, kind: str, metadata: dict) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context(STABLE_SVG):
        fig.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    return buffer.getvalue()


def _cell_that_names(notebook: str, name: str) -> str | None:
    """The id of the cell that draws a figure: the first whose source has its name in quotes."""
    path = NOTEBOOKS / f"{notebook}.ipynb"
    if not path.exists():
        return None
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code" and re.search(rf"['\"]{name}['\"]", "".join(cell["source"])):
            return cell.get("id")
    return None
