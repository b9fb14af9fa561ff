"""Interleaved data from recordings with word times: random spans are replaced by the codes of their own speech.

    config = InterleaveConfig((Path("speech"),), Path("runs/x"), aligned=Path("words.jsonl"), tokenizer=Path("runs/t"))
    manifest = run(config)

Consecutive utterances of one `source` form a document. The whole utterance is encoded, and the codes of a span are cut
out at the code boundaries nearest to the start of its first and the end of its last word. Encoding the audio of a span
alone would give codes without context. Attention is block-causal, so the last codes of a span may contain information
about the following audio of their block (2 s in the paper), which is the text after the span.
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
from weft.config import reject_url
from weft.data import job
from weft.data.datasets import write_document_part
from weft.data.job import Report
from weft.data.speech import read_manifest, speech_id
from weft.errors import UserError
from weft.interleave import statistics
from weft.interleave.alignments import Alignments, TimedText
from weft.interleave.config import InterleaveConfig
from weft.interleave.spans import Span, hash64, segments_of, select_spans, split_text
from weft.plan import Draft, Plan, create
from weft.records import Document, Meta, Utterance
from weft.tokenizer.artifact import KIND
from weft.tokenizer.tokenize import encode_group, read_groups
from weft.tokenizer.tokenizer import SpeechTokenizer

_UTTERANCES_PER_TASK = 512
_TOLERANCE_SEC = 0.5  # by which the last word of aligners may end after the audio


def run(config: InterleaveConfig) -> Manifest:
    """Create the artifact `config.out`.

    Utterances without aligned words are left out and counted. Raises UserError if none is left, or if too many have
    unreadable audio or words that differ from their transcript.
    """
    aligned, tokenizer = config.aligned, config.tokenizer
    assert aligned is not None
    assert tokenizer is not None
    for source in config.corpus:  # manifests of speech, unlike texts, are paths
        if not Path(source).exists():
            reject_url(source)
    parents = {"tokenizer": artifacts.read_parent(tokenizer, KIND)}
    utterances = read_manifest(*config.corpus)
    alignments = Alignments.of(aligned)
    tasks = config.tasks or job.tasks_for(len(utterances), _UTTERANCES_PER_TASK)
    inputs = {"corpus": speech_id(utterances), "aligned": alignments.identity, "tasks": tasks}
    plan = Plan.of("documents", config, parents, **inputs)

    def write(draft: Draft) -> None:
        runs = groupby(enumerate(utterances), key=lambda pair: pair[1].source or pair[0])
        recordings = [[utterance for _, utterance in run] for _, run in runs]
        work = _Interleave(config, tokenizer, recordings, alignments, draft.folder, tasks)
        draft.counts.update(_summary(job.run(work, draft, tasks, config.job, "interleave"), aligned))
        statistics.report_text(draft.counts, config.speech_ratio)

    return create(config.out, plan, write, config.licence)


@dataclass
class _Interleave:
    """A task: encode a part of the recordings, select spans of their words, and write one part."""

    config: InterleaveConfig
    tokenizer_folder: Path
    recordings: list[list[Utterance]]
    alignments: Alignments
    folder: Path
    num_tasks: int

    @cached_property
    def tokenizer(self) -> SpeechTokenizer:
        return SpeechTokenizer.from_pretrained(self.tokenizer_folder)

    def __call__(self, task: int) -> Report:
        report = Report()
        indices = job.task_range(len(self.recordings), task, self.num_tasks)
        recordings = self.recordings[indices.start : indices.stop]
        utterances = [u for recording in recordings for u in recording]
        timed = dict(self._timed(utterances, report))
        codes: dict[str, np.ndarray] = {}
        for group in read_groups([u for u in utterances if u.id in timed], report):
            fitting = []
            for u, samples in group:
                with report.skipped.on_error(u.id):
                    _check_times(timed[u.id], len(samples))
                    fitting.append((u, samples))
            encoded = encode_group(self.tokenizer, fitting, report)
            report.skipped.num_good += len(encoded)
            codes.update({u.id: c for (u, _), c in encoded})
        readable = ([u for u in recording if u.id in codes] for recording in recordings)
        documents = (self._document(recording, timed, codes, report.counts) for recording in readable if recording)
        report.written = write_document_part(self.folder, task, documents)
        return report

    def _timed(self, utterances: list[Utterance], report: Report) -> Iterator[tuple[str, TimedText]]:
        for utterance in utterances:
            if utterance.problem is None and utterance.id not in self.alignments.places:
                report.counts["without_words"] += 1
                continue
            with report.skipped.on_error(utterance.id):
                if utterance.problem is not None:
                    raise UserError(utterance.problem)
                yield utterance.id, self.alignments.timed(utterance, self.config.recase)

    def _document(
        self,
        recording: Sequence[Utterance],
        timed: Mapping[str, TimedText],
        codes: Mapping[str, np.ndarray],
        counts: Counter[str],
    ) -> Document:
        """Return the utterances of a recording as one document, their texts joined by spaces."""
        config, rate_hz, first = self.config, self.tokenizer.frame_rate_hz, recording[0]
        texts = [timed[u.id] for u in recording]
        starts = [0, *accumulate(len(t.text) + 1 for t in texts[:-1])]
        first_words = [0, *accumulate(len(t.ends) for t in texts)]
        text = " ".join(t.text for t in texts)
        ends = np.concatenate([start + t.ends for start, t in zip(starts, texts, strict=True)])
        speakable = [
            (before + a, before + b) for before, t in zip(first_words, texts, strict=False) for a, b in _with_times(t)
        ]
        rng = np.random.default_rng(hash64(config.seed, first.id))
        spans = select_spans(text, ends, speakable, config.speech_ratio, config.mean_span_words, rng, config.policy)

        def codes_of(span: Span) -> list[int]:
            i = int(np.searchsorted(first_words, span[0], "right")) - 1
            seconds = texts[i].seconds[span[0] - first_words[i] : span[1] - first_words[i]]
            begin, end = (int(sec * rate_hz + 0.5) for sec in (seconds[0, 0], seconds[-1, 1]))  # nearest boundaries
            return codes[recording[i].id][begin:end].tolist()

        span_codes = iter([codes_of(span) or None for span in spans])
        parts = [(part, next(span_codes) if part.spoken else None) for part in split_text(text, ends, spans)]
        num_codes = sum(len(c) for _, c in parts if c)
        spoken_words = sum(part.num_words for part, c in parts if c)
        counts.update({"documents": 1, "words": len(ends), "spoken_words": spoken_words, "speech_codes": num_codes})
        counts.update({"spans": len(spans), "rejected_spans": sum(part.spoken and not c for part, c in parts)})
        speakers = {u.speaker for u in recording}
        meta = Meta(
            speech_ratio=spoken_words / len(ends),
            words=len(ends),
            seconds=num_codes / rate_hz,
            speaker=first.speaker if len(speakers) == 1 else None,
            source=first.source,
        )
        return Document(first.id, "interleaved", segments_of(parts), meta)


def _check_times(timed: TimedText, num_samples: int) -> None:
    """Raise UserError if words end after the audio."""
    end_sec, audio_sec = float(timed.seconds[~np.isnan(timed.seconds)].max(initial=0.0)), num_samples / SAMPLE_RATE_HZ
    if end_sec > audio_sec + _TOLERANCE_SEC:
        raise UserError(f"its words end at {end_sec:.2f} s, after its audio at {audio_sec:.2f} s: align it again")


def _with_times(timed: TimedText) -> list[Span]:
    """Return the ranges of words that have times."""
    untimed = np.isnan(timed.seconds[:, 0])
    edges = np.flatnonzero(np.diff(untimed, prepend=True, append=True)).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def _summary(report: Report, aligned: Path) -> dict[str, Any]:
    counts = report.counts
    if not counts["documents"]:
        raise UserError(f"{aligned} has no words of a readable utterance: compare its ids with those of the manifest")
    return {
        **{n: counts[n] for n in ("documents", "words", "spoken_words", "speech_codes", "spans", "rejected_spans")},
        "text_words": counts["words"] - counts["spoken_words"],
        "speech_ratio": round(counts["spoken_words"] / counts["words"], 4),
        "codes_per_spoken_word": round(counts["speech_codes"] / max(1, counts["spoken_words"]), 3),
        "without_words": counts["without_words"],
        "skipped_utterances": len(report.skipped.bad),
    }
