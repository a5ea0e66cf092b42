"""qalib: models, losses and measurements for efficient extractive question answering."""

__version__ = "0.1.0"
__all__ = ["open_study"]


def __getattr__(name: str):
    """Import ``open_study``, with which every notebook begins, when it is first used."""
    if name == "open_study":
        from qalib.study.session import open_study

        return open_study
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
