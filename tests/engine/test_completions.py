"""The engine by URL, against a stand-in that keeps to the published protocol: what is sent, what is read, and what a
server that refuses, fails, or answers nonsense comes to."""

import json
import threading

import pytest

from tests.completions import StandIn, completion, served
from weft.engine.completions import CompletionsEngine
from weft.engine.generate import Generated, Request, Sampling
from weft.errors import UserError

END = 9


def count_up(body):
    """Ids from the prompt's last up to the end."""
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


def test_requests_are_sent_whole_and_answered_in_order(stand_in, engine):
    requests = [Request([50, i % 9], 1 + i % 5, seed=2**63 + i) for i in range(40)]
    found = generate(engine, *requests)
    for i, (request, generated) in enumerate(zip(requests, found, strict=True)):
        said = [*range(i % 9, END + 1)][: request.max_new_tokens]
        assert generated == Generated([c for c in said if c != END], END in said)
    sent = next(b for b in stand_in.bodies if b["seed"] == 3)
    assert sent["prompt"] == [50, 3]
    assert (sent["model"], sent["max_tokens"], sent["temperature"], sent["top_p"]) == ("spoken", 4, 0.5, 0.9)
    assert (sent["allowed_token_ids"], sent["stop_token_ids"]) == ([*range(10)], [END])
    assert sent["return_token_ids"] is True
    assert len({b["seed"] for b in stand_in.bodies}) == 40


def test_nothing_is_left_to_the_defaults_of_a_served_folder(stand_in, engine):
    generate(engine, Request([1], 3))
    neutral = {"top_k": 0, "min_p": 0, "repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}
    assert neutral.items() <= stand_in.bodies[0].items()
    engine.generate([Request([1], 3)], Sampling(top_k=7))
    assert stand_in.bodies[1]["top_k"] == 7


def test_no_more_requests_are_under_way_than_agreed(stand_in, engine):
    barrier = threading.Barrier(4)

    def together(body):
        barrier.wait(timeout=2)  # four come at once
        return count_up(body)

    stand_in.answer = together
    generate(engine, *[Request([1], 3, seed=i) for i in range(20)])
    assert stand_in.most_at_once == 4


def test_text_is_read_where_no_ids_are_given(stand_in, engine):
    stand_in.answer = lambda body: (200, completion(text="4 5 6", finish_reason="stop"))
    assert generate(engine, Request([1], 5)) == [Generated([4, 5, 6], True)]
    stand_in.answer = lambda body: (200, completion(text="4 5 6", finish_reason="length"))
    assert generate(engine, Request([1], 3)) == [Generated([4, 5, 6], False)]


def test_rows_that_are_not_allowed_or_go_in_circles_have_not_stopped(stand_in, engine):
    stand_in.answer = lambda body: (200, completion(token_ids=[4, 70, 5, END], finish_reason="stop"))
    assert generate(engine, Request([1], 9)) == [Generated([4, 70, 5], False)]
    stand_in.answer = lambda body: (200, completion(token_ids=[4, 4, 4, 4, END], finish_reason="stop"))
    assert generate(engine, Request([1], 9), max_repeats=3) == [Generated([4, 4, 4, 4], False)]
    assert generate(engine, Request([1], 9), max_repeats=4) == [Generated([4, 4, 4, 4], True)]


GOOD = completion(token_ids=[4, END], finish_reason="stop")
PASSING = {
    "overloaded": (503, {"error": {"message": "busy"}}),
    "too many": (429, {"error": {"message": "slow down"}}),
    "not JSON": (200, b"<html>gateway</html>"),
    "no choices": (200, {"choices": []}),
    "two choices": (200, {"choices": [{"index": i, "token_ids": [4, END], "finish_reason": "stop"} for i in (0, 1)]}),
    "another shape": (200, [1, 2]),
    "endless lists": (200, b"[" * 100_000),
    "truths": (200, completion(token_ids=[True, END], finish_reason="stop")),
    "not ids": (200, completion(token_ids=["a"], finish_reason="stop")),
    "more than asked for": (200, completion(token_ids=[1] * 50, finish_reason="stop")),
    "shut down meanwhile": (200, completion(token_ids=[4, 5], finish_reason="abort")),
    "special tokens left out": (200, {**completion(text="", finish_reason="stop"), "usage": {"completion_tokens": 7}}),
    "cut off": (200, json.dumps(GOOD).encode()[:-9]),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_may_pass_is_tried_again(name, stand_in, engine):
    stand_in.answer = lambda body: PASSING[name] if len(stand_in.bodies) < 4 else (200, GOOD)
    assert generate(engine, Request([1], 5)) == [Generated([4], True)]
    assert len(stand_in.bodies) == 4


@pytest.mark.parametrize("name", PASSING)
def test_what_does_not_pass_is_one_clear_error(name, stand_in, engine):
    stand_in.answer = lambda body: PASSING[name]
    with pytest.raises(UserError, match=r"/v1/completions failed 5 times; .*: see that a completions server") as e:
        generate(engine, *[Request([1], 5, seed=i) for i in range(3)])
    assert "\n" not in str(e.value)


def test_a_refused_request_is_not_repeated(stand_in, engine):
    stand_in.answer = lambda body: (400, {"error": {"message": "prompt must be a string"}})
    with pytest.raises(UserError, match=r"refuses the request; it answers 400: .*prompt must be a string"):
        generate(engine, Request([1], 5))
    assert len(stand_in.bodies) == 1


@pytest.mark.parametrize("more", [{"token_ids": [4, 5]}, {"text": "4 5"}])
def test_a_server_of_a_shorter_context_is_told_of(more, stand_in, engine):
    stand_in.answer = lambda body: (200, completion(finish_reason="length", **more))
    assert generate(engine, Request([1], 2)) == [Generated([4, 5], False)]
    with pytest.raises(UserError, match="stops at 2 of 5 ids after a prompt of 3: let it take 128 in all"):
        generate(engine, Request([1, 2, 3], 5))
    assert len(stand_in.bodies) == 2


def test_silence_ends(stand_in):
    over = threading.Event()

    def silent(body):
        over.wait(5)
        return 200, GOOD

    stand_in.answer = silent
    with served(stand_in) as url:
        engine = CompletionsEngine(url, 128, read_ids, timeout_sec=0.05, wait_sec=0.001)
        try:
            with pytest.raises(UserError, match=r"failed 5 times; .*timed out"):
                generate(engine, Request([1], 5))
        finally:
            over.set()


def test_no_server_and_no_url():
    engine = CompletionsEngine("http://127.0.0.1:9/v1", 128, read_ids, wait_sec=0.001)
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9/v1/models failed 5 times; .*refused"):
        generate(engine, Request([1], 5))
    assert engine.generate([], Sampling()) == []
    with pytest.raises(UserError, match="'localhost:8000' is no URL"):
        CompletionsEngine("localhost:8000", 128, read_ids)
