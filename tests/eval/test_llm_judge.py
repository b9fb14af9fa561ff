import pytest

from tests.completions import StandIn, served
from weft.errors import UserError
from weft.eval.llm_judge import LlmJudge, rating_of


def message(text):
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}


@pytest.mark.parametrize(
    ("text", "kind", "rating"),
    [
        ("Good.\nRating: 7", "general", 7),
        ("**Rating:** 10", "general", 10),
        ("Rating: 3\nNo.\nrating = 4", "general", 4),
        ("Rating: 11", "general", None),
        ("Rating: 0", "general", None),
        ("Rating: 0", "knowledge", 0),
        ("Rating: 2", "knowledge", None),
        ("It is right.", "knowledge", None),
        ("", "general", None),
    ],
)
def test_the_last_rating_on_the_scale_counts(text, kind, rating):
    assert rating_of(text, kind) == rating


def test_verdicts_are_in_order_with_their_texts_and_settings():
    def answer(body):
        [sent] = body["messages"]
        return message(f"I see.\nRating: {sent['content'].count('x')}")

    stand_in = StandIn(answer)
    with served(stand_in) as url:
        judge = LlmJudge(url, key="secret", wait_sec=0.001)
        assert judge.model == "spoken"
        found = judge.verdicts([("why", "x" * n, None) for n in range(1, 9)], "general")
    assert [verdict.rating for verdict in found] == [
        1 + n for n in range(1, 9)
    ]  # "relevant" has no x, "explain" has one
    assert found[0].texts == ("I see.\nRating: 2",)
    assert all(body["temperature"] == 0 and body["model"] == "spoken" for body in stand_in.bodies)
    assert all(headers["Authorization"] == "Bearer secret" for headers in stand_in.headers)


def test_a_verdict_without_a_rating_is_asked_for_again_and_then_not_judged():
    texts = iter(["Hm.", "Rating: ten", "Rating: 1", *["never"] * 3])
    stand_in = StandIn(lambda body: message(next(texts)))
    with served(stand_in) as url:
        judge = LlmJudge(url, "other", wait_sec=0.001)
        [first] = judge.verdicts([("q", "a", ["b"])], "knowledge")
        [second] = judge.verdicts([("q", "a", ["b"])], "knowledge")
    assert (first.rating, len(first.texts)) == (1, 3)
    assert (second.rating, second.texts) == (None, ("never",) * 3)
    assert "Reference answers: b" in stand_in.bodies[0]["messages"][0]["content"]


def test_a_judge_that_fails_leaves_the_answer_unjudged_and_one_that_is_down_is_an_error():
    with served(StandIn(lambda body: (500, b"broken"))) as url:
        [verdict] = LlmJudge(url, wait_sec=0.001).verdicts([("q", "a", None)], "general")
    assert verdict.rating is None
    assert "broken" in verdict.texts[0]
    with pytest.raises(UserError, match="check that the server runs there"):
        LlmJudge(url, timeout_sec=0.5, wait_sec=0.001)
    with pytest.raises(UserError, match="is not the URL of a server"):
        LlmJudge("localhost:8000")
