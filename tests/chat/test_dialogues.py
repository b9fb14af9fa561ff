"""Spoken dialogues: every good dialogue once, bad ones counted, and answers alone are trained."""

import gzip
import json

import numpy as np
import pytest

from weft import artifacts
from weft.artifacts import Manifest
from weft.chat.dialogues import DialoguesConfig, run
from weft.data.shards import Rows
from weft.errors import UserError

TOKENIZER = Manifest("tokenizer", "aaaa")
ANSWER = "The cat sat on the mat, and the dog barked at the cat. A bird sang to the dog; the cat slept."


class FakeSynthesizer:
    """Six codes a word, decided by the seed; it cannot say "unspeakable"."""

    frame_rate_hz = 12.5
    speakers = ()

    def speak(self, texts, seeds, speakers=None):
        assert speakers is None
        return [None if "unspeakable" in t else codes(t, s) for t, s in zip(texts, seeds, strict=True)]


def codes(text, seed):
    return [(seed >> i) % 32 for i in range(6 * len(text.split()))]


def load(folder):
    return FakeSynthesizer()


def turns(*pairs):
    return [{"role": role, "text": text} for role, text in pairs]


def lines(num):
    for i in range(num):
        pairs = [("user", f"say {i}"), ("assistant", ANSWER)] + [("user", "thanks"), ("assistant", "  ok ")] * (i % 2)
        yield json.dumps({"id": f"d{i}", "turns": turns(*pairs)})


@pytest.fixture
def made(tmp_path):
    """made(lines or path, name, **settings) -> (manifest, documents)."""
    with artifacts.build(tmp_path / "text_to_token", "text_to_token", {}, {"tokenizer": TOKENIZER}):
        pass

    def make(source, name="out", **settings):
        if not hasattr(source, "exists"):
            (tmp_path / "source.jsonl").write_text("\n".join(source))
            source = tmp_path / "source.jsonl"
        manifest = run(DialoguesConfig((source,), tmp_path / "text_to_token", tmp_path / name, **settings), load)
        return manifest, list(Rows.of(tmp_path / name).documents())

    return make


def test_users_are_heard_and_answers_are_written_and_said(made):
    manifest, documents = made(lines(4))
    assert manifest.parents["tokenizer"] == TOKENIZER.fingerprint
    assert [d.id for d in documents] == ["d0", "d1", "d2", "d3"]
    assert {d.kind for d in documents} == {"dialogue"}
    found = [[(s.role, s.type, s.text, s.loss) for s in d.segments] for d in documents]
    asked = [
        ("user", "speech", "say 1", False),
        ("assistant", "text", ANSWER, True),
        ("assistant", "speech", None, True),
    ]
    thanked = [
        ("user", "speech", "thanks", False),
        ("assistant", "text", "ok", True),
        ("assistant", "speech", None, True),
    ]
    assert found[1] == asked + thanked
    assert len(documents[1].segments[0].codes) == 12
    assert len(documents[1].segments[2].codes) == 6 * len(ANSWER.split())
    assert documents[1].meta.seconds == pytest.approx((12 + 6 * len(ANSWER.split()) + 6 + 6) / 12.5)
    assert manifest.counts["documents"] == 4
    assert manifest.counts["turns"] == 12
    assert manifest.counts["speech_codes"] == sum(len(s.codes or ()) for d in documents for s in d.segments)


def test_a_dialogue_trains_its_answers_and_their_ends_only(made, vocab):
    _, documents = made(lines(2))
    ids, trained = vocab.document_ids(documents[1])
    said = vocab.tokenizer.decode(ids[trained])
    text, audio = vocab.text_ids(ANSWER), vocab.codes_to_ids(documents[1].segments[2].codes)
    assert len(text) > 26
    assert len(audio) > 52
    answer = ids[trained].tolist()
    assert answer[:13] == text[:13].tolist()
    assert answer[13:39] == audio[:26].tolist()
    assert answer[39:52] == text[13:26].tolist()
    assert answer[52:78] == audio[26:52].tolist()
    assert said.endswith("<|endoftext|>")
    assert said.count("<|user|>") == 1
    assert "thanks" not in said
    users = vocab.codes_to_ids(np.concatenate([documents[1].segments[i].codes for i in (0, 3)]))
    assert np.array_equal(ids[~trained & vocab.is_audio(ids)], users)
    assert "<|assistant|>" not in said


