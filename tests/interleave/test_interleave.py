"""Interleaved documents contain the exact text of the corpus, and depend on the plan only."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest

from tests.interleave import fakes
from tests.interleave.fakes import (
    GATE,
    SPEAKERS,
    FakeSynthesizer,
    FakeTranscriber,
    load,
    load_and_log,
    load_transcriber,
    load_with_speakers,
)
from weft.data.corpus import read_texts
from weft.data.datasets import Rows
from weft.data.job import JobConfig
from weft.errors import UserError
from weft.interleave.config import InterleaveConfig
from weft.interleave.interleave import run


def parts_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("part-*.parquet"))}


def documents_of(folder):
    return list(Rows.of(folder).documents())


@pytest.fixture
def create(tmp_path, corpus, text_to_token):
    """create(name, **settings) -> the manifest of TMP/name."""

    def create(name, load=load, workers=1, **settings):
        job = JobConfig(workers=workers)
        config = InterleaveConfig((corpus,), tmp_path / name, text_to_token, job=job, **settings)
        return run(config, load, load_transcriber)

    return create


def speech_in(*documents):
    return [s for d in documents for s in d.segments if s.type == "speech"]


def words_of(texts):
    return [text.replace(",", "").replace(".", "").split() for text in texts]


def without_times(counts):
    """Return counts without those that depend on the speed of the machine."""
    return {name: count for name, count in counts.items() if name not in ("tokens_per_sec", "cost_of_600b_tokens")}


def test_removing_the_speech_restores_the_text(create, tmp_path, corpus):
    create("out", tasks=3)
    documents = documents_of(tmp_path / "out")
    assert [(d.id, d.text) for d in documents] == [(t.id, t.text) for t in read_texts(corpus)]
    assert {d.kind for d in documents} == {"interleaved"}
    for d in documents:
        kinds = [s.type for s in d.segments]
        assert "text text" not in " ".join(kinds)
        assert all((s.codes is None) == (s.type == "text") for s in d.segments)
        assert all(len(s.codes) == 4 * len(s.text.split()) for s in speech_in(d))


def test_counts_and_meta_describe_the_documents(create, tmp_path):
    counts = create("out", tasks=3).counts
    documents = documents_of(tmp_path / "out")
    speech = speech_in(*documents)
    assert counts["documents"] == 120
    assert counts["speech_codes"] == sum(len(s.codes) for s in speech)
    assert counts["spans"] - counts["rejected_spans"] == len(speech)
    assert counts["rejected_spans"] > 0
    assert counts["words"] == sum(d.meta.words for d in documents) == sum(len(d.text.split()) for d in documents)
    assert counts["spoken_words"] == sum(len(s.text.split()) for s in speech)
    assert counts["text_words"] + counts["spoken_words"] == counts["words"]
    assert counts["codes_per_spoken_word"] == 4
    assert counts["speech_ratio"] == pytest.approx(0.3, abs=0.02)
    factor = 600e9 / (counts["speech_codes"] + 4 / 3 * counts["text_words"])
    size_bytes = sum(len(part) for part in parts_of(tmp_path / "out").values())
    cost = counts["cost_of_600b_tokens"]
    assert cost["corpus_words"] == pytest.approx(counts["words"] * factor)
    assert cost["storage_gb"] == pytest.approx(size_bytes * factor / 1e9, rel=0.01)
    assert cost["worker_hours"] == pytest.approx(
        counts["speech_codes"] / counts["tokens_per_sec"] * factor / 3600, rel=0.1
    )
    assert list(counts["speech_ratio_by_words"]) == ["0-9", "10-49", "50-199", "200-999"]
    for d in documents:
        assert d.meta.speech_ratio == pytest.approx(sum(len(s.text.split()) for s in speech_in(d)) / d.meta.words)
        assert d.meta.seconds == pytest.approx(sum(len(s.codes) for s in speech_in(d)) / 12.5)


def test_unspeakable_text_stays_text_and_is_counted(create, tmp_path):
    counts = create("out").counts
    documents = documents_of(tmp_path / "out")
    num_urls = sum(d.text.count("https://") for d in documents)
    assert num_urls > 0
    assert counts["left_as_text"] == {"address": num_urls}
    assert counts["documents_left_whole"] == 0
    assert not any("https://" in s.text for s in speech_in(*documents))


def test_the_gate_keeps_spans_within_max_wer_and_reports_their_error_rates(create, tmp_path, make_tokenizer):
    counts = create("out", tokenizer=make_tokenizer(), **GATE).counts
    documents = documents_of(tmp_path / "out")
    num_words = num_wrong = 0
    for d in documents:
        speech = speech_in(d)
        assert len(d.meta.span_wer) == len(speech)
        transcripts = [
            text.split() for text in FakeTranscriber().transcribe([s.codes for s in speech], ["en"] * len(speech))
        ]
        references = words_of(s.text for s in speech)
        wrong = [sum(a != b for a, b in zip(*pair, strict=True)) for pair in zip(transcripts, references, strict=True)]
        assert d.meta.span_wer == pytest.approx([n / len(s) for n, s in zip(wrong, references, strict=True)])
        assert max(d.meta.span_wer, default=0) <= GATE["max_wer"]
        if speech:
            assert d.meta.wer == pytest.approx(sum(wrong) / sum(map(len, references)))
        else:
            assert d.meta.wer is None
        num_words += sum(map(len, references))
        num_wrong += sum(wrong)
    read_back = counts["read_back"]
    assert read_back["wer_after"] == pytest.approx(num_wrong / num_words, abs=1e-4)
    assert read_back["wer_before"] > 2 * read_back["wer_after"] > 0
    assert not {"cer_before", "cer_after"} & read_back.keys()
    assert read_back["dropped_share"] == pytest.approx((counts["rejected_spans"]) / counts["spans"], abs=0.01)
    assert 0.2 < read_back["dropped_share"] < 0.35
    assert 0.45 < counts["retried_share"] < 0.6
    assert len(speech_in(*documents)) == counts["spans"] - counts["rejected_spans"]


def test_without_max_wer_the_gate_only_measures(create, tmp_path, make_tokenizer):
    create("unmeasured", tries=1)
    measured = create("measured", tries=1, tokenizer=make_tokenizer())
    gated = create("gated", tokenizer=make_tokenizer(), **GATE | {"tries": 1})
    unmeasured = documents_of(tmp_path / "unmeasured")
    assert [d.segments for d in documents_of(tmp_path / "measured")] == [d.segments for d in unmeasured]
    assert {(d.meta.wer, d.meta.span_wer) for d in unmeasured} == {(None, None)}
    found, before = measured.counts["read_back"], gated.counts["read_back"]
    assert found["wer_after"] == found["wer_before"] == before["wer_before"]
    assert found["span_wer"] == before["span_wer"]
    assert found["dropped_share"] == 0
    assert sum(found["span_wer"].values()) == measured.counts["spans"] - measured.counts["rejected_spans"]
    rates = [rate for d in documents_of(tmp_path / "measured") for rate in d.meta.span_wer]
    assert found["span_wer"]["0"] == rates.count(0.0)
    assert found["span_wer"]["to 1"] == sum(0.5 < rate <= 1 for rate in rates)


def test_more_tries_reject_fewer_spans(create):
    rejected = [create(f"tries{n}", tries=n).counts["rejected_spans"] for n in (1, 2, 4)]
    assert rejected[0] > rejected[1] > rejected[2] == 0


def test_a_tokenizer_that_cannot_transcribe_the_codes_is_an_error(create, tmp_path, make_tokenizer):
    with pytest.raises(UserError, match="was made with tokenizer aaaa, not with bbbb"):
        create("out", tokenizer=make_tokenizer("other", "bbbb"))
    with pytest.raises(UserError, match="is encoder_only and cannot transcribe codes"):
        create("out", tokenizer=make_tokenizer("half", encoder_only=True))
    with pytest.raises(UserError, match="max_wer needs a tokenizer that measures the word error rate: give --token"):
        create("out", max_wer=0.3)
    assert not [*tmp_path.glob("out*")]


def test_each_document_has_one_voice_that_depends_on_the_seed(create, tmp_path):
    create("one", load_with_speakers, tasks=2)
    create("two", load_with_speakers, tasks=5)
    create("three", load_with_speakers, seed=1)
    documents = documents_of(tmp_path / "one")
    assert documents == documents_of(tmp_path / "two")
    for d in documents:
        spoken = {code for s in speech_in(d) for code in s.codes}
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


def test_rejected_spans_are_counted_by_reason(create, tmp_path, make_tokenizer, capsys):
    counts = create("out", tokenizer=make_tokenizer(), **GATE).counts
    assert counts["rejections"].keys() == {"no_end", "above_max_wer"}
    assert sum(counts["rejections"].values()) == counts["rejected_spans"]
    planned = 0.3 * counts["words"]
    assert counts["spoken_words"] + sum(counts["rejected_words"].values()) == pytest.approx(planned, rel=0.02)
    printed = capsys.readouterr().err
    assert f"{counts['rejections']['above_max_wer']}" in next(row for row in printed.splitlines() if "above max" in row)
    assert "warning" not in printed


def test_a_low_speech_ratio_is_a_warning_of_one_line_with_the_reasons(create, capsys):
    class Mostly(FakeSynthesizer):
        def codes(self, text, seed):
            return super().codes(text, seed) if len(text) < 30 else None

        def problem_of(self, text, speaker=None):
            return "too_long" if len(text) > 40 else None

    counts = create("out", lambda folder, url: Mostly()).counts
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert f"the speech ratio is {counts['speech_ratio']:.3f}, less than half of the requested 0.3" in line
    assert f"{counts['rejected_spans']} of {counts['spans']} spans were rejected" in line
    assert f"{counts['rejections']['too_long']} too long, {counts['rejections']['no_end']} no end" in line
    assert f"{counts['left_as_text']['address']} of {counts['words']:,} words cannot be spoken" in line


@pytest.mark.parametrize("policy", ["sentences", "alternate"])
def test_policies_have_the_same_counts_and_different_plans(create, policy):
    poisson, other = create("poisson"), create(policy, policy=policy)
    assert other.settings["policy"] == policy
    assert other.counts.keys() == poisson.counts.keys()
    assert other.counts["speech_ratio"] == pytest.approx(0.3, abs=0.02)
    with pytest.raises(UserError, match=f"was created with policy = poisson \\(now {policy}\\)"):
        create("poisson", policy=policy)


@pytest.mark.parametrize("gated", [False, True])
def test_the_number_of_tasks_does_not_change_the_documents_and_the_seed_does(create, tmp_path, make_tokenizer, gated):
    gate = {"tokenizer": make_tokenizer(), **GATE} if gated else {}
    for name, settings in (("one", {"tasks": 4}), ("two", {"tasks": 7}), ("three", {"seed": 1})):
        create(name, **settings, **gate)
    one, two, three = (documents_of(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two
    assert one != three


def test_the_number_of_workers_changes_no_bytes_and_each_loads_the_model_once(create, tmp_path, make_tokenizer):
    gate = {"tokenizer": make_tokenizer(), **GATE}
    one = create("one", load_and_log, tasks=4, **gate)
    assert (tmp_path / "loads").read_text().split() == ["None"]
    two = create("two", load_and_log, tasks=4, workers=2, **gate)
    assert len((tmp_path / "loads").read_text().split()) <= 3
    assert one.fingerprint == two.fingerprint
    assert without_times(one.counts) == without_times(two.counts)
    assert parts_of(tmp_path / "one") == parts_of(tmp_path / "two")


def test_the_url_of_a_server_may_change_but_not_whether_one_is_used(create, tmp_path):
    first = create("out", load_and_log, url="http://one/v1")
    assert (tmp_path / "loads").read_text().split() == ["http://one/v1"]
    assert create("out", url="http://two/v1") == first
    with pytest.raises(UserError, match=r"was created with by_url = True \(now False\)"):
        create("out")


def test_an_artifact_of_the_same_plan_is_returned_and_of_another_plan_is_an_error(create, tmp_path):
    first = create("out", tasks=2)
    before = (tmp_path / "out/manifest.json").stat().st_mtime_ns
    assert create("out", tasks=2, workers=2) == first
    assert (tmp_path / "out/manifest.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"was created with tasks = 2 \(now 3\): choose another --out"):
        create("out", tasks=3)


def test_a_speech_ratio_of_one_leaves_only_rejected_and_unspeakable_text(create, tmp_path):
    counts = create("out", speech_ratio=1.0).counts
    documents = documents_of(tmp_path / "out")
    num_text = sum(s.type == "text" for d in documents for s in d.segments)
    assert num_text <= counts["rejected_spans"] + counts["left_as_text"]["address"]
    assert counts["speech_ratio"] + counts["left_as_text"]["address"] / counts["words"] > 0.9


@pytest.mark.parametrize("bad", [{"speech_ratio": 0}, {"speech_ratio": 1.1}, {"mean_span_words": 0.5}])
def test_settings_out_of_range_are_errors(create, bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        create("out", **bad)


def test_documents_with_the_same_id_are_kept_and_get_different_spans(tmp_path, text_to_token):
    words = " ".join(["the cat and dog sat on old mats"] * 20)
    texts = [f"{words} {end}" for end in ("at", "in", "at")]
    (tmp_path / "same.jsonl").write_text("\n".join(json.dumps({"id": "same", "text": text}) for text in texts))
    run(InterleaveConfig((tmp_path / "same.jsonl",), tmp_path / "same", text_to_token), load)
    documents = documents_of(tmp_path / "same")
    assert [(d.id, d.text) for d in documents] == [("same", text) for text in texts]
    assert documents[0] == documents[2]
    assert [s.text for s in documents[0].segments][:-1] != [s.text for s in documents[1].segments][:-1]


def test_a_corpus_at_a_url_gives_the_same_bytes(create, tmp_path, corpus, text_to_token):
    create("local", tasks=3)
    store = fsspec.filesystem("memory")
    store.pipe({"/books/corpus.jsonl": corpus.read_bytes()})
    try:
        run(InterleaveConfig(("memory://books",), tmp_path / "remote", text_to_token, tasks=3), load)
    finally:
        store.rm("/books", recursive=True)
    assert parts_of(tmp_path / "remote") == parts_of(tmp_path / "local")


def test_a_model_that_synthesizes_nothing_and_an_output_url_are_errors(create, corpus, text_to_token):
    class Mute(FakeSynthesizer):
        def codes(self, text, seed):
            return None

    with pytest.raises(UserError, match=r"none of the \d+ spans was accepted"):
        create("out", lambda folder, url: Mute())
    with pytest.raises(UserError, match=r"s3://bucket/out is a URL: create it in a local or shared directory"):
        run(InterleaveConfig((corpus,), Path("s3://bucket/out"), text_to_token), load)


@pytest.fixture
def start(tmp_path, corpus, text_to_token):
    """start(workers) -> a process that creates TMP/killed in 12 tasks."""

    def start(workers):
        command = [sys.executable, fakes.__file__, corpus, text_to_token, tmp_path / "killed", str(workers)]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL)

    return start


def num_finished(folder):
    return len(list(folder.glob("log/job/completions/*")))


def wait_for(condition, limit_sec=60.0):
    start_sec = time.monotonic()
    while not condition():
        assert time.monotonic() - start_sec < limit_sec
        time.sleep(0.005)


def children_of(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
def test_the_workers_of_a_killed_job_end_and_the_next_run_gives_the_same_bytes(create, start, tmp_path):
    create("whole", tasks=12)
    out, partial = tmp_path / "killed", tmp_path / "killed.partial"
    for workers, num, delay_sec in ((1, 0, 0.03), (2, 3, 0.07)):
        job = start(workers)
        wait_for(lambda n=num: partial.exists() and num_finished(partial) >= n)
        time.sleep(delay_sec)
        assert job.poll() is None
        children = children_of(job.pid)
        assert workers == 1 or len(children) >= 2
        os.kill(job.pid, signal.SIGKILL)
        job.wait()
        wait_for(lambda pids=children: not any(map(is_alive, pids)), limit_sec=5)
    assert not out.exists()
    (partial / "part-00011.parquet.tmp").write_text("left by a killed writer")
    create("killed", tasks=12)
    assert parts_of(out) == parts_of(tmp_path / "whole")
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("killed", "whole")]
    for manifest in manifests:
        manifest["counts"] = without_times(manifest["counts"])
    assert manifests[0] == manifests[1]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
def test_a_killed_worker_ends_the_job_and_the_next_run_gives_the_same_bytes(create, start, tmp_path):
    create("whole", tasks=12)
    out = tmp_path / "killed"
    job = start(2)
    wait_for(lambda: num_finished(tmp_path / "killed.partial") >= 2)
    os.kill(children_of(job.pid)[-1], signal.SIGKILL)  # the first child is Python's resource tracker
    assert job.wait(timeout=20) != 0
    assert not out.exists()
    create("killed", tasks=12)
    assert parts_of(out) == parts_of(tmp_path / "whole")
    assert not [*out.rglob("*.tmp")]
