"""Progress bars: on a terminal, or as one line in a file for the notebook runner."""

import contextlib
import os
from pathlib import Path


def progress_bar(total: int, task: str, unit: str, initial: int = 0, show: bool = False):
    """A tqdm bar, shown if ``show`` is true and the output is a terminal.

    If QALIB_PROGRESS names a file, the state is written there instead, as "train: step 40 of 520,
    01:10 left", for the notebook runner to report.
    """
    from tqdm import tqdm

    options = {"total": total, "desc": task, "unit": unit, "initial": initial}
    if path := os.environ.get("QALIB_PROGRESS"):
        line = "{desc}: {unit} {n_fmt} of {total_fmt}, {remaining} left"
        return tqdm(**options, file=_LastLine(Path(path)), mininterval=2.0, bar_format=line)
    disable = None if show else True  # None: a bar on a terminal only
    return tqdm(**options, mininterval=1.0, dynamic_ncols=True, disable=disable)


class _LastLine:
    """A text stream that keeps the last line written to it in a file."""

    def __init__(self, path: Path):
        self.path = path

    def write(self, text: str) -> None:
        if line := text.strip("\r\n "):
            with contextlib.suppress(OSError):  # progress must not stop the work
                self.path.write_text(line, encoding="utf-8")

    def flush(self) -> None:
        """Nothing is buffered."""
