"""Generation by a server with OpenAI's completions protocol, with token ids in and out.

    engine = CompletionsEngine("http://127.0.0.1:8000/v1", max_positions=2048, ids_of=tokenizer.encode)
    results = engine.generate(requests, Sampling(temperature=0.8), stop_ids={end_id}, allowed=ids)

Written for vLLM (docs.vllm.ai, "OpenAI-Compatible Server"), which accepts everything that is sent: prompts as ids, a
seed per request, `allowed_token_ids`, `stop_token_ids` and `return_token_ids`. A server without the last must return
text with its special tokens (`skip_special_tokens` false), which `ids_of` encodes. A server without `allowed_token_ids`
may generate other ids; such a result counts as not stopped. transformers 5.23's own `serve` cannot be used: it accepts
prompts only as text, and removes special tokens from its answers.

The server defines what a seed generates, and whether a result depends on the other requests. Observed with vLLM 0.32.0:
- It takes sampling settings that are not sent from the model's `generation_config.json`, so all are sent.
- It reduces `max_tokens` to what its context leaves, and answers 200. This is reported as an error here.
- A seed applies to a whole request, so each prompt is a separate request.
- After SIGTERM it keeps pending requests open without an answer; only `timeout_sec` ends them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from weft.engine.sampling import Generated, Request, Sampling, is_looping
from weft.engine.server import Server
from weft.errors import UserError

_NEUTRAL = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


class CompletionsEngine:
    """Generation by the first model that a server lists, with `concurrency` requests at a time.

    Refused connections, timeouts, server errors and malformed answers are retried after 1, 2, 4 and 8 times `wait_sec`.
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
        """`url` is the part before `/completions`. Raises UserError if it is not a URL."""
        self.max_positions, self._ids_of, self._concurrency = max_positions, ids_of, concurrency
        self._server = Server(url, timeout_sec, wait_sec)

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        stop_ids: Collection[int] = (),
        allowed: Collection[int] | None = None,
        max_repeats: int | None = None,
    ) -> list[Generated]:
        """Generate as `Engine.generate` does. Raises UserError if the server does not answer with completions."""
        model = self._server.ask("models", None, lambda answer: str(answer["data"][0]["id"])) if requests else ""
        settings: dict[str, Any] = {
            "model": model,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k or 0,  # 0 means all
            "top_p": sampling.top_p,
            **_NEUTRAL,
            "stop_token_ids": sorted(stop_ids),
            "return_token_ids": True,
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
        }
        if allowed is not None:
            settings["allowed_token_ids"] = sorted(allowed)
        known = None if allowed is None else frozenset(allowed) | frozenset(stop_ids)

        def complete(request: Request) -> Generated:
            if not request.max_new_tokens:
                return Generated([], False)
            body = settings | {
                "prompt": list(request.ids),
                "max_tokens": request.max_new_tokens,
                "seed": request.seed % 2**63,  # servers accept signed 64-bit integers
            }
            return self._server.ask(
                "completions", body, lambda answer: self._generated(answer, request, stop_ids, known)
            )

        pool = ThreadPoolExecutor(self._concurrency)
        try:
            results = list(pool.map(complete, requests))
        finally:
            pool.shutdown(cancel_futures=True)
        looping = is_looping([g.ids for g in results], max_repeats)
        return [Generated(g.ids, g.stopped and not loops) for g, loops in zip(results, looping, strict=True)]

    def _generated(
        self, answer: Any, request: Request, stop_ids: Collection[int], known: frozenset[int] | None
    ) -> Generated:
        """Convert an answer. Raises ValueError, LookupError or TypeError for one that is not a completion.

        Raises UserError for one that the server's context length truncated.
        """
        [choice] = answer["choices"]
        reason, ids = choice["finish_reason"], choice.get("token_ids")
        if reason not in ("stop", "length"):  # vLLM also has "abort", for an incomplete answer
            raise ValueError(f"its finish_reason is {reason!r}")
        if ids is None:
            ids = self._ids_of(choice["text"])
            num_returned = (answer.get("usage") or {}).get("completion_tokens", len(ids))
            if num_returned > len(ids) + 1:  # the stop id is often missing from the text
                raise ValueError(f"its text has {len(ids)} of {num_returned} tokens, and token_ids are missing")
        else:
            num_returned = len(ids)
        if not all(type(i) is int for i in ids) or len(ids) > request.max_new_tokens:
            raise ValueError(
                f"it has {len(ids)} ids for {request.max_new_tokens} requested, or ids that are not integers"
            )
        if reason == "length" and num_returned < request.max_new_tokens:
            raise UserError(
                f"{self._server.url} stopped after {num_returned} of {request.max_new_tokens} ids for a prompt of "
                f"{len(request.ids)}: start it with a context of {self.max_positions} (vLLM: --max-model-len)"
            )
        end = next((n for n, i in enumerate(ids) if i in stop_ids), None)
        ids = ids[:end]
        has_others = known is not None and not known.issuperset(ids)
        return Generated(ids, not has_others and (end is not None or reason == "stop"))
