"""qalib: models, losses and measurements for efficient extractive question answering."""

__version__ = "0.1.0"
