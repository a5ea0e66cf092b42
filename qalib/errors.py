"""The exception for a user's mistakes, and the warning for tolerated problems in a file."""


class QalibError(Exception):
    """A user's mistake: one sentence that names the file, the place and how to correct it.

    The command line prints it as a single line and exits with status 2.
    """


class DataWarning(UserWarning):
    """Tolerated problems in a file: one sentence with their number and the first of them."""
