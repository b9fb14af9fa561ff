"""What `weft demo` shows at its end: a page to read and hear, and a few lines for the terminal.

    html = render(results, Exhibits(document=(Span("Once"), Span(" upon a time", clip, codes)), chat=ChatExhibit(...)))
    print("\\n".join(summary(results, Path("runs/demo"))))

`results` is what `results.json` holds, nested by dots in these names: total_sec, stages.NAME.sec, tokenizer.wer,
tokenizer.codes_used_share, resynth.wer, text_to_token.wer, interleave.{speech_ratio, documents, tokens_per_sec},
pretrain.loss.{text, speech}, pretrain.tokens_per_sec, eval.topic_cloze.{T, ST, TS, S}.{accuracy, low, high, n},
chat.{first_audio_ms, question, answer_text, wav}; where known also `seed`, `machine`, and {wer_low, wer_high,
wer_words} beside each wer, {tokenizer, text_to_token}.span_wer with the same three,
tokenizer.{perplexity, bits_per_sec, warnings}, and mutual_information beside each accuracy. Whatever is missing is
shown as missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weft import __version__
from weft.eval.report import Clip, duration, environment, is_known, number, percent, series
from weft.wer import normalize

CHANCE = 0.5
# Topic-cloze, by the key in the results: how it is written, and what the model does.
SETTINGS = {
    "T": ("T", "reads the beginning, reads the endings"),
    "ST": ("S→T", "hears the beginning, reads the endings"),
    "TS": ("T→S", "reads the beginning, hears the endings"),
    "S": ("S", "hears the beginning, hears the endings"),
}
# What to draw of each training run's metrics: the parts of a loss where it has any, else the loss.
CURVES = {
    "tokenizer": {"cross_entropy": "transcript", "ctc": "CTC"},
    "decoder": {"loss": "decoder"},
    "text_to_token": {"loss": "speech"},
    "pretrain": {"loss_text": "text", "loss_speech": "speech"},
    "sft": {"loss_text": "text", "loss_speech": "speech"},
}


@dataclass(frozen=True)
class TokenizerExhibit:
    """An utterance (its `text` is what was said), what the decoder made of its codes, and what they were read as."""

    original: Clip
    resynthesised: Clip
    codes: Sequence[int]
    read_back: str
    frame_rate_hz: float = 12.5


@dataclass(frozen=True)
class Span:
    """A stretch of an interleaved document with the white space before it; spoken where it has a sound."""

    text: str
    sound: Clip | None = None
    codes: Sequence[int] = ()

    @property
    def indent(self) -> str:
        return self.text[: len(self.text) - len(self.text.lstrip())]


@dataclass(frozen=True)
class ClozeExample:
    """A pair, and by setting (a key of SETTINGS) whether the model preferred the right ending."""

    beginning: str
    right: str
    wrong: str
    chosen_right: Mapping[str, bool]


@dataclass(frozen=True)
class ChatExhibit:
    """A spoken question and answer, each with its text, and the words that a right answer contains, where known."""

    question: Clip
    answer: Clip
    expected: str | None = None

    @property
    def is_right(self) -> bool | None:
        """Whether the answer contains the expected words, by Whisper's basic normaliser; None where none are known."""
        if not self.expected:
            return None
        return f" {normalize(self.expected)} " in f" {normalize(self.answer.text or '')} "


@dataclass(frozen=True)
class Exhibits:
    """What is shown beside the numbers; a part that is not there is left out of the page.

    `curves` are the lines of metrics.jsonl by stage. `notes` say how a number was measured (judge, seed, held-out
    rule), by its name in the results: "tokenizer.wer", "resynth.wer", "text_to_token.wer", "interleave",
    "pretrain.loss", "eval.topic_cloze", "chat". `skipped` tells what was left out on the way, a line each.
    """

    tokenizer: TokenizerExhibit | None = None
    said: Clip | None = None
    document: Sequence[Span] = ()
    curves: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    cloze: Sequence[ClozeExample] = ()
    chat: ChatExhibit | None = None
    skipped: Sequence[str] = ()
    notes: Mapping[str, str] = field(default_factory=dict)


def render(results: Mapping[str, Any], exhibits: Exhibits) -> str:
    """The page: one HTML file with everything in it."""
    curves = {stage: series(exhibits.curves.get(stage, ()), names) for stage, names in CURVES.items()}
    template = environment(Path(__file__).parent).get_template("report.html")
    return template.render(
        r=results, e=exhibits, curves=curves, stages=_stages(results), settings=SETTINGS, verdict=_verdict,
        version=__version__,
    )  # fmt: skip


@dataclass(frozen=True)
class _Stage:
    """A stage of the road: where on its time axis it begins and how long it is, both as shares of the whole."""

    name: str
    sec: float
    begin: float
    share: float


def _stages(results: Mapping[str, Any]) -> list[_Stage]:
    seconds = {name: s["sec"] for name, s in (results.get("stages") or {}).items() if is_known(s.get("sec"))}
    total = max(results.get("total_sec") or 0.0, sum(seconds.values())) or 1.0
    begin, stages = 0.0, []
    for name, sec in seconds.items():
        stages.append(_Stage(name.replace("_", "-"), sec, begin / total, sec / total))
        begin += sec
    return stages


def _verdict(low: Any, high: Any) -> str:
    if not (is_known(low) and is_known(high)):
        return ""
    return "above chance" if low > CHANCE else "below chance" if high < CHANCE else "not told from chance"


def summary(results: Mapping[str, Any], out: Path) -> list[str]:
    """What the run in the folder `out` learnt, and what to try next, as ten lines for a terminal."""

    def get(name: str) -> Any:
        value: Any = results
        for key in name.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    cloze = ", ".join(
        f"{name} {percent(get(f'eval.topic_cloze.{key}.accuracy'))}" for key, (name, _) in SETTINGS.items()
    )
    return [
        f"The whole road in {duration(get('total_sec'))}:",
        f"  tokenizer      {percent(get('tokenizer.wer'))} of words wrong when read back from the codes; "
        f"{percent(get('tokenizer.codes_used_share'))} of the codebook in use",
        f"  decoder        {percent(get('resynth.wer'))} of words wrong after codes became sound again",
        f"  text-to-token  {percent(get('text_to_token.wer'))} of words wrong when said from text",
        f"  interleaved    {number(get('interleave.documents'))} documents, {percent(get('interleave.speech_ratio'))} "
        f"of words spoken, {number(get('interleave.tokens_per_sec'))} codes/s",
        f"  pre-trained    loss {number(get('pretrain.loss.text'))} on text and {number(get('pretrain.loss.speech'))} "
        f"on speech (nats a token), {number(get('pretrain.tokens_per_sec'))} tokens/s",
        f"  topic-cloze    {cloze} right (chance 50\u00a0%)",
        f"  asked aloud    {get('chat.question') or '-'}  ->  {get('chat.answer_text') or '-'}  "
        f"(first sound after {number(get('chat.first_audio_ms'))} ms)",
        f"  try next       open {out / 'report.html'}; weft chat --model {out} --wav question.wav --out answer.wav",
        "  your own data  weft demo --text BOOKS/*.txt --audio MANIFEST --out runs/mine",
    ]
