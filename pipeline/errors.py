"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Something the user can mend: says what was wrong, where, and what to do.

    The command lines print its message without a traceback and exit with `exit_status`.
    """

    exit_status = 2
