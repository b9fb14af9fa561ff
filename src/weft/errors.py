"""The one exception for mistakes a user can mend.

Raise `UserError("what was wrong, where; what to do")`. The command line prints it as one line and exits with
status 2; a library caller catches it. Broken promises of our own code stay assertions.
"""


class UserError(Exception):
    """Bad input, settings or environment: the message is one line that names the thing and the remedy."""
