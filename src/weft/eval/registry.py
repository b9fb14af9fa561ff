"""The metrics of `weft eval METRIC`: for each its module, the class of its config, and its help.

A module has `run(config)`, which measures and calls `weft.eval.results.write`. docs/evaluation.md shows how to add one.
"""

from __future__ import annotations

from typing import NamedTuple


class Metric(NamedTuple):
    """A metric: the module of its `run(config)`, the class of the config, and its help."""

    module: str
    config: str
    help: str


METRICS = {
    "tokenizer": Metric(
        "weft.eval.metrics.tokenizer", "TokenizerEval", "Word error rate through the codes, and use of the codebook."
    ),
    "resynth": Metric("weft.eval.metrics.resynth", "ResynthEval", "Word error rate of decoded codes of speech."),
    "decoder": Metric("weft.eval.metrics.decoder", "DecoderEval", "Quality of decoded speech by system."),
    "text-to-token": Metric(
        "weft.eval.metrics.text_to_token", "TextToTokenEval", "Errors of synthesized codes beside those of speech."
    ),
    "likelihood": Metric(
        "weft.eval.metrics.likelihood", "LikelihoodEval", "How often the right ending is likelier than a wrong one."
    ),
    "asr": Metric("weft.eval.metrics.asr", "AsrEval", "Error rates of recognition by the language model."),
    "tts": Metric("weft.eval.metrics.tts", "TtsEval", "Error rates of speech by the language model."),
    "retention": Metric(
        "weft.eval.metrics.retention", "RetentionEval", "Bits per byte of text, beside those of the base."
    ),
    "logit-lens": Metric(
        "weft.eval.metrics.logit_lens", "LogitLensEval", "Words of speech that can be read from each layer."
    ),
    "chat": Metric("weft.eval.metrics.chat", "ChatEval", "Ratings of a chatbot's answers by a language model."),
    "qa": Metric("weft.eval.metrics.qa", "QaEval", "Accuracy of answers to written and spoken questions."),
}
