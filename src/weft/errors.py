"""Errors that a user can fix, and how errors are described in messages.

Raise `UserError("<path or setting> <problem>: <what to do>")`. The command line prints it as one line and exits with
status 2. Errors in weft itself are assertions.

    try: item = read(path)
    except Exception as e: skipped.add(path, reason_of(e))      # one bad item never ends a job
"""

import re

_URL_SECRETS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,31}://)(?:[^/\s@]{1,256}@)?([^\s?'\"]*)(?:\?[^\s'\")]*)?")
_MAX_REASON = 500


class UserError(Exception):
    """Invalid input, settings or environment, with a message of one line: what is wrong, where, and what to do."""


def reason_of(error: BaseException) -> str:
    """Return an error as one line: the first line of its message, or what its type means if it has none."""
    lines = str(error).strip().splitlines()
    if isinstance(error, MemoryError):
        reason = "not enough memory"
    elif isinstance(error, KeyError):
        reason = f"missing {error}"
    else:
        reason = lines[0].rstrip(":. ") if lines else type(error).__name__
    return printable(without_secrets(reason))[:_MAX_REASON]


def printable(text: str) -> str:
    """Return `text` with control characters, direction marks and invalid Unicode as escapes such as \\x1b."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def without_secrets(text: str) -> str:
    """Return `text` without the user information and the query strings of the URLs in it."""
    return _URL_SECRETS.sub(r"\1\2", text)
