"""Interleaved data from recordings: transcripts whose words have times, with random spans as the codes of their sound.

    config = InterleaveConfig((Path("speech"),), Path("runs/woven"), aligned=Path("words.jsonl"), tokenizer=Path("t"))
    manifest = run(config)

Consecutive utterances of one `source` make one document. A span's codes are cut from those of its whole utterance, at
the code boundaries nearest to its first word's start and its last word's end. They are what a stream gives that hears
the speaker go on, and they decode to the sound of that place. Sound that was cut first and coded alone would begin and
end as no recording does, and lose what its codes know of the speaker so far. The price: attention is block-causal, so
the last codes of a span may know a little of what comes next in their block (2 s in the paper), which the text behind
the span then says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import numpy as np

from weft import artifacts
from weft.artifacts import Manifest
from weft.audio import SAMPLE_RATE_HZ
from weft.data import job
from weft.data.corpus import read_manifest
from weft.data.job import Report
from weft.data.shards import write_documents
from weft.errors import UserError
from weft.interleave.alignments import Alignments, Timed
from weft.interleave.config import InterleaveConfig
from weft.interleave.spans import Span, cut, hash64, segments_of, spans_of
from weft.records import Document, Meta, Utterance
from weft.tokenizer.tokenize import device, identity, readable
from weft.tokenizer.tokenizer import KIND, SpeechTokenizer

_UTTERANCES_PER_TASK = 512
_SLACK_SEC = 0.5  # that aligners put the end of a last word behind the end of the sound


def run(config: InterleaveConfig) -> Manifest:
    """Make the artifact `config.out`; one that is made already by the same plan is left as it is.

    Utterances without aligned words are left out and counted. Raises UserError where none is left, or too many have
    sound that cannot be read or words that are not those of their transcript.
    """
    assert config.aligned is not None
    assert config.tokenizer is not None
    parents = {"tokenizer": artifacts.read(config.tokenizer, KIND)}
    utterances = read_manifest(*config.corpus)
    alignments = Alignments.of(config.aligned)
    tasks = config.tasks or job.tasks_for(len(utterances), _UTTERANCES_PER_TASK)
    transcripts = hash64([(u.text, u.source, u.speaker) for u in utterances])
    settings = {
        "corpus": identity(utterances),
        "transcripts": f"{transcripts:016x}",
        "aligned": alignments.identity,
        "speech_ratio": config.speech_ratio,
        "mean_span_words": config.mean_span_words,
        "policy": config.policy,
        "seed": config.seed,
        "tasks": tasks,
    }
    if artifacts.is_made(config.out, "documents", settings, parents):
        return artifacts.read(config.out)
    with artifacts.build(config.out, "documents", settings, parents, config.licence) as draft:
        runs = groupby(enumerate(utterances), key=lambda pair: pair[1].source or pair[0])
        recordings = [[utterance for _, utterance in run] for _, run in runs]
        work = _Interleave(config, config.tokenizer, recordings, alignments, draft.folder, tasks)
        report = job.run(work, draft.folder, tasks, config.workers, "interleave", config.max_bad_share, config.executor)
        draft.counts.update(_summary(report, config.aligned))
    return artifacts.read(config.out)


@dataclass
class _Interleave:
    """The work of a task: tokenize its share of the recordings, draw spans over their words, write one part."""

    config: InterleaveConfig
    folder_of_tokenizer: Path
    recordings: list[list[Utterance]]
    alignments: Alignments
    folder: Path
    num_tasks: int

    @cached_property
    def tokenizer(self) -> SpeechTokenizer:
        tokenizer = SpeechTokenizer.load(self.folder_of_tokenizer)
        tokenizer.model.to(device())
        return tokenizer

    def __call__(self, task: int) -> Report:
        report = Report()
        mine = job.share(len(self.recordings), task, self.num_tasks)
        recordings = self.recordings[mine.start : mine.stop]
        timed = dict(self._timed([u for recording in recordings for u in recording], report))
        codes: dict[str, np.ndarray] = {}
        for group in readable([u for recording in recordings for u in recording if u.id in timed], report):
            fitting = [(u, samples) for u, samples in group if _fits(timed[u.id], len(samples), u.id, report)]
            found = self.tokenizer.encode([samples for _, samples in fitting])
            codes.update({u.id: c for (u, _), c in zip(fitting, found, strict=True)})
        whole = ([u for u in recording if u.id in codes] for recording in recordings)
        documents = (self._document(recording, timed, codes, report.counts) for recording in whole if recording)
        write_documents(self.folder, task, documents)
        return report

    def _timed(self, utterances: list[Utterance], report: Report) -> Iterator[tuple[str, Timed]]:
        for utterance in utterances:
            if utterance.id not in self.alignments.places:
                report.counts["without_words"] += 1
                continue
            try:
                yield utterance.id, self.alignments.timed(utterance)
            except UserError as e:
                report.skipped.add(utterance.id, str(e))

    def _document(
        self,
        recording: Sequence[Utterance],
        timed: Mapping[str, Timed],
        codes: Mapping[str, np.ndarray],
        counts: Counter[str],
    ) -> Document:
        """The utterances of a recording as one document, their texts joined by spaces."""
        config, rate_hz, first = self.config, self.tokenizer.frame_rate_hz, recording[0]
        mine = [timed[u.id] for u in recording]
        starts = [0, *accumulate(len(t.text) + 1 for t in mine[:-1])]
        first_words = [0, *accumulate(len(t.ends) for t in mine)]
        text = " ".join(t.text for t in mine)
        ends = np.concatenate([start + t.ends for start, t in zip(starts, mine, strict=True)])
        free = [
            (before + a, before + b) for before, t in zip(first_words, mine, strict=False) for a, b in _with_times(t)
        ]
        rng = np.random.default_rng(hash64(config.seed, first.id))
        spans = spans_of(text, ends, free, config.speech_ratio, config.mean_span_words, rng, config.policy)

        def codes_of(span: Span) -> list[int]:
            i = int(np.searchsorted(first_words, span[0], "right")) - 1
            seconds = mine[i].seconds[span[0] - first_words[i] : span[1] - first_words[i]]
            begin, end = nearest(seconds[0, 0], rate_hz), nearest(seconds[-1, 1], rate_hz)
            return codes[recording[i].id][begin:end].tolist()

        found = iter([codes_of(span) or None for span in spans])
        spoken = [(part, next(found) if part.spoken else None) for part in cut(text, ends, spans)]
        num_codes = sum(len(c) for _, c in spoken if c)
        spoken_words = sum(part.num_words for part, c in spoken if c)
        counts.update({"documents": 1, "words": len(ends), "spoken_words": spoken_words, "speech_codes": num_codes})
        counts.update({"spans": len(spans), "rejected_spans": sum(part.spoken and not c for part, c in spoken)})
        speakers = {u.speaker for u in recording}
        meta = Meta(
            speech_ratio=spoken_words / len(ends),
            words=len(ends),
            seconds=num_codes / rate_hz,
            speaker=first.speaker if len(speakers) == 1 else None,
            source=first.source,
        )
        return Document(first.id, "interleaved", segments_of(spoken), meta)


def nearest(sec: float, frame_rate_hz: float) -> int:
    """The boundary between codes that is nearest to a moment: code i lies between the boundaries i and i + 1."""
    return int(sec * frame_rate_hz + 0.5)


def _fits(timed: Timed, num_samples: int, name: str, report: Report) -> bool:
    """Whether the words end where the sound does, or before; else the utterance goes to what was skipped."""
    end_sec, sound_sec = float(timed.seconds[~np.isnan(timed.seconds)].max(initial=0.0)), num_samples / SAMPLE_RATE_HZ
    if end_sec > sound_sec + _SLACK_SEC:
        report.skipped.num_good -= 1
        report.skipped.add(
            name, f"its words end at {end_sec:.2f} s, and its sound at {sound_sec:.2f} s: align it again"
        )
    return end_sec <= sound_sec + _SLACK_SEC


def _with_times(timed: Timed) -> list[Span]:
    """The ranges of words that have times."""
    untimed = np.isnan(timed.seconds[:, 0])
    edges = np.flatnonzero(np.diff(untimed, prepend=True, append=True)).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def _summary(report: Report, aligned: Path) -> dict[str, Any]:
    """The counts of the manifest."""
    counts = report.counts
    if not counts["documents"]:
        raise UserError(f"{aligned} has the words of no utterance that can be read: check the ids in both")
    return {
        **{n: counts[n] for n in ("documents", "words", "spoken_words", "speech_codes", "spans", "rejected_spans")},
        "text_words": counts["words"] - counts["spoken_words"],
        "speech_ratio": round(counts["spoken_words"] / counts["words"], 4),
        "codes_per_spoken_word": round(counts["speech_codes"] / max(1, counts["spoken_words"]), 3),
        "without_words": counts["without_words"],
        "skipped_utterances": len(report.skipped.bad),
    }
