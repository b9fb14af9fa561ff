"""Spoken dialogues: every valid dialogue occurs once, others are counted, and only answers are trained on."""

import gzip
import json

import numpy as np
import pytest

from weft.artifacts import Manifest
from weft.chat.dialogues import DialoguesConfig, run
from weft.data.datasets import Rows
from weft.data.job import JobConfig
from weft.errors import UserError
from weft.plan import Plan, open_draft

TOKENIZER = Manifest("tokenizer", "aaaa")
ANSWER = "The cat sat on the mat, and the dog barked at the cat. A bird sang to the dog; the cat slept."


class FakeSynthesizer:
    """Returns six codes per word, which depend on the seed, and None for a text with "unspeakable"."""

    frame_rate_hz = 12.5
    speakers = ()

    def synthesize(self, texts, seeds, speakers=None):
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
def create(tmp_path):
    """create(lines or path, name, **settings) -> (manifest, documents)."""
    with open_draft(tmp_path / "text_to_token", Plan("text_to_token", {}, {"tokenizer": TOKENIZER})):
        pass

    def create(source, name="out", **settings):
        if not hasattr(source, "exists"):
            (tmp_path / "source.jsonl").write_text("\n".join(source))
            source = tmp_path / "source.jsonl"
        manifest = run(DialoguesConfig((source,), tmp_path / "text_to_token", tmp_path / name, **settings), load)
        return manifest, list(Rows.of(tmp_path / name).documents())

    return create


def test_user_turns_are_speech_and_answers_are_text_and_speech(create):
    manifest, documents = create(lines(4))
    assert manifest.parents["tokenizer"] == TOKENIZER.fingerprint
    assert [d.id for d in documents] == ["d0", "d1", "d2", "d3"]
    assert {d.kind for d in documents} == {"dialogue"}
    found = [[(s.role, s.type, s.text, s.loss) for s in d.segments] for d in documents]
    first = [
        ("user", "speech", "say 1", False),
        ("assistant", "text", ANSWER, True),
        ("assistant", "speech", None, True),
    ]
    second = [
        ("user", "speech", "thanks", False),
        ("assistant", "text", "ok", True),
        ("assistant", "speech", None, True),
    ]
    assert found[1] == first + second
    assert len(documents[1].segments[0].codes) == 12
    assert len(documents[1].segments[2].codes) == 6 * len(ANSWER.split())
    assert documents[1].meta.seconds == pytest.approx((12 + 6 * len(ANSWER.split()) + 6 + 6) / 12.5)
    assert manifest.counts["documents"] == 4
    assert manifest.counts["turns"] == 12
    assert manifest.counts["speech_codes"] == sum(len(s.codes or ()) for d in documents for s in d.segments)


def test_only_answers_and_their_ends_have_a_loss(create, vocab):
    _, documents = create(lines(2))
    ids, trained = vocab.document_ids(documents[1])
    decoded = vocab.tokenizer.decode(ids[trained])
    text, audio = vocab.text_ids(ANSWER), vocab.codes_to_ids(documents[1].segments[2].codes)
    assert len(text) > 26
    assert len(audio) > 52
    answer = ids[trained].tolist()
    assert answer[:13] == text[:13].tolist()
    assert answer[13:39] == audio[:26].tolist()
    assert answer[39:52] == text[13:26].tolist()
    assert answer[52:78] == audio[26:52].tolist()
    assert decoded.endswith("<|endoftext|>")
    assert decoded.count("<|user|>") == 1
    assert "thanks" not in decoded
    users = vocab.codes_to_ids(np.concatenate([documents[1].segments[i].codes for i in (0, 3)]))
    assert np.array_equal(ids[~trained & vocab.is_audio(ids)], users)
    assert "<|assistant|>" not in decoded


def test_the_number_of_tasks_does_not_change_the_documents_and_the_seed_does(create):
    one, documents = create(lines(20), "one", tasks=3)
    assert documents == create(lines(20), "two", tasks=7)[1]
    assert documents != create(lines(20), "three", tasks=3, seed=1)[1]
    assert create(lines(20), "one", tasks=3)[0] == one


def test_an_interrupted_job_is_resumed_with_its_unfinished_tasks(create, tmp_path, monkeypatch):
    whole, _ = create(lines(20), "whole", tasks=4)
    synthesize, calls = FakeSynthesizer.synthesize, []

    def interrupted(self, texts, seeds, speakers):
        calls.append(texts)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return synthesize(self, texts, seeds, speakers)

    monkeypatch.setattr(FakeSynthesizer, "synthesize", interrupted)
    with pytest.raises(KeyboardInterrupt):
        create(lines(20), "interrupted", tasks=4)
    assert not (tmp_path / "interrupted").exists()
    assert create(lines(20), "interrupted", tasks=4)[0].fingerprint == whole.fingerprint
    assert len(calls) == 5


