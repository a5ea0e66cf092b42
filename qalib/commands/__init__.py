"""The commands of ``python -m qalib``, one module each; ``qalib.__main__`` registers them.

At the top, a module imports only typer and light modules, so that ``--help`` responds at once.
"""
