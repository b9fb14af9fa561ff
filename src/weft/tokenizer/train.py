"""Training the speech tokenizer: ASR through the bottleneck, from a Hugging Face Whisper or from nothing.

    manifest = run(TokenizerConfig(out=..., speech=[...], base=None, train=TrainConfig(steps=1000)))

The loss is the paper's (section 2.1): cross-entropy of the transcript plus commitment; from nothing, plus CTC. The
bottleneck is off for the first `quantize_from_step` steps, so that the codebook starts from hidden states that mean
something, which set it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from weft import artifacts
from weft.artifacts import Draft, Manifest
from weft.audio import load
from weft.config import settings_of
from weft.data.corpus import read_manifest
from weft.errors import UserError
from weft.records import Utterance
from weft.tokenizer.base import from_nothing, from_whisper
from weft.tokenizer.hearing import hear
from weft.tokenizer.objective import AsrObjective
from weft.tokenizer.quantizer import CodebookWatch, health
from weft.tokenizer.recipe import NOT_PART_OF_THE_PLAN, TokenizerConfig
from weft.tokenizer.speech import Batch, TranscribedSpeech
from weft.tokenizer.tokenizer import KIND, SpeechTokenizer
from weft.training import distributed
from weft.training.loop import discard_checkpoints, fit
from weft.training.prefetch import Prefetch
from weft.wer import character_error_rate, normalize, word_error_rate


def command(config: TokenizerConfig) -> Manifest | None:
    """`run`, or with `dry_run` a print of what it would take."""
    if not config.dry_run:
        return run(config)
    from weft.tokenizer.dry_run import estimate

    _require_sense(config)
    told = estimate(config).lines()  # by all processes, which look at manifests together
    if distributed.is_first():
        print("\n".join(told))
    return None


def run(config: TokenizerConfig) -> Manifest:
    """Make the artifact `config.out`; one that is made already by the same plan is left as it is.

    Its counts tell parameters, utterances and, with `held_out`, what `measure` finds. Raises UserError for speech that
    is missing or too often bad, and for a base that is no Whisper.
    """
    settings = settings_of(config, leave_out=NOT_PART_OF_THE_PLAN)
    if artifacts.is_made(config.out, KIND, settings):
        return artifacts.read(config.out)
    _require_sense(config)
    sources = [read_manifest(*paths) for paths in (config.speech, config.pseudo)]
    with distributed.build(config.out, KIND, settings, licence=config.licence) as draft, torch.random.fork_rng():
        torch.manual_seed(config.train.seed)
        if config.base:
            tokenizer = from_whisper(config.base, config.model)
        else:
            tokenizer = from_nothing(config.whisper, config.model, [u.text or "" for source in sources for u in source])
        held_out = _held_out(config, tokenizer)
        with TranscribedSpeech(config, tokenizer, *sources) as speech:
            speech.skipped.check(config.max_bad_share, draft.folder / "log/skipped.jsonl")
            speech.skipped.write(draft.folder / "log/skipped.jsonl")
            _train(config, tokenizer, speech, draft)
        draft.counts["parameters"] = sum(p.numel() for p in tokenizer.model.parameters())
        if distributed.is_first():
            tokenizer.save(draft.folder)
            if held_out:
                draft.counts |= measure(tokenizer, held_out)
        discard_checkpoints(draft.folder)
    return artifacts.read(config.out)


def _require_sense(config: TokenizerConfig) -> None:
    """Raise UserError for settings that contradict each other."""
    if config.quantize_from_step >= config.train.steps:
        raise UserError(
            f"quantize_from_step is {config.quantize_from_step}, and there are {config.train.steps} steps: "
            "give fewer, or the bottleneck never closes"
        )
    if config.model.encoder_only:
        raise UserError("encoder_only leaves no half that reads codes: training needs it, give false")


def _train(config: TokenizerConfig, tokenizer: SpeechTokenizer, speech: TranscribedSpeech, draft: Draft) -> None:
    """Train the tokenizer's model in place, and note how much it was trained on and what went wrong."""
    objective = AsrObjective(tokenizer.model, len(speech.alphabet), config.ctc_outputs)
    objective.to("cuda" if torch.cuda.is_available() else "cpu")
    bottleneck = _Bottleneck(tokenizer, speech, config, draft.folder / "log/unreadable.jsonl")
    if not config.quantize_from_step:
        bottleneck.close()
    with Prefetch(speech.batch_at, config.train) as ahead:
        fit(objective, ahead.batch_at, bottleneck.losses, config.train, draft.folder, "tokenizer", bottleneck.after)
    draft.counts["utterances"] = speech.skipped.num_good - speech.check_read(bottleneck.unreadable)
    if bottleneck.warning:
        draft.notes["warnings"] = bottleneck.warning


