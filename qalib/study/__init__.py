"""The study layer: profiles, recorded runs, figures, tables and the notebook runner."""
