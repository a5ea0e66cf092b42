"""The one exception that a user's mistake raises."""


class QalibError(Exception):
    """A mistake that its maker can mend: one sentence with the file, the place and the way out.

    The command line prints it as a single line and exits with status 2; nothing else in the kit
    turns an exception into text.
    """
