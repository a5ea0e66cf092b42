"""Brings outputs of an executed notebook back into its source, small enough to be read."""

import base64
import io
import json
from pathlib import Path

from qalib.errors import QalibError
from qalib.study.files import write_whole

LARGEST = 200_000  # bytes of a committed notebook, outputs included
WIDEST = 900  # pixels of a picture in a notebook that would be too large


def bring_back(path: Path, executed: Path) -> None:
    """Copy the outputs of an executed notebook into its source, cell by cell.

    Cells are numbered from 1; warnings, widget state and papermill's own marks stay behind.
    Raises QalibError if the file would become too large to be read on GitHub with pleasure.
    """
    import nbformat

    notebook, ran = nbformat.read(path, as_version=4), nbformat.read(executed, as_version=4)
    done = {cell.id: cell for cell in ran.cells if cell.cell_type == "code"}
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, cell in enumerate(code, 1):
        cell.execution_count = number
        cell.outputs = [o for o in done[cell.id].outputs if o.get("name") != "stderr"]
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = number
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    for mark in ("papermill", "widgets"):
        notebook.metadata.pop(mark, None)
    text = nbformat.writes(notebook) + "\n"
    if len(text.encode()) > LARGEST:
        for cell in code:
            _shrink_pictures(cell.outputs)
        text = nbformat.writes(notebook) + "\n"
    if len(text.encode()) > LARGEST:
        sizes = {cell.id: len(json.dumps(cell.outputs)) for cell in code}
        worst = sorted(sizes, key=sizes.get, reverse=True)[:3]
        told = ", ".join(f"[{name}] {sizes[name] // 1000} KB" for name in worst)
        raise QalibError(
            f"{path.name}: its outputs would make it {len(text.encode()) // 1000} KB, more than "
            f"{LARGEST // 1000}; let these cells show less: {told}."
        )
    if text != path.read_text(encoding="utf-8"):
        write_whole(path, text)


def _shrink_pictures(outputs: list) -> None:
    """Make png pictures small: no wider than ``WIDEST``, 64 colours."""
    from PIL import Image

    for output in outputs:
        if "image/png" in output.get("data", {}):
            picture = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
            picture.thumbnail((WIDEST, 10 * WIDEST))
            buffer = io.BytesIO()
            picture.convert("RGB").quantize(64).save(buffer, "PNG", optimize=True)
            output.data["image/png"] = base64.b64encode(buffer.getvalue()).decode()
