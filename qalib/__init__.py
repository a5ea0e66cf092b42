"""qalib: models, losses and measurements for efficient extractive question answering."""

__version__ = "0.1.0"
__all__ = ["open_study", "pipeline"]


def __getattr__(name: str):
    """Import ``open_study`` (the start of every notebook) or ``pipeline`` only when it is used."""
    homes = {"open_study": "qalib.study.session", "pipeline": "qalib.pipelines"}
    if name in homes:
        from importlib import import_module

        return getattr(import_module(homes[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
