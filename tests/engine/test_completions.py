"""The completions engine with a local server that implements the published protocol and answers as a test needs."""

import base64
import json
import threading

import pytest

from tests.completions import StandIn, completion, served
from weft.engine.completions import CompletionsEngine
from weft.engine.sampling import Generated, Request, Sampling
from weft.errors import UserError

END = 9


def count_up(body):
    """Answer with the ids from the prompt's last one to the end."""
    first = body["prompt"][-1]
    ids = [*range(first, END + 1)][: body["max_tokens"]]
    return 200, completion(token_ids=ids, finish_reason="stop" if END in ids else "length")


def read_ids(text):
    return [int(word) for word in text.split()]


@pytest.fixture
def stand_in():
    return StandIn(count_up)


@pytest.fixture
def engine(stand_in):
    with served(stand_in) as url:
        yield CompletionsEngine(url, 128, read_ids, concurrency=4, timeout_sec=2.0, wait_sec=0.001)


def generate(engine, *requests, **settings):
    return engine.generate(requests, Sampling(temperature=0.5, top_p=0.9), {END}, range(10), **settings)


def test_requests_are_sent_completely_and_results_are_in_order(stand_in, engine):
    requests = [Request([50, i % 9], 1 + i % 5, seed=2**63 + i) for i in range(40)]
    found = generate(engine, *requests)
    for i, (request, generated) in enumerate(zip(requests, found, strict=True)):
        ids = [*range(i % 9, END + 1)][: request.max_new_tokens]
        assert generated == Generated([i for i in ids if i != END], END in ids)
    sent = next(b for b in stand_in.bodies if b["seed"] == 3)
    assert sent["prompt"] == [50, 3]
    assert (sent["model"], sent["max_tokens"], sent["temperature"], sent["top_p"]) == ("spoken", 4, 0.5, 0.9)
    assert (sent["allowed_token_ids"], sent["stop_token_ids"]) == ([*range(10)], [END])
    assert sent["return_token_ids"] is True
    assert len({b["seed"] for b in stand_in.bodies}) == 40


