"""qalib: models, losses and measurements for efficient extractive question answering."""

__version__ = "0.1.0"


def start(name: str, profile: str, seed: int = 0):
    """Open a notebook's study: see ``qalib.study.session.start``."""
    from qalib.study.session import start

    return start(name, profile, seed)
