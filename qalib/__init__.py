"""qalib: models, losses and measurements for efficient extractive question answering."""

__version__ = "0.1.0"


def open_study(name: str, profile: str, seed: int = 0):
    """Open the study of a notebook: see ``qalib.study.session.open_study``."""
    from qalib.study.session import open_study

    return open_study(name, profile, seed)