@pytest.fixture
def speakers(monkeypatch):
    """The speakers of the model. The codes of a speaker are its index."""
    names = ("ann", "bob", "cy")

    def synthesize(self, texts, seeds, speakers):
        if not set(speakers) <= set(self.speakers):
            raise UserError("unknown speaker")
        return [[names.index(name)] for name in speakers]

    monkeypatch.setattr(FakeSynthesizer, "synthesize", synthesize)
    monkeypatch.setattr(FakeSynthesizer, "speakers", names)
    return names


def voices(documents):
    """Return the indices of the speakers of the user and of the assistant in each dialogue."""
    return [
        tuple({s.codes[0] for s in d.segments if s.codes and s.role == role} for role in ("user", "assistant"))
        for d in documents
    ]


def test_the_assistant_has_one_voice_and_each_dialogue_another_one_for_the_user(create, speakers):
    _, documents = create(lines(30))
    users = [user for user, assistant in voices(documents) if assistant == {0}]
    assert len(users) == 30
    assert all(len(user) == 1 for user in users)
    assert set.union(*users) == {1, 2}
    assert [{speakers.index(d.meta.speaker)} for d in documents] == users
    assert voices(create(lines(30), "other", tasks=4)[1]) == voices(documents)
    assert voices(create(lines(30), "seed", seed=1)[1]) != voices(documents)


def test_the_voices_of_both_roles_can_be_set(create, speakers, monkeypatch):
    manifest, documents = create(lines(9), assistant="cy")
    assert {(*user, *assistant) for user, assistant in voices(documents)} == {(0, 2), (1, 2)}
    assert (manifest.settings["assistant"], manifest.settings["user"]) == ("cy", None)
    assert voices(create(lines(9), "both", assistant="cy", user="cy")[1]) == [({2}, {2})] * 9
    with pytest.raises(UserError, match="unknown speaker"):
        create(lines(9), "dan", user="dan")
    monkeypatch.setattr(FakeSynthesizer, "speakers", speakers[:1])
    assert voices(create(lines(9), "alone")[1]) == [({0}, {0})] * 9
    monkeypatch.setattr(FakeSynthesizer, "speakers", ())
    with pytest.raises(UserError, match="unknown speaker"):
        create(lines(9), "nameless", user="ann")


BAD = [
    ("{", "not JSON"),
    ("[]", "no list of `turns`"),
    (json.dumps({"turns": "hello"}), "no list of `turns`"),
    (json.dumps({"turns": turns(("user", "hi"))}), "it has no turn of the assistant"),
    (json.dumps({"turns": turns(("user", "hi"), ("bot", "hi"))}), "turn 2 has role 'bot'"),
    (json.dumps({"turns": turns(("user", " "), ("assistant", "hi"))}), "turn 1 has no text"),
    (json.dumps({"turns": turns(("user", "a"), ("user", "b"), ("assistant", "c"))}), "two consecutive turns of user"),
    (json.dumps({"turns": ["hi", "ho"]}), "turn 1 has role None"),
]


