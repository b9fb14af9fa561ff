"""Audio, documents, curves and examples for the report of a demo run."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import soundfile

from weft.data.datasets import Rows
from weft.data.speech import read_manifest
from weft.decoder.decoder import SpeechDecoder
from weft.demo.run import DemoRun
from weft.eval.cloze import read_pairs
from weft.pages.components import Clip
from weft.pages.demo_report import ChatExample, ClozeExample, ReportData, Span, TokenizerExample
from weft.text_to_token.synthesize import Synthesizer
from weft.tokenizer.tokenizer import SpeechTokenizer
from weft.training.metrics import read_metrics

_TRAINING_RUNS = {
    "tokenizer": "tokenizer",
    "decoder": "decoder",
    "text_to_token": "text_to_token",
    "pretrain": "pretrained",
    "sft": "lm",
}
_JUDGE = "Transcripts by the tokenizer's own ASR model; Whisper's basic normalizer; 95 % bootstrap interval."
_NOTES = {
    "tokenizer.wer": f"{_JUDGE} Held-out sentences.",
    "resynth.wer": f"{_JUDGE} Flow matching and Griffin-Lim.",
    "text_to_token.wer": f"{_JUDGE} Held-out sentences, one sample each.",
    "tokenizer.span_wer": "Speech of spans as interleaving cuts them, without the context of a sentence.",
    "text_to_token.span_wer": "The same spans, synthesized from text; includes the errors of the ASR model on spans.",
    "interleave": "Poisson(10) span lengths over whole documents; fraction of words.",
    "pretrain.loss": "Held-out documents.",
    "eval.topic_cloze": "Mean log-likelihood of the ending's tokens; the wrong ending is from another topic. "
    "95 % bootstrap interval. Mutual information subtracts the score of the ending without the beginning.",
    "chat": "The question has a wording that does not occur in training.",
}


def report_data(demo: DemoRun) -> ReportData:
    """Return what the report of a finished run shows besides its results."""
    decoder = SpeechDecoder.from_pretrained(demo.path("decoder"))
    curves = {stage: list(read_metrics(demo.path(folder) / "log")) for stage, folder in _TRAINING_RUNS.items()}
    return ReportData(
        tokenizer=_tokenizer(demo),
        spoken=_spoken(demo, decoder),
        document=_document(demo, decoder),
        curves=curves,
        cloze=_cloze(demo),
        chat=_chat(demo),
        skipped=_skipped(demo),
        notes=_NOTES,
    )


def clip(path: Path, text: str | None = None) -> Clip:
    """Read an audio file of the run."""
    samples, rate_hz = soundfile.read(path, dtype="float32")
    return Clip(samples, rate_hz, text)


def _tokenizer(demo: DemoRun) -> TokenizerExample:
    utterance = read_manifest(demo.data.held_out)[0]
    codes = next(iter(Rows.of(demo.path("codes/held_out")).utterances())).codes
    tokenizer = SpeechTokenizer.from_pretrained(demo.path("tokenizer"))
    return TokenizerExample(
        original=clip(demo.path("sounds/original.wav"), utterance.text),
        resynthesized=clip(demo.path("sounds/resynthesized.wav"), utterance.text),
        codes=[int(c) for c in codes],
        transcript=tokenizer.transcribe([codes], [utterance.language])[0],
        frame_rate_hz=tokenizer.frame_rate_hz,
    )


def _spoken(demo: DemoRun, decoder: SpeechDecoder) -> Clip | None:
    text = read_manifest(demo.data.held_out)[-1].text or ""
    synthesizer = Synthesizer.from_pretrained(demo.path("text_to_token"))
    codes = synthesizer.synthesize([text], [demo.config.seed])[0]
    return Clip(decoder.synthesize(codes, demo.config.seed), decoder.sample_rate_hz, text) if codes else None


def _document(demo: DemoRun, decoder: SpeechDecoder) -> list[Span]:
    documents = Rows.of(demo.path("documents/interleaved")).documents()
    document = max(islice(documents, 50), key=lambda d: sum(s.type == "speech" for s in d.segments))
    return [
        Span(
            s.text or "",
            Clip(decoder.synthesize(s.codes, i), decoder.sample_rate_hz, s.text),
            [int(c) for c in s.codes],
        )
        if s.codes is not None and s.type == "speech"
        else Span(s.text or "")
        for i, s in enumerate(document.segments)
    ]


def _cloze(demo: DemoRun) -> list[ClozeExample]:
    chosen = json.loads(demo.path("log/cloze.json").read_text())
    pairs = [p for p in read_pairs(demo.data.pairs) if p.id in chosen][:2]
    return [ClozeExample(p.beginning or "", p.right or "", p.wrong or "", chosen[p.id]) for p in pairs]


def _chat(demo: DemoRun) -> ChatExample:
    found = demo.results["chat"]
    return ChatExample(
        question=clip(demo.path("sounds/question.wav"), found["question"]),
        answer=clip(demo.path("sounds/answer.wav"), found["answer_text"]),
        expected=demo.data.keywords,
    )


def _skipped(demo: DemoRun) -> list[str]:
    lines = []
    for report in sorted(demo.folder.rglob("log/skipped.jsonl")):
        rows = report.read_text().splitlines()
        stage, example = report.relative_to(demo.folder).parts[0], json.loads(rows[0])["where"]
        lines.append(f"{stage}: {len(rows)}, such as {example}")
    return lines
