"""The report of `weft demo`: an HTML page with audio, and a summary for the terminal.

    html = render(results, ReportData(document=(Span("Once"), Span(" upon", clip, codes)), chat=ChatExample(...)))
    print("\\n".join(summary(results, Path("runs/demo"))))

`results` is the content of results.json. Missing values are shown as missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weft import __version__
from weft.pages.components import Clip, duration, environment, is_known, number, percent, series
from weft.text.normalize import comparison_form

CHANCE = 0.5
# Topic-cloze directions, by the key in the results: symbol and meaning.
DIRECTIONS = {
    "TT": ("T", "written beginning, written endings"),
    "ST": ("S→T", "spoken beginning, written endings"),
    "TS": ("T→S", "written beginning, spoken endings"),
    "SS": ("S", "spoken beginning, spoken endings"),
}
# Metrics of each training run to draw, with their names.
CURVES = {
    "tokenizer": {"cross_entropy": "transcript", "ctc": "CTC"},
    "decoder": {"loss": "decoder"},
    "text_to_token": {"loss": "speech"},
    "pretrain": {"loss_text": "text", "loss_speech": "speech"},
    "sft": {"loss_text": "text", "loss_speech": "speech"},
}


@dataclass(frozen=True)
class TokenizerExample:
    """An utterance (its `text` is the transcript), its resynthesis, its codes, and the transcript of the codes."""

    original: Clip
    resynthesized: Clip
    codes: Sequence[int]
    transcript: str
    frame_rate_hz: float = 12.5


@dataclass(frozen=True)
class Span:
    """A stretch of an interleaved document with the white space before it, and its audio if it is spoken."""

    text: str
    clip: Clip | None = None
    codes: Sequence[int] = ()

    @property
    def indent(self) -> str:
        return self.text[: len(self.text) - len(self.text.lstrip())]


@dataclass(frozen=True)
class ClozeExample:
    """A pair, and by direction (a key of DIRECTIONS) whether the model preferred the right ending."""

    beginning: str
    right: str
    wrong: str
    chosen_right: Mapping[str, bool]


@dataclass(frozen=True)
class ChatExample:
    """A spoken question and answer with their texts, and the words that a right answer contains, if known."""

    question: Clip
    answer: Clip
    expected: str | None = None

    @property
    def is_right(self) -> bool | None:
        """Whether the answer contains the expected words, normalized as for error rates; None if unknown."""
        if not self.expected:
            return None
        return f" {comparison_form(self.expected)} " in f" {comparison_form(self.answer.text or '')} "


@dataclass(frozen=True)
class ReportData:
    """The content of the page besides the figures. Missing parts are left out.

    `curves` are the lines of metrics.jsonl by stage. `notes` describe how a number was measured, by its name in the
    results, such as "tokenizer.wer". `skipped` lists what was skipped, one line per stage.
    """

    tokenizer: TokenizerExample | None = None
    spoken: Clip | None = None
    document: Sequence[Span] = ()
    curves: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    cloze: Sequence[ClozeExample] = ()
    chat: ChatExample | None = None
    skipped: Sequence[str] = ()
    notes: Mapping[str, str] = field(default_factory=dict)


def render(results: Mapping[str, Any], data: ReportData) -> str:
    """Return the page."""
    curves = {stage: series(data.curves.get(stage, ()), names) for stage, names in CURVES.items()}
    template = environment().get_template("demo_report.html")
    return template.render(
        r=results, e=data, curves=curves, stages=_stages(results), directions=DIRECTIONS, version=__version__,
        compared=_compared_with_chance,
    )  # fmt: skip


def _stages(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the stages, with their start and their duration as fractions of the total time."""
    seconds = {name: s["sec"] for name, s in (results.get("stages") or {}).items() if is_known(s.get("sec"))}
    total = max(results.get("total_sec") or 0.0, sum(seconds.values())) or 1.0
    start, stages = 0.0, []
    for name, sec in seconds.items():
        stages.append({"name": name.replace("_", "-"), "sec": sec, "start": start / total, "fraction": sec / total})
        start += sec
    return stages


def _compared_with_chance(low: Any, high: Any) -> str:
    if not (is_known(low) and is_known(high)):
        return ""
    return "above chance" if low > CHANCE else "below chance" if high < CHANCE else "not different from chance"


def summary(results: Mapping[str, Any], out: Path) -> list[str]:
    """Return the results of the run in the directory `out`, and what to try next, as lines for a terminal."""

    def get(name: str) -> Any:
        value: Any = results
        for key in name.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    cloze = ", ".join(
        f"{symbol} {percent(get(f'eval.topic_cloze.{key}.accuracy'))}" for key, (symbol, _) in DIRECTIONS.items()
    )
    return [
        f"Finished in {duration(get('total_sec'))}:",
        f"  tokenizer      WER {percent(get('tokenizer.wer'))} of transcripts from codes; "
        f"{percent(get('tokenizer.codes_used_share'))} of the codebook used",
        f"  decoder        WER {percent(get('resynth.wer'))} after speech to codes and back",
        f"  text-to-token  WER {percent(get('text_to_token.wer'))} of codes synthesized from text",
        f"  interleaved    {number(get('interleave.documents'))} documents, {percent(get('interleave.speech_ratio'))} "
        f"of words spoken, {number(get('interleave.tokens_per_sec'))} codes/s",
        f"  pre-training   loss {number(get('pretrain.loss.text'))} on text and {number(get('pretrain.loss.speech'))} "
        f"on speech (nats per token), {number(get('pretrain.tokens_per_sec'))} tokens/s",
        f"  topic-cloze    accuracy {cloze} (chance 50\u00a0%)",
        f"  chat           {get('chat.question') or '-'}  ->  {get('chat.answer_text') or '-'}  "
        f"(first audio after {number(get('chat.first_audio_ms'))} ms)",
        f"Open {out / 'report.html'} to hear it. Talk to it: weft chat --model {out} --wav IN.wav --out OUT.wav",
        "With your own data: weft demo --text BOOKS/*.txt --audio MANIFEST --out runs/mine",
    ]