def test_tasks_and_workers_do_not_change_the_documents(made):
    one, documents = made(lines(20), "one", tasks=3)
    two, same = made(lines(20), "two", tasks=3, workers=2)
    assert one.fingerprint == two.fingerprint
    assert documents == same == made(lines(20), "three", tasks=7)[1]
    assert documents != made(lines(20), "four", tasks=3, seed=1)[1]
    assert made(lines(20), "one", tasks=3)[0] == one


def test_a_rerun_does_only_what_a_killed_job_left(made, tmp_path, monkeypatch):
    whole, _ = made(lines(20), "whole", tasks=4)
    speak, calls = FakeSynthesizer.speak, []

    def dying(self, texts, seeds, speakers):
        calls.append(texts)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return speak(self, texts, seeds, speakers)

    monkeypatch.setattr(FakeSynthesizer, "speak", dying)
    with pytest.raises(KeyboardInterrupt):
        made(lines(20), "killed", tasks=4)
    assert not (tmp_path / "killed").exists()
    assert made(lines(20), "killed", tasks=4)[0].fingerprint == whole.fingerprint
    assert len(calls) == 5


@pytest.fixture
def choir(monkeypatch):
    """The speakers that the model knows, each of whom says its number and nothing else."""
    names = ("ann", "bob", "cy")

    def speak(self, texts, seeds, speakers):
        if not set(speakers) <= set(self.speakers):
            raise UserError("unknown speaker")
        return [[names.index(name)] for name in speakers]

    monkeypatch.setattr(FakeSynthesizer, "speak", speak)
    monkeypatch.setattr(FakeSynthesizer, "speakers", names)
    return names


def voices(documents):
    """The numbers of each dialogue's users and assistants."""
    return [
        tuple({s.codes[0] for s in d.segments if s.codes and s.role == role} for role in ("user", "assistant"))
        for d in documents
    ]


def test_the_assistant_has_one_voice_and_each_dialogue_a_user_of_another(made, choir):
    _, documents = made(lines(30))
    users = [user for user, assistant in voices(documents) if assistant == {0}]
    assert len(users) == 30
    assert all(len(user) == 1 for user in users)
    assert set.union(*users) == {1, 2}
    assert [{choir.index(d.meta.speaker)} for d in documents] == users
    assert voices(made(lines(30), "other", tasks=4)[1]) == voices(documents)
    assert voices(made(lines(30), "seed", seed=1)[1]) != voices(documents)


def test_voices_can_be_named(made, choir, monkeypatch):
    manifest, documents = made(lines(9), assistant="cy")
    assert {(*user, *assistant) for user, assistant in voices(documents)} == {(0, 2), (1, 2)}
    assert (manifest.settings["assistant"], "user" in manifest.settings) == ("cy", False)
    assert voices(made(lines(9), "both", assistant="cy", user="cy")[1]) == [({2}, {2})] * 9
    with pytest.raises(UserError, match="unknown speaker"):
        made(lines(9), "dan", user="dan")
    monkeypatch.setattr(FakeSynthesizer, "speakers", choir[:1])
    assert voices(made(lines(9), "alone")[1]) == [({0}, {0})] * 9
    monkeypatch.setattr(FakeSynthesizer, "speakers", ())
    with pytest.raises(UserError, match="unknown speaker"):
        made(lines(9), "nameless", user="ann")


