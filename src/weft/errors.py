"""The exception for everything that a user can fix.

Raise `UserError("<path or setting> <problem>: <what to do>")`. The command line prints it as one line and exits with
status 2. Errors in weft itself are assertions.
"""


class UserError(Exception):
    """Invalid input, settings or environment, with a message of one line: what is wrong, where, and what to do."""