def test_bad_lines_are_skipped_counted_and_listed(create, tmp_path):
    good = list(lines(8))
    mixed = [line for pair in zip(good, [bad for bad, _ in BAD], strict=True) for line in (*pair, "")]
    manifest, documents = create(mixed, tasks=3, job=JobConfig(max_bad_fraction=0.5))
    assert [d.id for d in documents] == [f"d{i}" for i in range(8)]
    assert manifest.counts["skipped_documents"] == len(BAD)
    listed = [json.loads(line) for line in (tmp_path / "out/log/skipped.jsonl").read_text().splitlines()]
    assert sorted(int(row["where"].split()[-1]) for row in listed) == list(range(2, 24, 3))
    for row in listed:
        assert BAD[int(row["where"].split()[-1]) // 3][1] in row["why"]


def test_too_many_bad_lines_are_an_error(create):
    with pytest.raises(UserError, match="1 of 9 items are bad"):
        create([*lines(8), "{"])


def test_a_dialogue_without_a_synthesized_answer_is_left_out_and_counted(create, capsys):
    failing = json.dumps({"turns": turns(("user", "hi"), ("assistant", "unspeakable"))})
    manifest, documents = create([*lines(2), failing])
    assert len(documents) == 2
    assert manifest.counts["rejected_documents"] == 1
    assert manifest.counts["skipped_documents"] == 0
    assert "warning" not in capsys.readouterr().err
    create([*lines(1), failing, failing.replace("hi", "so")], "few")
    assert "warning: 2 dialogues have no exchange that succeeded, and only 1 are kept" in capsys.readouterr().err
    with pytest.raises(UserError, match="no dialogue could be synthesized"):
        create([failing], "nothing")


def test_a_dialogue_ends_before_the_first_exchange_that_cannot_be_synthesized(create):
    pairs = [("system", "Be kind."), ("user", "hi"), ("assistant", "ho"), ("user", "and"), ("assistant", "then")]
    failing = [[(r, "unspeakable" if i == k else t) for i, (r, t) in enumerate(pairs)] for k in range(5)]
    manifest, documents = create([json.dumps({"id": str(k), "turns": turns(*p)}) for k, p in enumerate(failing)])
    written = {d.id: [s.text for s in d.segments if s.text] for d in documents}
    exchange = ["Be kind.", "hi", "ho"]
    assert written == {"0": ["unspeakable", "hi", "ho", "and", "then"], "3": exchange, "4": exchange}
    assert [manifest.counts[f"{name}_documents"] for name in ("shortened", "rejected")] == [2, 2]


def test_a_system_turn_stays_text_and_the_default_id_is_the_line(create, vocab):
    row = {"turns": turns(("system", "Be kind."), ("user", "hi"), ("assistant", "ho"))}
    _, (document,) = create([json.dumps(row)])
    assert document.id == "source.jsonl:1"
    first = document.segments[0]
    assert (first.role, first.type, first.text, first.loss) == ("system", "text", "Be kind.", False)
    assert vocab.tokenizer.decode(vocab.document_ids(document)[0]).startswith("<|system|>\nBe kind.<|user|>\n")


def test_compressed_files_are_read_and_other_files_are_errors(create, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b.jsonl.gz").write_bytes(gzip.compress("\n".join(lines(3)).encode()))
    assert len(create(tmp_path / "a")[1]) == 3
    (tmp_path / "blank.jsonl").write_text("\n \n")
    with pytest.raises(UserError, match=r"blank\.jsonl has only blank lines"):
        create(tmp_path / "blank.jsonl", "blank")
    (tmp_path / "a/c.txt").write_text("hello")
    with pytest.raises(UserError, match=r"c\.txt is not a file of dialogues"):
        create(tmp_path / "a", "other")


@pytest.mark.parametrize("tasks", [1, 4])
def test_damaged_files_and_lines_that_are_too_long_are_skipped_counted_and_listed(create, tmp_path, monkeypatch, tasks):
    monkeypatch.setattr("weft.data.lines.MAX_DOCUMENT_BYTES", 2000)
    monkeypatch.setattr("weft.data.lines._BUFFER_BYTES", 100)
    (tmp_path / "in").mkdir()
    rows = [row.encode() for row in lines(30)]
    whole = gzip.compress(b"\n".join(rows[:10]))
    (tmp_path / "in/a.jsonl.gz").write_bytes(whole[:-20])  # decodes to a part of the last dialogues
    (tmp_path / "in/b.jsonl.gz").write_bytes(b"this is not gzip")
    (tmp_path / "in/c.jsonl").write_bytes(b"\n".join([*rows[10:20], b"x" * 9000, *rows[20:]]))
    job = JobConfig(max_bad_fraction=0.9)
    manifest, documents = create(tmp_path / "in", tasks=tasks, job=job)
    ids = [d.id for d in documents]
    assert ids[-20:] == [f"d{i}" for i in range(10, 30)]
    assert ids[:-20] == [f"d{i}" for i in range(len(ids) - 20)]
    assert len(ids) > 24
    listed = [json.loads(line) for line in (tmp_path / "out/log/skipped.jsonl").read_text().splitlines()]
    assert sorted(row["where"].removeprefix(f"{tmp_path}/in/") for row in listed) == [
        "a.jsonl.gz", "b.jsonl.gz", "c.jsonl line 11"
    ]  # fmt: skip
    assert manifest.counts["skipped_documents"] == 3
    with pytest.raises(UserError, match=r"more than max_bad_fraction 0\.05"):
        create(tmp_path / "in", "strict", tasks=tasks, job=JobConfig(max_bad_fraction=0.05))


def test_a_lost_file_counts_by_its_size(create, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_text("\n".join(lines(200)))
    (tmp_path / "in/b.jsonl.gz").write_bytes(b"this is not gzip" * 9999)
    with pytest.raises(UserError, match=r"bytes \(1 of 201 items\) are bad, more than max_bad_fraction 0.1"):
        create(tmp_path / "in", job=JobConfig(max_bad_fraction=0.1))
