"""The ``train`` command."""


def train_command() -> None:
    """Not written yet."""
