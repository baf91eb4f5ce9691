"""The one exception that means: the user can mend this."""


class UserError(ValueError):
    """A setting, a path or a file that cannot work.

    The message says what was wrong, what is allowed, and where to change it; the command line
    shows the message alone, without a traceback.
    """
