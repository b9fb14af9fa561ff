"""Training of the speech tokenizer: ASR through the bottleneck, from a Hugging Face Whisper or from random weights.

    manifest = run(TokenizerConfig(out=..., speech=[...], base=None, train=TrainConfig(steps=1000)))

The first `quantize_from_step` steps are not quantized: the codebook is then initialized from trained hidden states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from weft import launch, progress
from weft.artifacts import Manifest, base_manifest, read_parent
from weft.data.skipped import Skipped
from weft.data.speech import read_manifest, readable, speech_id
from weft.data.utterances import Utterances
from weft.device import default_device
from weft.errors import UserError
from weft.plan import Draft, Plan
from weft.records import Utterance
from weft.text.error_rate import split_by_words
from weft.tokenizer.artifact import KIND
from weft.tokenizer.codebook import CodebookMonitor
from weft.tokenizer.config import TokenizerConfig
from weft.tokenizer.dataset import SpeechDataset
from weft.tokenizer.distillation import Teacher
from weft.tokenizer.estimate import estimate_lines
from weft.tokenizer.init import from_scratch, from_tokenizer, from_whisper
from weft.tokenizer.objective import AsrObjective
from weft.tokenizer.tokenizer import SpeechTokenizer
from weft.tokenizer.transcripts import measure
from weft.training import distributed, parallel
from weft.training.loop import discard_checkpoints, fit
from weft.training.prefetch import Prefetch


def run(config: TokenizerConfig) -> Manifest | None:
    """Create the artifact `config.out`, or print an estimate for a `dry_run`.

    Counts: parameters, utterances and, with `held_out`, error rates and codebook use. Raises UserError for missing
    speech, too much unreadable speech, and a base that is not a Whisper.
    """
    _check(config)
    if config.dry_run:
        if launch.rank() == 0:
            progress.show(*estimate_lines(config))
        return None
    distributed.init()
    sources = [_read(config, paths) for paths in (config.speech, config.pseudo)]
    for paths, source in zip((config.speech, config.pseudo), sources, strict=True):
        if source and not any(u.text or u.problem for u in source):
            raise UserError(f"{', '.join(map(str, paths))} has no transcripts: add `text`, or use weft pseudo-label")
    held_out, noise = _read(config, config.held_out), read_manifest(*config.noise)
    speech, pseudo, held_out_id, noise_id = distributed.compute_once(
        lambda: [speech_id(us) for us in (*sources, held_out, noise)]
    )
    parents = distributed.compute_once(lambda: _parents(config))
    noises = {"noise": noise_id} if config.noise else {}  # not in the plans of earlier versions
    plan = Plan.of(KIND, config, parents, speech=speech, pseudo=pseudo, held_out=held_out_id, **noises)
    return distributed.create(
        config.out, plan, lambda draft: _train(config, sources, held_out, noise, draft), config.licence
    )


def _parents(config: TokenizerConfig) -> dict[str, Manifest]:
    """Return the models that training starts from. A tokenizer whose codes stay the same is the `encoder`."""
    parents = {"base": base_manifest(config.base)} if config.base else {}
    name = "init" if config.lr_ratio.before else "encoder"
    return parents | ({name: read_parent(config.init, KIND)} if config.init else {})


def _check(config: TokenizerConfig) -> None:
    """Raise UserError for settings that contradict each other."""
    if config.quantize_from_step >= config.train.steps:
        raise UserError(f"quantize_from_step is {config.quantize_from_step}: give less than {config.train.steps} steps")
    if config.model.encoder_only:
        raise UserError("encoder_only is true: set it to false, because training needs all layers")
    if bool(config.noise) != (config.augment.recording_probability > 0):
        raise UserError("noise and augment.recording_probability belong together: set both, or remove both")
    if config.consistency_weight and not config.augment.distorts:
        raise UserError("consistency_weight needs distortions: set augment.noise_probability or others, or remove it")
    if config.distillation_weight and not config.base:
        raise UserError("distillation_weight is set without base: set base to a Whisper, or remove distillation_weight")
    if not any(asdict(config.lr_ratio).values()):
        raise UserError("lr_ratio is 0 for all parts: give at least one part a ratio above 0")
    if config.init and config.quantize_from_step:
        raise UserError("init has a codebook: remove quantize_from_step, whose codebook is initialized anew")


def _read(config: TokenizerConfig, paths: Sequence[Path]) -> Utterances:
    return read_manifest(*paths, recase=config.recase, language=config.language)


def _train(
    config: TokenizerConfig,
    sources: Sequence[Sequence[Utterance]],
    held_out: Sequence[Utterance],
    noise: Sequence[Utterance],
    draft: Draft,
) -> None:
    """Train a tokenizer and write it into the draft."""
    with torch.random.fork_rng():
        torch.manual_seed(config.train.seed)
        tokenizer = _untrained(config, sources)
        parallel.replicate_model(tokenizer.model, default_device())
        measured = _check_held_out(config, tokenizer, held_out, draft.folder / "log/skipped_held_out.jsonl")
        with SpeechDataset(config, tokenizer, *sources, noise=noise) as speech:
            speech.skipped.check(config.max_bad_fraction, draft.folder / "log/skipped.jsonl")
            speech.skipped.write(draft.folder / "log/skipped.jsonl")
            _fit(config, tokenizer, speech, draft)
        draft.counts["parameters"] = sum(p.numel() for p in tokenizer.model.parameters())
        if distributed.is_main_process():
            tokenizer.write_files(draft.folder)
            if measured:
                draft.counts |= measure(tokenizer, measured)
            ids = {u.id for u in measured}
            if left_out := [u.id for u in held_out if u.id not in ids]:
                draft.counts["wer_left_out"] = left_out
        discard_checkpoints(draft.folder)


def _untrained(config: TokenizerConfig, sources: Sequence[Sequence[Utterance]]) -> SpeechTokenizer:
    if config.init:
        return from_tokenizer(config.init, config.model, config.base)
    if config.base:
        return from_whisper(config.base, config.model, on_meta=not distributed.is_main_process())
    return from_scratch(config.whisper, config.model, (u.text or "" for source in sources for u in source))


def _check_held_out(
    config: TokenizerConfig, tokenizer: SpeechTokenizer, utterances: Sequence[Utterance], report: Path
) -> list[Utterance]:
    """Return the utterances to measure on, and list unreadable ones in `report`.

    Raises UserError if measuring, which follows training, would fail, or if too many are unreadable.
    """
    transcribed, _ = split_by_words(utterances, lambda u: u.text)
    transcribed = [replace(u, language=u.language or config.language) for u in transcribed]
    if utterances and not transcribed:
        raise UserError(f"{', '.join(map(str, config.held_out))} has no transcripts: add `text`, or remove held_out")
    for u in transcribed:
        if u.language and tokenizer.prompt.languages:
            tokenizer.prompt.code(u.language)
    skipped = Skipped()
    found = readable(transcribed, skipped)
    skipped.check(config.max_bad_fraction, report)
    skipped.write(report)
    return found


def _fit(config: TokenizerConfig, tokenizer: SpeechTokenizer, speech: SpeechDataset, draft: Draft) -> None:
    """Train the tokenizer's model in place, and record the utterances and warnings."""
    teacher = None
    if config.base and config.distillation_weight:
        teacher = Teacher.of(config.base, config.model, config.distillation_weight, default_device())
    objective = AsrObjective(tokenizer.model, len(speech.alphabet), config.ctc_outputs, teacher)
    objective.to(default_device())
    ratios = asdict(config.lr_ratio)

    def lr_ratio(name: str) -> float:
        """Return the ratio of the part of a parameter; the CTC head, which starts from random weights, has 1."""
        return ratios[tokenizer.model.part_of(name.removeprefix("model."))] if name.startswith("model.") else 1.0

    tokenizer.model.fix_parts(ratios)
    bottleneck = _Bottleneck(tokenizer, speech, config, draft.folder / "log/unreadable.jsonl")
    with Prefetch(speech.batch_at, config.train, speech.parts_of) as prefetch:
        fit(
            objective,
            prefetch.batch_at,
            lambda _, batch: objective.losses(batch, config.ctc_weight, config.consistency_weight),
            config.train,
            draft.folder,
            "tokenizer",
            bottleneck.after_step,
            bottleneck.before_step,
            speech.parts_of,
            lr_ratio,
        )
    draft.counts["utterances"] = speech.skipped.num_good - speech.check_unreadable(bottleneck.unreadable)
    if bottleneck.monitor.warning:
        draft.notes["warnings"] = bottleneck.monitor.warning