def test_no_sampling_setting_is_left_to_the_defaults_of_the_server(stand_in, engine):
    generate(engine, Request([1], 3))
    neutral = {"top_k": 0, "min_p": 0, "repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}
    assert neutral.items() <= stand_in.bodies[0].items()
    engine.generate([Request([1], 3)], Sampling(top_k=7))
    assert stand_in.bodies[1]["top_k"] == 7


def test_at_most_concurrency_requests_are_pending(stand_in, engine):
    barrier = threading.Barrier(4)

    def together(body):
        barrier.wait(timeout=60)  # for four requests
        return count_up(body)

    stand_in.answer = together
    generate(engine, *[Request([1], 3, seed=i) for i in range(20)])
    assert stand_in.most_at_once == 4


def test_an_answer_without_ids_is_encoded_from_its_text(stand_in, engine):
    stand_in.answer = lambda body: (200, completion(text="4 5 6", finish_reason="stop"))
    assert generate(engine, Request([1], 5)) == [Generated([4, 5, 6], True)]
    stand_in.answer = lambda body: (200, completion(text="4 5 6", finish_reason="length"))
    assert generate(engine, Request([1], 3)) == [Generated([4, 5, 6], False)]


def test_answers_with_other_ids_or_a_loop_count_as_not_stopped(stand_in, engine):
    stand_in.answer = lambda body: (200, completion(token_ids=[4, 70, 5, END], finish_reason="stop"))
    assert generate(engine, Request([1], 9)) == [Generated([4, 70, 5], False)]
    stand_in.answer = lambda body: (200, completion(token_ids=[4, 4, 4, 4, END], finish_reason="stop"))
    assert generate(engine, Request([1], 9), max_repeats=3) == [Generated([4, 4, 4, 4], False)]
    assert generate(engine, Request([1], 9), max_repeats=4) == [Generated([4, 4, 4, 4], True)]


GOOD = completion(token_ids=[4, END], finish_reason="stop")
TRANSIENT = {
    "overloaded": (503, {"error": {"message": "busy"}}),
    "too many": (429, {"error": {"message": "slow down"}}),
    "not JSON": (200, b"<html>gateway</html>"),
    "no choices": (200, {"choices": []}),
    "two choices": (200, {"choices": [{"index": i, "token_ids": [4, END], "finish_reason": "stop"} for i in (0, 1)]}),
    "another shape": (200, [1, 2]),
    "nested lists": (200, b"[" * 100_000),
    "booleans": (200, completion(token_ids=[True, END], finish_reason="stop")),
    "not ids": (200, completion(token_ids=["a"], finish_reason="stop")),
    "too many ids": (200, completion(token_ids=[1] * 50, finish_reason="stop")),
    "aborted": (200, completion(token_ids=[4, 5], finish_reason="abort")),
    "without special tokens": (200, {**completion(text="", finish_reason="stop"), "usage": {"completion_tokens": 7}}),
    "truncated": (200, json.dumps(GOOD).encode()[:-9]),
}


@pytest.mark.parametrize("name", TRANSIENT)
def test_a_request_is_repeated_after_a_transient_error(name, stand_in, engine):
    stand_in.answer = lambda body: TRANSIENT[name] if len(stand_in.bodies) < 4 else (200, GOOD)
    assert generate(engine, Request([1], 5)) == [Generated([4], True)]
    assert len(stand_in.bodies) == 4


@pytest.mark.parametrize("name", TRANSIENT)
def test_an_error_that_persists_is_one_line(name, stand_in, engine):
    stand_in.answer = lambda body: TRANSIENT[name]
    with pytest.raises(UserError, match=r"/completions failed 5 times \(.*\): check that the server runs there") as e:
        generate(engine, *[Request([1], 5, seed=i) for i in range(3)])
    assert "\n" not in str(e.value)


def test_a_rejected_request_is_not_repeated(stand_in, engine):
    stand_in.answer = lambda body: (400, {"error": {"message": "prompt must be a string"}})
    with pytest.raises(UserError, match=r"rejected the request: it answered 400: .*prompt must be a string"):
        generate(engine, Request([1], 5))
    assert len(stand_in.bodies) == 1


@pytest.mark.parametrize("more", [{"token_ids": [4, 5]}, {"text": "4 5"}])
def test_an_answer_truncated_by_the_context_of_the_server_is_an_error(more, stand_in, engine):
    stand_in.answer = lambda body: (200, completion(finish_reason="length", **more))
    assert generate(engine, Request([1], 2)) == [Generated([4, 5], False)]
    with pytest.raises(UserError, match="stopped after 2 of 5 ids for a prompt of 3: start it with a context of 128"):
        generate(engine, Request([1, 2, 3], 5))
    assert len(stand_in.bodies) == 2


def test_a_server_that_does_not_answer_is_abandoned(stand_in):
    over = threading.Event()

    def silent(body):
        over.wait(5)
        return 200, GOOD

    stand_in.answer = silent
    with served(stand_in) as url:
        engine = CompletionsEngine(url, 128, read_ids, timeout_sec=0.05, wait_sec=0.001)
        try:
            with pytest.raises(UserError, match=r"failed 5 times \(.*timed out"):
                generate(engine, Request([1], 5))
        finally:
            over.set()


def test_a_missing_server_and_an_invalid_url_are_errors():
    engine = CompletionsEngine("http://127.0.0.1:9/v1", 128, read_ids, wait_sec=0.001)
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9/v1/models failed 5 times \(.*refused"):
        generate(engine, Request([1], 5))
    assert engine.generate([], Sampling()) == []
    with pytest.raises(UserError, match="'localhost:8000' is not the URL of a server"):
        CompletionsEngine("localhost:8000", 128, read_ids)


def test_credentials_of_the_url_are_sent_and_never_printed(stand_in):
    with served(stand_in) as url:
        secret = url.replace("//", "//me:p%40ssword@")
        engine = CompletionsEngine(secret, 128, read_ids, concurrency=1, timeout_sec=2.0, wait_sec=0.001)
        assert generate(engine, Request([8], 3)) == [Generated([8], True)]
    assert stand_in.headers[-1]["Authorization"] == "Basic " + base64.b64encode(b"me:p@ssword").decode()
    with pytest.raises(UserError, match=r"http://127.0.0.1:\d+/v1/models failed 5 times") as found:
        generate(engine, Request([8], 3))
    assert "ssword" not in str(found.value)


@pytest.mark.parametrize(
    "url", ["http://me:password/x@host/v1", "http://[password/v1", "http://me:password", "http:///"]
)
def test_a_url_without_a_valid_host_is_rejected_and_not_printed(url):
    with pytest.raises(UserError, match="the URL of the server has no valid host") as found:
        CompletionsEngine(url, 128, read_ids)
    assert "password" not in str(found.value)
