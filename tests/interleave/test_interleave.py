import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_synthesizer
import fsspec
import pytest
from fake_synthesizer import GATE, SPEAKERS, FakeReader, FakeSynthesizer, load, load_choir, load_reader

from weft.data.corpus import read_texts
from weft.data.shards import Rows
from weft.errors import UserError
from weft.interleave.config import InterleaveConfig
from weft.interleave.interleave import run


def parts_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("part-*.parquet"))}


def documents_of(folder):
    return list(Rows.of(folder).documents())


@pytest.fixture
def made(tmp_path, corpus, text_to_token):
    """made(name, **settings) -> the manifest of TMP/name."""

    def make(name, load=load, **settings):
        return run(InterleaveConfig((corpus,), tmp_path / name, text_to_token, **settings), load, load_reader)

    return make


def spoken_in(document):
    return [s for s in document.segments if s.type == "speech"]


def loads(folder):
    return (folder / "loads").read_text().split()


def said_of(texts):
    return [text.replace(",", "").replace(".", "").split() for text in texts]


def test_removing_the_speech_gives_back_the_text(made, tmp_path, corpus):
    made("out", tasks=3)
    documents = documents_of(tmp_path / "out")
    assert [(d.id, d.text) for d in documents] == [(t.id, t.text) for t in read_texts(corpus)]
    assert {d.kind for d in documents} == {"interleaved"}
    for d in documents:
        kinds = [s.type for s in d.segments]
        assert "text text" not in " ".join(kinds)
        assert all((s.codes is None) == (s.type == "text") for s in d.segments)
        assert all(len(s.codes) == 4 * len(s.text.split()) for s in d.segments if s.type == "speech")


def untimed(counts):
    """Counts without those that tell how quick the machine was."""
    return {name: count for name, count in counts.items() if name not in ("tokens_per_sec", "cost_of_600b_tokens")}


def test_counts_and_meta_say_what_was_achieved(made, tmp_path):
    counts = made("out", tasks=3).counts
    documents = documents_of(tmp_path / "out")
    speech = [s for d in documents for s in d.segments if s.type == "speech"]
    assert counts["documents"] == 120
    assert counts["speech_codes"] == sum(len(s.codes) for s in speech)
    assert counts["spans"] - counts["rejected_spans"] == len(speech)
    assert counts["rejected_spans"] > 0
    assert counts["words"] == sum(d.meta.words for d in documents) == sum(len(d.text.split()) for d in documents)
    assert counts["spoken_words"] == sum(len(s.text.split()) for s in speech)
    assert counts["text_words"] + counts["spoken_words"] == counts["words"]
    assert counts["codes_per_spoken_word"] == 4
    assert counts["speech_ratio"] == pytest.approx(0.3, abs=0.02)
    times = 600e9 / (counts["speech_codes"] + 4 / 3 * counts["text_words"])
    size_bytes = sum(len(part) for part in parts_of(tmp_path / "out").values())
    cost = counts["cost_of_600b_tokens"]
    assert cost["corpus_words"] == pytest.approx(counts["words"] * times)
    assert cost["storage_gb"] == pytest.approx(size_bytes * times / 1e9, rel=0.01)
    assert cost["worker_hours"] == pytest.approx(
        counts["speech_codes"] / counts["tokens_per_sec"] * times / 3600, rel=0.1
    )
    assert list(counts["speech_ratio_by_words"]) == ["0-9", "10-49", "50-199", "200-999"]
    for d in documents:
        spoken = [s for s in d.segments if s.type == "speech"]
        assert d.meta.speech_ratio == pytest.approx(sum(len(s.text.split()) for s in spoken) / d.meta.words)
        assert d.meta.seconds == pytest.approx(sum(len(s.codes) for s in spoken) / 12.5)


def test_what_cannot_be_spoken_stays_text_and_is_counted(made, tmp_path):
    counts = made("out").counts
    documents = documents_of(tmp_path / "out")
    num_urls = sum(d.text.count("https://") for d in documents)
    assert num_urls > 0
    assert counts["left_as_text"] == {"address": num_urls}
    assert counts["documents_left_whole"] == 0
    assert not any("https://" in s.text for d in documents for s in d.segments if s.type == "speech")


