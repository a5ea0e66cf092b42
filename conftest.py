"""How pytest runs the notebooks (nbval, `pytest notebooks --nbval-lax`): one item a code cell.

This file lies at the top because hooks in tests/ do not reach items in notebooks/.
"""

import pytest

OUTPUT_TIMEOUT = 60  # seconds; nbval's own 5 is too short for a loaded machine and has no option
NEVER_COMPARED = ("stderr", "text/html")  # warnings and tables differ between versions

first_failure = pytest.StashKey[str]()


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Leave warnings and HTML out of the comparison of outputs."""
    if hasattr(collector, "skip_compare"):  # an nbval notebook
        collector.skip_compare += NEVER_COMPARED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give a cell's last message time to arrive."""
    for item in items:
        if hasattr(item, "output_timeout"):  # an nbval cell
            item.output_timeout = OUTPUT_TIMEOUT


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Run no cell behind a failed one of the same notebook: the report shows one cause."""
    if failed := item.parent.stash.get(first_failure, None):
        pytest.skip(f"{failed} of this notebook failed")


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> None:
    """Remember the first failing cell of a notebook; a cell that skips itself has not failed."""
    failed = call.excinfo and not call.excinfo.errisinstance(pytest.skip.Exception)
    if failed and hasattr(item, "cell_num"):
        item.parent.stash.setdefault(first_failure, item.name)