def _held_out(config: TokenizerConfig, tokenizer: SpeechTokenizer) -> list[Utterance]:
    """What is measured on after training, whose mistakes are found before. Raises UserError for them."""
    found = read_manifest(*config.held_out)
    told = [replace(u, language=u.language or config.language) for u in found if normalize(u.text or "")]
    if found and not told:
        raise UserError(f"{', '.join(map(str, config.held_out))}: no utterance has a transcript to measure with")
    for u in told:
        load(u.audio)
        if u.language and tokenizer.prompt.languages:
            tokenizer.prompt.code(u.language)
    return told


@dataclass
class _Bottleneck:
    """The bottleneck while the model trains: it closes after a while, then its codes follow what they are used for."""

    tokenizer: SpeechTokenizer
    speech: TranscribedSpeech
    config: TokenizerConfig
    unreadable: Path
    """Where to list what could not be read while training."""

    def __post_init__(self) -> None:
        self._watch = CodebookWatch()

    def close(self) -> None:
        """Begin the quantizer from the hidden states of now."""
        model = self.tokenizer.model
        hidden = self.speech.hidden_states(model, at_least=16 * model.quantizer.num_codes)
        model.quantizer.initialise(hidden, torch.Generator().manual_seed(self.config.train.seed))

    def losses(self, objective: nn.Module, batch: Batch) -> dict[str, Tensor]:
        assert isinstance(objective, AsrObjective)
        return objective.losses(batch, self.config.ctc_weight)

    def after(self, step: int) -> dict[str, float]:
        """What is to be done after a step; returns how the codes were used in it."""
        if (step + 1) % self.config.train.checkpoint_every_steps == 0:
            self.speech.check_read(self.unreadable)
        if step + 1 == self.config.quantize_from_step:
            self.close()
        if step < self.config.quantize_from_step:
            return {}
        health = self.tokenizer.model.quantizer.update()
        if (warning := self._watch.see(health)) and distributed.is_first():
            print(f"weft: step {step}: {warning}", file=sys.stderr, flush=True)
        return {
            "codes_used": health.codes_used,
            "perplexity": health.perplexity,
            "bits_per_sec": health.bits * self.tokenizer.frame_rate_hz,
            "restarts": health.restarts,
        }

    @property
    def warning(self) -> str | None:
        """What is wrong with the codebook as training leaves it, if anything."""
        return self._watch.warning


def measure(tokenizer: SpeechTokenizer, utterances: Sequence[Utterance]) -> dict[str, float]:
    """Error rates through the bottleneck and the health of the codebook on transcribed speech."""
    heard, said = hear(tokenizer, utterances), [u.text or "" for u in utterances]
    error, used = word_error_rate(said, heard.texts), health(heard.counts)
    return {
        "wer": error.rate,
        "wer_low": error.low,
        "wer_high": error.high,
        "wer_words": error.num_units,
        "cer": character_error_rate(said, heard.texts).rate,
        "codes_used_share": used.codes_used_share,
        "perplexity": used.perplexity,
        "bits_per_sec": used.bits * tokenizer.frame_rate_hz,
    }
