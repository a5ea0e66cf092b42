"""Runs that several processes compute together: ``accelerate launch -m qalib train ...``."""

from collections.abc import Callable, Mapping
from pathlib import Path

from qalib.study.entries import Run, read_run
from qalib.study.store import Store


def get_or_run(
    store: Store,
    stage: str,
    config: object,
    compute: Callable[[Path], dict],
    *,
    inputs: Mapping[str, str],
    force: bool | str = False,
) -> Run:
    """``Store.get_or_run`` for one process or many.

    The main process asks the store. If the run has to be computed, it tells the others the working
    folder, and all of them call ``compute`` with it; only the main one's files and metrics count.
    """
    from accelerate import Accelerator

    state = Accelerator(mixed_precision="no")
    if state.num_processes == 1:
        return store.get_or_run(stage, config, compute, inputs=inputs, force=force)
    if not state.is_main_process:
        if work := _hear():
            compute(Path(work))
        return read_run(Path(_hear()))
    told = []

    def announced(work: Path) -> dict:
        told.append(_tell(str(work)))
        return compute(work)

    run = store.get_or_run(stage, config, announced, inputs=inputs, force=force)
    if not told:
        _tell("")
    _tell(str(run.folder))
    return run


def _tell(text: str) -> str:
    """Send a text from the main process to all others."""
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([text])[0]


def _hear() -> str:
    """Wait for the text that the main process sends."""
    return _tell("")