def test_the_gate_keeps_what_reads_back_and_says_how_well(made, tmp_path, make_tokenizer):
    counts = made("out", tokenizer=make_tokenizer(), **GATE).counts
    documents = documents_of(tmp_path / "out")
    num_words = num_wrong = 0
    for d in documents:
        spoken = spoken_in(d)
        assert len(d.meta.span_wer) == len(spoken)
        heard = [text.split() for text in FakeReader().transcribe([s.codes for s in spoken])]
        said = said_of(s.text for s in spoken)
        wrong = [sum(a != b for a, b in zip(*pair, strict=True)) for pair in zip(heard, said, strict=True)]
        assert d.meta.span_wer == pytest.approx([n / len(s) for n, s in zip(wrong, said, strict=True)])
        assert max(d.meta.span_wer, default=0) <= GATE["max_wer"]
        if spoken:
            assert d.meta.wer == pytest.approx(sum(wrong) / sum(map(len, said)))
        else:
            assert d.meta.wer is None
        num_words += sum(map(len, said))
        num_wrong += sum(wrong)
    read_back = counts["read_back"]
    assert read_back["wer_after"] == pytest.approx(num_wrong / num_words, abs=1e-4)
    assert read_back["wer_before"] > 2 * read_back["wer_after"] > 0
    assert not {"cer_before", "cer_after"} & read_back.keys()
    assert read_back["dropped_share"] == pytest.approx((counts["rejected_spans"]) / counts["spans"], abs=0.01)
    assert 0.2 < read_back["dropped_share"] < 0.35
    assert 0.45 < counts["retried_share"] < 0.6
    assert sum(len(spoken_in(d)) for d in documents) == counts["spans"] - counts["rejected_spans"]


def test_without_a_threshold_the_gate_only_measures(made, tmp_path, make_tokenizer):
    made("plain", tries=1)
    measured = made("measured", tries=1, tokenizer=make_tokenizer())
    gated = made("gated", tokenizer=make_tokenizer(), **GATE | {"tries": 1})
    plain = documents_of(tmp_path / "plain")
    assert [d.segments for d in documents_of(tmp_path / "measured")] == [d.segments for d in plain]
    assert {(d.meta.wer, d.meta.span_wer) for d in plain} == {(None, None)}
    found, before = measured.counts["read_back"], gated.counts["read_back"]
    assert found["wer_after"] == found["wer_before"] == before["wer_before"]
    assert found["span_wer"] == before["span_wer"]
    assert found["dropped_share"] == 0
    assert sum(found["span_wer"].values()) == measured.counts["spans"] - measured.counts["rejected_spans"]
    rates = [rate for d in documents_of(tmp_path / "measured") for rate in d.meta.span_wer]
    assert found["span_wer"]["0"] == rates.count(0.0)
    assert found["span_wer"]["to 1"] == sum(0.5 < rate <= 1 for rate in rates)


def test_a_span_is_tried_with_every_seed_before_it_stays_text(made, tmp_path):
    rejected = [made(f"tries{n}", tries=n).counts["rejected_spans"] for n in (1, 2, 4)]
    assert rejected[0] > rejected[1] > rejected[2] == 0


def test_a_tokenizer_that_cannot_read_the_codes_is_refused(made, tmp_path, make_tokenizer):
    with pytest.raises(UserError, match="was made with tokenizer aaaa, not bbbb"):
        made("out", tokenizer=make_tokenizer("other", "bbbb"))
    with pytest.raises(UserError, match="is encoder_only, and cannot read codes"):
        made("out", tokenizer=make_tokenizer("half", encoder_only=True))
    with pytest.raises(UserError, match=r"max_wer is 0.3, and nothing reads spans back: give the --tokenizer"):
        made("out", max_wer=0.3)
    assert not [*tmp_path.glob("out*")]


def test_each_document_has_one_voice_of_its_own(made, tmp_path):
    made("one", load_choir, tasks=2)
    made("two", load_choir, tasks=5)
    made("three", load_choir, seed=1)
    documents = documents_of(tmp_path / "one")
    assert documents == documents_of(tmp_path / "two")
    for d in documents:
        spoken = {code for s in spoken_in(d) for code in s.codes}
        assert spoken == ({SPEAKERS.index(d.meta.speaker)} if d.meta.speaker else set())
    voices = [d.meta.speaker for d in documents]
    assert all(20 < voices.count(name) < 60 for name in SPEAKERS)
    assert voices != [d.meta.speaker for d in documents_of(tmp_path / "three")]


