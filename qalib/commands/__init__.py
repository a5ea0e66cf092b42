"""The commands of ``python -m qalib``, a module each; ``qalib.__main__`` registers them.

A module imports only typer and light modules at its top, so that ``--help`` starts at once.
"""
