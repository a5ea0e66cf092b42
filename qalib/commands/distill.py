"""The ``distill`` command."""


def distill_command() -> None:
    """Not written yet."""
