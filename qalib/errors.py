"""The one exception that a user's mistake raises, and the warning for what is tolerated."""


class QalibError(Exception):
    """A user's mistake: one sentence with the file, the place and the way out.

    The command line prints it as a single line and exits with status 2.
    """


class DataWarning(UserWarning):
    """What was tolerated in a file: one sentence that counts it and names the first."""