def test_documents_of_code_stay_whole(tmp_path, text_to_token):
    texts = ["def f(x):\n    return x\n\nprint(f(1))", "Now this can be said by all of us, and so it is."]
    (tmp_path / "mixed.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    config = InterleaveConfig((tmp_path / "mixed.jsonl",), tmp_path / "mixed", text_to_token, speech_ratio=0.5)
    counts = run(config, load).counts
    assert (counts["documents_left_whole"], counts["left_as_text"]) == (1, {"code": 5})
    assert [s.type for s in documents_of(tmp_path / "mixed")[0].segments] == ["text"]


@pytest.mark.parametrize("policy", ["sentences", "alternate"])
def test_policies_are_counted_alike_and_told_apart(made, tmp_path, policy):
    poisson, other = made("poisson"), made(policy, policy=policy)
    assert other.settings["policy"] == policy
    assert other.counts.keys() == poisson.counts.keys()
    assert other.counts["speech_ratio"] == pytest.approx(0.3, abs=0.02)
    with pytest.raises(UserError, match="was made with another policy"):
        made("poisson", policy=policy)


@pytest.mark.parametrize("gated", [False, True])
def test_workers_and_tasks_do_not_change_the_documents(made, tmp_path, make_tokenizer, gated):
    gate = {"tokenizer": make_tokenizer(), **GATE} if gated else {}
    one, two = made("one", tasks=4, **gate), made("two", tasks=4, workers=2, **gate)
    made("three", tasks=7, **gate)
    assert one.fingerprint == two.fingerprint
    assert untimed(one.counts) == untimed(two.counts)
    assert parts_of(tmp_path / "one") == parts_of(tmp_path / "two")
    assert documents_of(tmp_path / "one") == documents_of(tmp_path / "three")
    assert documents_of(tmp_path / "one") != documents_of((made("four", seed=1, **gate), tmp_path / "four")[1])


def test_the_model_is_loaded_once_a_worker(made, tmp_path):
    made("one", tasks=8)
    assert loads(tmp_path) == ["None"]
    made("two", tasks=8, workers=2)
    assert len(loads(tmp_path)) <= 3


def test_a_server_may_move_but_not_take_over(made, tmp_path):
    first = made("out", url="http://one/v1")
    assert loads(tmp_path) == ["http://one/v1"]
    assert made("out", url="http://two/v1") == first
    with pytest.raises(UserError, match="was made with another by_url"):
        made("out")


def test_a_finished_artifact_is_left_and_another_plan_is_refused(made, tmp_path):
    first = made("out", tasks=2)
    before = (tmp_path / "out/manifest.json").stat().st_mtime_ns
    assert made("out", tasks=2, workers=2) == first
    assert (tmp_path / "out/manifest.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="was made with another tasks"):
        made("out", tasks=3)


def test_a_full_share_leaves_no_text_but_what_ran_away(made, tmp_path):
    counts = made("out", speech_ratio=1.0).counts
    documents = documents_of(tmp_path / "out")
    num_text = sum(s.type == "text" for d in documents for s in d.segments)
    assert num_text <= counts["rejected_spans"] + counts["left_as_text"]["address"]
    assert counts["speech_ratio"] + counts["left_as_text"]["address"] / counts["words"] > 0.9


@pytest.mark.parametrize("bad", [{"speech_ratio": 0}, {"speech_ratio": 1.1}, {"mean_span_words": 0.5}])
def test_settings_out_of_range_are_refused(made, bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        made("out", **bad)


def start(corpus, text_to_token, out, workers, tokenizer):
    command = [sys.executable, fake_synthesizer.__file__, corpus, text_to_token, out, str(workers), tokenizer]
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)


def wait_for(condition, limit_sec=60.0):
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < limit_sec
        time.sleep(0.005)


def children_of(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_any_instant_the_rerun_gives_the_same_bytes(
    made, tmp_path, corpus, text_to_token, make_tokenizer, workers
):
    tokenizer = make_tokenizer()
    made("whole", tasks=12, tokenizer=tokenizer, **GATE)
    out, partial = tmp_path / "killed", tmp_path / "killed.partial"
    for num_done, delay_sec in ((0, 0.03), (3, 0.1), (7, 0.07)):
        job = start(corpus, text_to_token, out, workers, tokenizer)
        wait_for(lambda n=num_done: len(list(partial.glob("log/job/completions/*"))) >= n and partial.exists())
        time.sleep(delay_sec)
        assert job.poll() is None
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
    assert not out.exists()
    (partial / "part-00011.parquet.tmp").write_text("left by a killed writer")
    assert start(corpus, text_to_token, out, workers, tokenizer).wait() == 0
    assert parts_of(out) == parts_of(tmp_path / "whole")
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("killed", "whole")]
    for manifest in manifests:
        manifest["counts"] = untimed(manifest["counts"])
    assert manifests[0] == manifests[1]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_a_killed_worker_ends_the_job_and_the_rerun_gives_the_same_bytes(
    made, tmp_path, corpus, text_to_token, make_tokenizer
):
    tokenizer = make_tokenizer()
    made("whole", tasks=12, tokenizer=tokenizer, **GATE)
    out = tmp_path / "killed"
    job = start(corpus, text_to_token, out, 2, tokenizer)
    wait_for(lambda: len(list((tmp_path / "killed.partial").glob("log/job/completions/*"))) >= 2)
    os.kill(children_of(job.pid)[-1], signal.SIGKILL)  # the first is Python's own, which tracks resources
    assert job.wait(timeout=20) != 0
    assert not out.exists()
    assert start(corpus, text_to_token, out, 2, tokenizer).wait() == 0
    assert parts_of(out) == parts_of(tmp_path / "whole")
    assert not [*out.rglob("*.tmp")]


def test_documents_of_one_id_are_kept_and_drawn_apart(tmp_path, text_to_token):
    words = " ".join(["the cat and dog sat on old mats"] * 20)
    texts = [f"{words} {end}" for end in ("at", "in", "at")]
    (tmp_path / "same.jsonl").write_text("\n".join(json.dumps({"id": "same", "text": text}) for text in texts))
    run(InterleaveConfig((tmp_path / "same.jsonl",), tmp_path / "same", text_to_token), load)
    documents = documents_of(tmp_path / "same")
    assert [(d.id, d.text) for d in documents] == [("same", text) for text in texts]
    assert documents[0] == documents[2]
    assert [s.text for s in documents[0].segments][:-1] != [s.text for s in documents[1].segments][:-1]


def test_a_corpus_at_a_url_gives_the_same_bytes(made, tmp_path, corpus, text_to_token):
    made("here", tasks=3)
    store = fsspec.filesystem("memory")
    store.pipe({"/books/corpus.jsonl": corpus.read_bytes()})
    try:
        run(InterleaveConfig(("memory://books",), tmp_path / "there", text_to_token, tasks=3), load)
    finally:
        store.rm("/books", recursive=True)
    assert parts_of(tmp_path / "there") == parts_of(tmp_path / "here")


def test_a_model_that_never_speaks_and_a_url_to_write_to_are_told(made, corpus, text_to_token):
    class Mute(FakeSynthesizer):
        def codes(self, text, seed):
            return None

    with pytest.raises(UserError, match=r"none of the \d+ spans could be spoken"):
        made("out", lambda folder, url: Mute())
    with pytest.raises(UserError, match=r"s3:/bucket/out is a URL: make it in a folder"):
        run(InterleaveConfig((corpus,), Path("s3://bucket/out"), text_to_token), load)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_workers_do_not_outlive_a_killed_parent(tmp_path, corpus, text_to_token, make_tokenizer):
    job = start(corpus, text_to_token, tmp_path / "out", 2, make_tokenizer())
    wait_for(lambda: len(list((tmp_path / "out.partial").glob("log/job/completions/*"))) >= 2)
    children = children_of(job.pid)
    assert len(children) >= 2
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    wait_for(lambda: not any(map(is_alive, children)), limit_sec=5)