BAD = [
    ("{", "unexpected end"),
    ("[]", "no list of `turns`"),
    (json.dumps({"turns": "hello"}), "no list of `turns`"),
    (json.dumps({"turns": turns(("user", "hi"))}), "the assistant has no turn"),
    (json.dumps({"turns": turns(("user", "hi"), ("bot", "hi"))}), "turn 2 has role 'bot'"),
    (json.dumps({"turns": turns(("user", " "), ("assistant", "hi"))}), "turn 1 has no text"),
    (json.dumps({"turns": turns(("user", "a"), ("user", "b"), ("assistant", "c"))}), "two turns of user"),
    (json.dumps({"turns": ["hi", "ho"]}), "turn 1 has role None"),
]


def test_bad_lines_are_skipped_counted_and_listed(made, tmp_path):
    good = list(lines(8))
    mixed = [line for pair in zip(good, [bad for bad, _ in BAD], strict=True) for line in (*pair, "")]
    manifest, documents = made(mixed, tasks=3, max_bad_share=0.5)
    assert [d.id for d in documents] == [f"d{i}" for i in range(8)]
    assert manifest.counts["skipped_documents"] == len(BAD)
    listed = [json.loads(line) for line in (tmp_path / "out/log/skipped.jsonl").read_text().splitlines()]
    assert sorted(int(row["where"].split()[-1]) for row in listed) == list(range(2, 24, 3))
    for row in listed:
        assert BAD[int(row["where"].split()[-1]) // 3][1] in row["why"]


def test_too_many_bad_lines_stop_the_job(made):
    with pytest.raises(UserError, match="1 of 9 items are bad"):
        made([*lines(8), "{"])


def test_a_dialogue_that_cannot_be_said_is_left_out_and_counted(made):
    unsayable = json.dumps({"turns": turns(("user", "hi"), ("assistant", "unspeakable"))})
    manifest, documents = made([*lines(2), unsayable])
    assert len(documents) == 2
    assert manifest.counts["rejected_documents"] == 1
    assert manifest.counts["skipped_documents"] == 0
    with pytest.raises(UserError, match="no dialogue could be spoken"):
        made([unsayable], "nothing")


def test_a_dialogue_ends_before_the_first_exchange_that_cannot_be_said(made):
    pairs = [("system", "Be kind."), ("user", "hi"), ("assistant", "ho"), ("user", "and"), ("assistant", "then")]
    silent = [[(r, "unspeakable" if i == k else t) for i, (r, t) in enumerate(pairs)] for k in range(5)]
    manifest, documents = made([json.dumps({"id": str(k), "turns": turns(*p)}) for k, p in enumerate(silent)])
    written = {d.id: [s.text for s in d.segments if s.text] for d in documents}
    exchange = ["Be kind.", "hi", "ho"]
    assert written == {"0": ["unspeakable", "hi", "ho", "and", "then"], "3": exchange, "4": exchange}
    assert [manifest.counts[f"{name}_documents"] for name in ("shortened", "rejected")] == [2, 2]


def test_a_system_turn_stays_text_and_lines_without_id_are_named_by_their_place(made, vocab):
    row = {"turns": turns(("system", "Be kind."), ("user", "hi"), ("assistant", "ho"))}
    _, (document,) = made([json.dumps(row)])
    assert document.id == "source.jsonl:1"
    first = document.segments[0]
    assert (first.role, first.type, first.text, first.loss) == ("system", "text", "Be kind.", False)
    assert vocab.tokenizer.decode(vocab.document_ids(document)[0]).startswith("<|system|>\nBe kind.<|user|>\n")


def test_packed_files_are_read_and_others_refused(made, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b.jsonl.gz").write_bytes(gzip.compress("\n".join(lines(3)).encode()))
    assert len(made(tmp_path / "a")[1]) == 3
    (tmp_path / "blank.jsonl").write_text("\n \n")
    with pytest.raises(UserError, match=r"blank\.jsonl: every line is blank"):
        made(tmp_path / "blank.jsonl", "blank")
    (tmp_path / "a/c.txt").write_text("hello")
    with pytest.raises(UserError, match=r"c\.txt is no file of dialogues"):
        made(tmp_path / "a", "other")
