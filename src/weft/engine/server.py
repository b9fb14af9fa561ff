"""Requests to a server with OpenAI's protocol, with retries.

    server = Server("http://127.0.0.1:8000/v1")
    name = server.ask("models", None, lambda answer: answer["data"][0]["id"])
    text = server.ask("chat/completions", body, lambda answer: answer["choices"][0]["message"]["content"])

Credentials are those of the URL, or a key.
"""

from __future__ import annotations

import base64
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from weft.errors import UserError

_MAX_ATTEMPTS = 5
_TRANSIENT = (408, 425, 429)  # client errors after which another attempt may succeed


class Server:
    """A server by the part of its URL before `/completions`.

    Refused connections, timeouts, server errors and malformed answers are retried after 1, 2, 4 and 8 times `wait_sec`.
    """

    def __init__(self, url: str, timeout_sec: float = 300.0, wait_sec: float = 1.0, key: str | None = None) -> None:
        """`key` is sent as a bearer token if the URL has no credentials. Raises UserError if `url` is not a URL."""
        if not url.startswith(("http://", "https://")):
            raise UserError(f"{url!r} is not the URL of a server: give one such as http://127.0.0.1:8000/v1")
        self.url, credentials = _without_credentials(url.rstrip("/"))
        self._authorization = f"Basic {credentials}" if credentials else f"Bearer {key}" if key else ""
        self._timeout_sec, self._wait_sec = timeout_sec, wait_sec

    def ask(self, path: str, body: dict[str, Any] | None, read: Callable[[Any], Any]) -> Any:
        """Return `read` of the server's answer. Raises UserError if it rejects the request or fails five times."""
        address = f"{self.url}/{path}"
        data = None if body is None else json.dumps(body).encode()
        for attempt in range(_MAX_ATTEMPTS):
            if attempt:
                time.sleep(self._wait_sec * 2 ** (attempt - 1))
            try:
                call = urllib.request.Request(address, data, {"Content-Type": "application/json"})
                if self._authorization:  # not for the target of a redirect
                    call.add_unredirected_header("Authorization", self._authorization)
                with urllib.request.urlopen(call, timeout=self._timeout_sec) as response:
                    return read(json.loads(response.read()))
            except urllib.error.HTTPError as e:
                with e:
                    reason = f"it answered {e.code}: {e.read(300).decode(errors='replace').strip()}"
                if e.code < 500 and e.code not in _TRANSIENT:
                    raise UserError(f"{address} rejected the request: {' '.join(reason.split())}") from None
            except (OSError, HTTPException) as e:
                reason = str(getattr(e, "reason", e)) or type(e).__name__
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as e:
                reason = f"its answer cannot be read ({e})"
        reason = " ".join(reason.split())
        raise UserError(f"{address} failed {_MAX_ATTEMPTS} times ({reason}): check that the server runs there")


def _without_credentials(url: str) -> tuple[str, str]:
    """Return a URL without user information, which urllib would take for a part of the host, and that in base64."""
    try:
        parts = urlsplit(url)
        user, _, host = parts.netloc.rpartition("@")
        if parts.port == 0 or not parts.hostname:
            raise ValueError("no host")
    except ValueError as e:  # of the port too; neither message is shown, because a password may be read as a port
        raise UserError("the URL of the server has no valid host: give one such as http://127.0.0.1:8000/v1") from e
    return parts._replace(netloc=host).geturl(), base64.b64encode(unquote_to_bytes(user)).decode()
