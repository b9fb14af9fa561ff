"""Ids in, ids out, by URL: `generate` from a server that speaks OpenAI's completions protocol with token ids.

    engine = CompletionsEngine("http://127.0.0.1:8000/v1", max_positions=2048, ids_of=tokenizer.encode)
    results = engine.generate(requests, Sampling(temperature=0.8), stop_ids={end_id}, allowed=ids)

Made for vLLM (docs.vllm.ai, "OpenAI-Compatible Server"), which takes all that is sent: prompts as ids, a seed for each
request, `allowed_token_ids`, `stop_token_ids`, and `return_token_ids`. A server that leaves out the last must give text
with its special tokens (`skip_special_tokens` false), which `ids_of` reads. One that takes no `allowed_token_ids` may
write what is not allowed: such a row counts as run away. transformers 5.23's own `serve` takes prompts as text only,
and leaves special tokens out of its answers: it cannot be used.

What a seed draws is the server's affair, and whether a row's ids depend on its company too. Of vLLM 0.32.0 (CPU,
float32, a Llama of 1.7M parameters) was seen:
- 256 requests gave the same ids three times over, and 48 of them alone what they gave in company.
- It samples by the `generation_config.json` of the folder it serves, but for what is sent: all of that is sent.
- It cuts `max_tokens` to what its context leaves, and answers 200: that is refused here.
- A seed is one for a request, however many prompts it has, so each prompt is a request; the client is not what takes
  time: of 7 s for 512 requests, 0.5 s were its own.
- Stopped by SIGTERM, it keeps what it was asked waiting, and silent: only `timeout_sec` ends that.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any

from weft.engine.sampling import Generated, Request, Sampling, went_in_circles
from weft.errors import UserError

_TRIES = 5
_PASSING = (408, 425, 429)  # of the client's errors, those that another try can mend
_NEUTRAL = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


class CompletionsEngine:
    """The first model that a server lists, asked `concurrency` requests at a time.

    Refused connections, silence of `timeout_sec`, the server's own errors and answers that are none are tried again
    after 1, 2, 4 and 8 times `wait_sec`.
    """

    def __init__(
        self,
        url: str,
        max_positions: int,
        ids_of: Callable[[str], list[int]],
        concurrency: int = 64,
        timeout_sec: float = 300.0,
        wait_sec: float = 1.0,
    ) -> None:
        """`url` ends where `/completions` follows. Raises UserError when it is none."""
        if not url.startswith(("http://", "https://")):
            raise UserError(f"{url!r} is no URL of a server: give one such as http://127.0.0.1:8000/v1")
        self.max_positions = max_positions
        self._url, self._ids_of = url.rstrip("/"), ids_of
        self._concurrency, self._timeout_sec, self._wait_sec = concurrency, timeout_sec, wait_sec

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        stop_ids: Collection[int] = (),
        allowed: Collection[int] | None = None,
        max_repeats: int | None = None,
    ) -> list[Generated]:
        """What `Engine.generate` does. Raises UserError when the server does not answer, or not with completions."""
        model = self._ask("models", None, _first_model) if requests else ""
        asked: dict[str, Any] = {
            "model": model,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k or 0,  # 0 is all
            "top_p": sampling.top_p,
            **_NEUTRAL,
            "stop_token_ids": sorted(stop_ids),
            "return_token_ids": True,
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
        }
        if allowed is not None:
            asked["allowed_token_ids"] = sorted(allowed)
        known = None if allowed is None else frozenset(allowed) | frozenset(stop_ids)

        def complete(request: Request) -> Generated:
            if not request.max_new_tokens:
                return Generated([], False)
            body = asked | {
                "prompt": list(request.ids),
                "max_tokens": request.max_new_tokens,
                "seed": request.seed % 2**63,  # servers take signed ones
            }
            return self._ask("completions", body, lambda answer: self._generated(answer, request, stop_ids, known))

        pool = ThreadPoolExecutor(self._concurrency)
        try:
            results = list(pool.map(complete, requests))
        finally:
            pool.shutdown(cancel_futures=True)
        circling = went_in_circles([g.ids for g in results], max_repeats)
        return [Generated(g.ids, g.stopped and not c) for g, c in zip(results, circling, strict=True)]

    def _generated(
        self, answer: Any, request: Request, stop_ids: Collection[int], known: frozenset[int] | None
    ) -> Generated:
        """What a server's answer says. Raises ValueError, LookupError or TypeError for one that is no completion.

        Raises UserError for one that the server's context cut short.
        """
        [choice] = answer["choices"]
        reason, ids = choice["finish_reason"], choice.get("token_ids")
        if reason not in ("stop", "length"):  # vLLM has "abort" too: an answer without its end
            raise ValueError(f"it ended for the reason {reason!r}")
        if ids is None:
            ids = self._ids_of(choice["text"])
            num_said = (answer.get("usage") or {}).get("completion_tokens", len(ids))
            if num_said > len(ids) + 1:  # the stop id is often not in the text
                raise ValueError(f"its text has {len(ids)} of {num_said} tokens, and it gives no token_ids")
        else:
            num_said = len(ids)
        if not all(type(i) is int for i in ids) or len(ids) > request.max_new_tokens:
            raise ValueError(f"{len(ids)} ids where at most {request.max_new_tokens} were asked for")
        if reason == "length" and num_said < request.max_new_tokens:
            raise UserError(
                f"{self._url} stops at {num_said} of {request.max_new_tokens} ids after a prompt of {len(request.ids)}"
                f": let it take {self.max_positions} in all (of vLLM, --max-model-len)"
            )
        end = next((place for place, i in enumerate(ids) if i in stop_ids), None)
        said = ids[:end]
        strange = known is not None and not known.issuperset(said)
        return Generated(said, not strange and (end is not None or reason == "stop"))

    def _ask(self, path: str, body: dict[str, Any] | None, read: Callable[[Any], Any]) -> Any:
        """What `read` makes of the server's answer, asked again where that can help."""
        address = f"{self._url}/{path}"
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(self._wait_sec * 2 ** (attempt - 1))
            try:
                call = urllib.request.Request(address, data, headers)
                with urllib.request.urlopen(call, timeout=self._timeout_sec) as response:
                    return read(json.loads(response.read()))
            except urllib.error.HTTPError as e:
                with e:
                    reason = f"it answers {e.code}: {e.read(300).decode(errors='replace').strip()}"
                if e.code < 500 and e.code not in _PASSING:
                    raise UserError(f"{address} refuses the request; {' '.join(reason.split())}") from None
            except (OSError, HTTPException) as e:
                reason = str(getattr(e, "reason", e)) or type(e).__name__
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as e:
                reason = f"its answer cannot be read ({e})"
        told = " ".join(reason.split())
        raise UserError(f"{address} failed {_TRIES} times; {told}: see that a completions server runs there")


def _first_model(answer: Any) -> str:
    return str(answer["data"][0]["id"])
