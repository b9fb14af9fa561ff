"""What the demo's report shows beside the numbers, gathered from a finished run."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import soundfile

from weft.data.corpus import read_manifest
from weft.data.shards import Rows
from weft.decoder.decoder import SpeechDecoder
from weft.demo.report import ChatExhibit, ClozeExample, Exhibits, Span, TokenizerExhibit
from weft.demo.road import Road
from weft.eval.cloze import read_pairs
from weft.eval.report import Clip
from weft.records import Document
from weft.text_to_token.synthesize import Synthesizer
from weft.tokenizer.tokenizer import SpeechTokenizer
from weft.training.metrics import read_metrics

_RUNS = {
    "tokenizer": "tokenizer",
    "decoder": "decoder",
    "text_to_token": "text_to_token",
    "pretrain": "pretrained",
    "sft": "lm",
}
_JUDGE = "Judge: the tokenizer's own second half and text decoder; Whisper's basic normaliser; 95 % bootstrap interval."
_NOTES = {
    "tokenizer.wer": f"{_JUDGE} Held-out sentences.",
    "resynth.wer": f"{_JUDGE} Codes to sound by flow matching and Griffin-Lim, then the same ear again.",
    "text_to_token.wer": f"{_JUDGE} Held-out sentences, one draw each.",
    "tokenizer.span_wer": "Real speech of spans as interleaving cuts them. There is no sentence to guess a word from.",
    "text_to_token.span_wer": "The same spans, said from text: the ear's own error on spans is in this.",
    "interleave": "Spans of Poisson(10) words over whole documents; the ratio is by words.",
    "pretrain.loss": "Nats a token on held-out documents.",
    "eval.topic_cloze": "Mean log-likelihood of the ending's tokens; the wrong ending is another story's. Wilson 95 %. "
    "By mutual information: what the beginning adds to the ending's likelihood, however common the ending is.",
    "chat": "The question is in a phrasing that training never used.",
}


def gather(road: Road) -> Exhibits:
    """Sounds, documents, curves and examples of a run."""
    decoder = SpeechDecoder.load(road.path("decoder"))
    return Exhibits(
        tokenizer=_tokenizer(road),
        said=_said(road, decoder),
        document=_document(road, decoder),
        curves={stage: list(read_metrics(road.path(folder) / "log")) for stage, folder in _RUNS.items()},
        cloze=_cloze(road),
        chat=_chat(road),
        skipped=_skipped(road),
        notes=_NOTES,
    )


def clip(path: Path, text: str | None = None) -> Clip:
    """A sound file of the run."""
    samples, rate_hz = soundfile.read(path, dtype="float32")
    return Clip(samples, rate_hz, text)


def _tokenizer(road: Road) -> TokenizerExhibit:
    said = read_manifest(road.material.held_out)[0]
    codes = next(iter(Rows.of(road.path("codes/held_out")).utterances())).codes
    tokenizer = SpeechTokenizer.load(road.path("tokenizer"))
    return TokenizerExhibit(
        original=clip(road.path("sounds/original.wav"), said.text),
        resynthesised=clip(road.path("sounds/resynthesised.wav"), said.text),
        codes=[int(c) for c in codes],
        read_back=tokenizer.transcribe([codes])[0],
        frame_rate_hz=tokenizer.frame_rate_hz,
    )


def _said(road: Road, decoder: SpeechDecoder) -> Clip | None:
    text = read_manifest(road.material.held_out)[-1].text or ""
    codes = Synthesizer.load(road.path("text_to_token")).speak([text], [road.config.seed])[0]
    return Clip(decoder.synthesize(codes, road.config.seed), decoder.sample_rate_hz, text) if codes else None


def _document(road: Road, decoder: SpeechDecoder) -> list[Span]:
    rows = Rows.of(road.path("documents/woven")).documents()
    document = max(islice(rows, 50), key=_num_spoken)
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


def _num_spoken(document: Document) -> int:
    return sum(segment.type == "speech" for segment in document.segments)


def _cloze(road: Road) -> list[ClozeExample]:
    chosen = json.loads(road.path("log/cloze.json").read_text())
    pairs = [p for p in read_pairs(road.material.pairs) if p.id in chosen][:2]
    return [ClozeExample(p.beginning, p.right, p.wrong, chosen[p.id]) for p in pairs]


def _chat(road: Road) -> ChatExhibit:
    found = road.results["chat"]
    return ChatExhibit(
        question=clip(road.path("sounds/question.wav"), found["question"]),
        answer=clip(road.path("sounds/answer.wav"), found["answer_text"]),
        expected=road.material.gold,
    )


def _skipped(road: Road) -> list[str]:
    lines = []
    for report in sorted(road.folder.rglob("log/skipped.jsonl")):
        bad = report.read_text().splitlines()
        lines.append(
            f"{report.relative_to(road.folder).parts[0]}: {len(bad)} left out, such as {json.loads(bad[0])['where']}"
        )
    return lines
