"""Errors that a user can fix, and how errors are described in messages.

Raise `UserError("<path or setting> <problem>: <what to do>")`. The command line prints it as one line and exits with
status 2. Errors in weft itself are assertions; they are printed as one line too, with status 1.

    try: item = read(path)
    except Exception as e: skipped.add(path, reason_of(e))      # one bad item never ends a job
"""

import errno
import re
import traceback
import unicodedata
from pathlib import Path

_URL_SECRETS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{1,31}:/{1,3})(?:[^/\s?]{1,4096}@)?([^\s?'\"]*)(?:\?[^\s'\")]*)?")
_MAX_REASON = 500
_PACKAGE = str(Path(__file__).parent)

_RESUME = "and run the same command again to resume"
_SPACE = f"free some space, {_RESUME}"
_PERMISSIONS = "check its permissions, or choose another path"
_IS_FILE = "a part of this path is a file: choose another path"
_FILES = f"raise the limit of open files (ulimit -n), {_RESUME}"
_DISK = f"check the disk or the network file system, {_RESUME}"
_REMEDIES = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EACCES: _PERMISSIONS,
    errno.EPERM: _PERMISSIONS,
    errno.EROFS: "choose a directory that you can write to",
    errno.EEXIST: _IS_FILE,
    errno.ENOTDIR: _IS_FILE,
    errno.EISDIR: "it is a directory: give a file",
    errno.ENOENT: "check this path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "it is a symbolic link that leads nowhere, or must not be one: give its target",
    errno.EFBIG: f"raise the limit of the size of files (ulimit -f), or choose another file system, {_RESUME}",
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
    errno.EIO: _DISK,
    errno.ESTALE: _DISK,
}
_OF_FILES = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL)


class UserError(Exception):
    """Invalid input, settings or environment, with a message of one line: what is wrong, where, and what to do.

    The message is printed without credentials, wherever it is printed.
    """

    def __str__(self) -> str:
        return without_secrets(super().__str__())


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
    """Return `text` with control characters, direction marks and invalid Unicode as escapes such as \\x1b.

    The spaces of all languages and the joiners of Persian, Hindi and emoji are kept.
    """
    return "".join(c if c.isprintable() or _is_of_text(c) else _escaped(c) for c in text)


def _is_of_text(character: str) -> bool:
    return character in "\u200c\u200d" or unicodedata.category(character) == "Zs"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()


def without_secrets(text: str) -> str:
    """Return `text` without the user information and the query strings of the URLs in it, also of those in a Path."""
    return _URL_SECRETS.sub(r"\1\2", text)


def line_and_status(error: BaseException) -> tuple[str, int]:
    """Return the line that the command prints for an error, and its exit status: 2 if a user can fix it, else 1."""
    if isinstance(error, UserError):
        return printable(str(error)), 2
    if is_out_of_memory(error):
        remedy = "reduce the size of batches, raise grad_accum_steps, or use fewer workers"
        return f"not enough memory ({reason_of(error)}): {remedy}", 2
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        where = f"{error.filename}: " if error.filename else ""
        return printable(without_secrets(f"{where}{error.strerror}; {_REMEDIES[error.errno]}")), 2
    remedy = "run with WEFT_DEBUG=1 for the traceback, and report it"
    return f"internal error: {type(error).__name__}: {reason_of(error)} ({_location(error)}); {remedy}", 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory has run out, of the host or of a GPU (torch raises RuntimeErrors for both)."""
    text = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )


def is_of_machine(error: BaseException) -> bool:
    """Whether an error while reading a file is no property of the file: no memory, no permission, a failing disk."""
    return is_out_of_memory(error) or (
        isinstance(error, OSError) and error.errno in _REMEDIES and error.errno not in _OF_FILES
    )


def _location(error: BaseException) -> str:
    """Return the file and line of weft, or else of a library, where an error was raised, possibly in a worker."""
    remote = type(error.__cause__).__name__ == "_RemoteTraceback"  # its text is the traceback of a worker process
    text = str(error.__cause__) if remote else "".join(traceback.format_tb(error.__traceback__))
    found = re.findall(r'File "(.+)", line (\d+)', text) or [("unknown", "0")]
    path, line = next((f for f in reversed(found) if f[0].startswith(_PACKAGE)), found[-1])
    return f"{path.removeprefix(_PACKAGE).lstrip('/')}:{line}"