@dataclass
class _Bottleneck:
    """The quantizer during training: initialized before a step, then updated after each that is not skipped."""

    tokenizer: SpeechTokenizer
    speech: SpeechDataset
    config: TokenizerConfig
    unreadable: Path
    """The list of audio that could not be read during training."""
    monitor: CodebookMonitor = field(default_factory=CodebookMonitor)

    def before_step(self, step: int) -> None:
        """Initialize the quantizer from the current hidden states before the first step that uses it."""
        if step != self.config.quantize_from_step or self.config.init:
            return
        model = self.tokenizer.model
        hidden = self.speech.hidden_states(model, at_least=16 * model.quantizer.num_codes)
        if not distributed.all_reduce_sum(len(hidden)):
            raise UserError(
                "the codebook cannot be initialized, because the hidden states of the speech are not finite: check "
                "base and speech, or start again with a lower train.lr and another --out"
            )
        model.quantizer.initialize(hidden, torch.Generator().manual_seed(self.config.train.seed))

    def after_step(self, step: int, updated: bool) -> dict[str, float]:
        """Update the quantizer, and return the use of the codes in the step; or discard those of a skipped step."""
        if (step + 1) % self.config.train.checkpoint_every_steps == 0:
            self.speech.check_unreadable(self.unreadable)
        quantizer = self.tokenizer.model.quantizer
        if not updated or step < self.config.quantize_from_step:
            quantizer.discard()
            return {}
        usage = quantizer.update()
        if warning := self.monitor.add(usage):
            progress.note(f"weft: step {step}: {warning}")
        return {
            "codes_used": usage.codes_used,
            "perplexity": usage.perplexity,
            "bits_per_sec": usage.bits * self.tokenizer.frame_rate_hz,
            "restarts": usage.restarts,
        }
