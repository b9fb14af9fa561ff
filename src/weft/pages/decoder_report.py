"""A page that compares the systems of `weft eval decoder` by ear, eye and figures.

html = render(results, [Example("the words", {"recording": Clip(samples, 24_000, "transcript"), ...})])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weft.pages.components import Clip, environment

# Systems in the results, with their names and what they are.
SYSTEMS = {
    "recording": ("recording", "as given to the tokenizer"),
    "vocoder": ("vocoder", "on the mel spectrogram of the recording"),
    "griffin_lim": ("Griffin-Lim", "on the mel spectrogram of the recording"),
    "flow_griffin_lim": ("codes, Griffin-Lim", "flow model on the codes, then Griffin-Lim"),
    "decoder": ("codes, decoder", "flow model on the codes, then the vocoder"),
}


@dataclass(frozen=True)
class Example:
    """An utterance: its words, and its audio and transcript by each system."""

    text: str
    clips: Mapping[str, Clip]


def render(results: Mapping[str, Any], examples: Sequence[Example]) -> str:
    """Return the page for the results of a decoder and some of its utterances."""
    systems = {name: SYSTEMS[name] for name in results["systems"]}
    template = environment().get_template("decoder_report.html")
    return template.render(results=results, systems=systems, examples=examples)
