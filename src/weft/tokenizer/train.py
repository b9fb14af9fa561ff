"""Training the speech tokenizer: ASR through the bottleneck, from a Hugging Face Whisper or from nothing.

    manifest = run(TokenizerConfig(out=..., speech=[...], base=None, train=TrainConfig(steps=1000)))

The loss is the paper's (section 2.1): cross-entropy of the transcript plus commitment; from nothing, plus CTC. The
bottleneck is off for the first `quantize_from_step` steps, so that the codebook starts from hidden states that mean
something, which set it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from weft import artifacts, progress
from weft.artifacts import Manifest
from weft.audio import load
from weft.config import Count, Natural, NonNegative, Positive, Share, settings_of
from weft.data.corpus import read_manifest
from weft.data.skipped import Skipped
from weft.errors import UserError
from weft.records import Utterance
from weft.tokenizer.encoder import BottleneckConfig, BottleneckWhisper
from weft.tokenizer.quantizer import health
from weft.tokenizer.tokenizer import KIND, SpeechTokenizer, batches_by_length
from weft.training import distributed
from weft.training.loop import TrainConfig, discard_checkpoints, fit
from weft.wer import normalize, word_error_rate


@dataclass(frozen=True)
class WhisperShape:
    """The size of a Whisper that is trained from nothing."""

    width: Count = 192
    """Width of encoder and decoder."""
    encoder_layers: Count = 4
    """Layers of the encoder, before and after the bottleneck."""
    decoder_layers: Count = 1
    """Layers of the text decoder."""
    heads: Count = 4
    """Attention heads."""
    num_mels: Count = 80
    """Mel bands of the input."""
    vocab_size: Count = 600
    """Text tokens of the decoder."""


@dataclass(frozen=True)
class TokenizerConfig:
    """What a tokenizer is trained from."""

    out: Path
    """Folder of the tokenizer to make."""
    speech: tuple[Path, ...]
    """Manifests (or folders) of speech with transcripts to train on."""
    held_out: tuple[Path, ...] = ()
    """Manifests of speech with transcripts to measure the word error rate on."""
    base: Path | None = None
    """Folder of a Hugging Face Whisper to start from; without one, `whisper` is trained from nothing."""
    whisper: WhisperShape = field(default_factory=WhisperShape)
    model: BottleneckConfig = field(default_factory=BottleneckConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=1000))
    batch_sec: Positive = 100.0
    """Seconds of speech in a batch, padding included."""
    quantize_from_step: Natural = 0
    """Steps of training before the codebook is set and the bottleneck closes."""
    ctc_outputs: Natural = 0
    """Letters a CTC head may read at each code while training, which makes training from nothing feasible; 0 trains
    without one."""
    ctc_weight: NonNegative = 1.0
    """Weight of the CTC loss."""
    max_bad_share: Share = 0.01
    """Share of unreadable utterances above which training does not start."""


@dataclass(frozen=True)
class Batch:
    """One step's data: features (B, M, 2T), real frames (B, T) and codes (B, N), transcripts as ids of the text decoder
    and as letters of the CTC alphabet, and whether the bottleneck is closed."""

    features: Tensor
    valid_frames: Tensor
    valid: Tensor
    text_ids: list[list[int]]
    letters: list[list[int]]
    quantize: bool

    def __len__(self) -> int:
        """Text ids to predict, ends included, over which the cross-entropy is a mean. The other losses are means over
        codes and letters: in parts of a step, which this weighs, they are so nearly."""
        return sum(len(ids) + 1 for ids in self.text_ids)


def spoken_form(texts: Sequence[str]) -> list[str]:
    """Texts in lower case without punctuation, which nobody hears."""
    normalizer = _normalizer()
    return [normalizer.normalize_str(text) for text in texts]


def _normalizer() -> normalizers.Normalizer:
    return normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"[^\w\s']|_"), ""),
         normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )  # fmt: skip


def text_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A BPE over the spoken form of `texts`, for a text decoder from nothing: whole words where words are few."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.normalizer = _normalizer()
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    bpe.decoder = decoders.Metaspace()
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


class TranscribedSpeech:
    """Utterances as log-mel features and text ids, batched by length; features are computed once and kept."""

    def __init__(self, utterances: Sequence[Utterance], tokenizer: SpeechTokenizer, config: TokenizerConfig) -> None:
        self._tokenizer = tokenizer
        self._config = config
        self._features: list[Tensor] = []
        self._num_samples: list[int] = []
        self._text_ids: list[list[int]] = []
        self._letters: list[list[int]] = []
        self.alphabet = sorted({letter for text in spoken_form([u.text or "" for u in utterances]) for letter in text})
        self.skipped = Skipped()
        self._read(utterances)
        if not self._features:
            self.skipped.check(config.max_bad_share)
            raise UserError("no utterance with sound and transcript is left to train on: give others")
        per_batch = int(config.batch_sec * 100)
        self._batches = batches_by_length([f.shape[1] for f in self._features], per_batch)

    def _read(self, utterances: Sequence[Utterance]) -> None:
        with progress.bar("features", len(utterances)) as advance:
            for u in utterances:
                advance()
                try:
                    samples = load(u.audio)
                except UserError as e:
                    self.skipped.add(u.id, str(e))
                    continue
                if why := self._unfit(u, len(samples)):
                    self.skipped.add(u.id, why)
                    continue
                self.skipped.num_good += 1
                self._features.append(self._tokenizer.features(samples).half())
                self._num_samples.append(len(samples))
                self._text_ids.append(self._tokenizer.text_tokenizer(u.text, add_special_tokens=False).input_ids)
                self._letters.append(self._spell(u.text or ""))

    def _spell(self, text: str) -> list[int]:
        """Letters by their place in the alphabet, from 1: 0 is the blank."""
        return [1 + self.alphabet.index(letter) for letter in spoken_form([text])[0]]

    def _unfit(self, utterance: Utterance, num_samples: int) -> str | None:
        """Why an utterance cannot be trained on, if so."""
        letters = self._spell(utterance.text or "")
        num_codes = -(-num_samples // self._tokenizer.samples_per_code)
        repeats = sum(a == b for a, b in pairwise(letters))
        if not letters:
            return "it has no transcript"
        if num_codes > self._tokenizer.codes_per_window:
            return f"it is longer than {self._tokenizer.codes_per_window / self._tokenizer.frame_rate_hz:g} s: cut it"
        if self._config.ctc_outputs and len(letters) + repeats > num_codes * self._config.ctc_outputs:
            return "its transcript is longer than its sound allows"
        return None

    def batch_at(self, step: int, part: slice = slice(None)) -> Batch | None:
        """A part of the batch of a step: each epoch goes through all batches in an order of its own."""
        epoch, index = divmod(step, len(self._batches))
        order = np.random.default_rng((self._config.train.seed, epoch)).permutation(len(self._batches))
        rows = self._batches[order[index]][part]
        return self._collate(rows, step >= self._config.quantize_from_step) if rows else None

    def _collate(self, rows: Sequence[int], quantize: bool) -> Batch:
        features, frames = self._tokenizer.collate(
            [self._features[i].float() for i in rows], [self._num_samples[i] for i in rows]
        )
        texts, letters = [self._text_ids[i] for i in rows], [self._letters[i] for i in rows]
        return Batch(features, frames, self._tokenizer.real_codes(frames), texts, letters, quantize)

    @torch.no_grad()
    def hidden_states(self, model: BottleneckWhisper, at_least: int) -> Tensor:
        """Pooled hidden states (F, D) of random batches, to begin the quantizer from; each process has its share."""
        rng = np.random.default_rng(self._config.train.seed)
        width = model.whisper_config.d_model
        found = [torch.zeros(0, width, device=model.positions_after.weight.device)]
        for index in rng.permutation(len(self._batches))[distributed.share()]:
            batch = self._collate(self._batches[index], True)
            found.append(model.first_half(batch.features, batch.valid_frames)[batch.valid])
            if sum(map(len, found)) * distributed.world_size() >= at_least:
                break
        return torch.cat(found)


class AsrObjective(nn.Module):
    """What is trained: the model, and the CTC head that is dropped afterwards."""

    def __init__(self, model: BottleneckWhisper, num_letters: int, ctc_outputs: int) -> None:
        super().__init__()
        self.model = model
        self.num_classes = 1 + num_letters
        width = model.whisper_config.d_model
        self.ctc_head = nn.Linear(width, ctc_outputs * self.num_classes) if ctc_outputs else None

    def losses(self, batch: Batch, ctc_weight: float) -> dict[str, Tensor]:
        """Cross-entropy of the transcript, commitment and CTC."""
        model = self.model
        hidden = model.first_half(batch.features, batch.valid_frames)
        out: dict[str, Tensor] = {}
        if batch.quantize:
            quantized = model.quantizer(hidden, batch.valid)
            hidden, out["commitment"] = quantized.values, quantized.loss
        heard = model.second_half(hidden, batch.valid)
        out["cross_entropy"] = _cross_entropy(model, heard, batch)
        total = out["cross_entropy"] + out.get("commitment", 0.0)
        if self.ctc_head is not None:
            out["ctc"] = self._ctc(heard, batch)
            total = total + ctc_weight * out["ctc"]
        return {"loss": total, **out}

    def _ctc(self, heard: Tensor, batch: Batch) -> Tensor:
        assert self.ctc_head is not None
        logits = self.ctc_head(heard).view(len(heard), -1, self.num_classes)
        log_probs = logits.float().log_softmax(-1).transpose(0, 1)
        targets = torch.tensor([i for letters in batch.letters for i in letters], device=heard.device)
        lengths = torch.tensor([len(letters) for letters in batch.letters], device=heard.device)
        outputs = batch.valid.sum(1) * (logits.shape[1] // batch.valid.shape[1])
        return F.ctc_loss(log_probs, targets, outputs, lengths, reduction="sum") / len(targets)


def _cross_entropy(model: BottleneckWhisper, heard: Tensor, batch: Batch) -> Tensor:
    config = model.whisper_config
    rows = [torch.tensor([config.decoder_start_token_id, *ids, config.eos_token_id]) for ids in batch.text_ids]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0).to(heard.device)
    lengths = torch.tensor([len(r) for r in rows], device=heard.device)
    real = torch.arange(1, ids.shape[1], device=heard.device) < lengths[:, None]
    logits = model.text_logits(heard, batch.valid, ids[:, :-1])
    return F.cross_entropy(logits[real].float(), ids[:, 1:][real])


def run(config: TokenizerConfig) -> Manifest:
    """Make the artifact `config.out`; one that is made already by the same plan is left as it is.

    Its counts tell parameters, utterances and, with `held_out`, what `measure` finds. Raises UserError for speech that
    is missing or too often bad, and for a base that is no Whisper.
    """
    settings = settings_of(config, leave_out=("out", "max_bad_share"))
    if artifacts.is_made(config.out, KIND, settings):
        return artifacts.read(config.out)
    if config.quantize_from_step >= config.train.steps:
        raise UserError(
            f"quantize_from_step is {config.quantize_from_step}, and there are {config.train.steps} steps: "
            "give fewer, or the bottleneck never closes"
        )
    if config.model.encoder_only:
        raise UserError("encoder_only leaves no half that reads codes: training needs it, give false")
    utterances, held_out = read_manifest(*config.speech), _held_out(config)
    with distributed.build(config.out, KIND, settings) as draft, torch.random.fork_rng():
        torch.manual_seed(config.train.seed)
        tokenizer = _base(config) if config.base else _from_nothing(config, [u.text or "" for u in utterances])
        speech = TranscribedSpeech(utterances, tokenizer, config)
        speech.skipped.check(config.max_bad_share, draft.folder / "log/skipped.jsonl")
        speech.skipped.write(draft.folder / "log/skipped.jsonl")
        objective = AsrObjective(tokenizer.model, len(speech.alphabet), config.ctc_outputs)
        objective.to("cuda" if torch.cuda.is_available() else "cpu")
        bottleneck = _Bottleneck(tokenizer, speech, config)
        if not config.quantize_from_step:
            bottleneck.close()
        fit(objective, speech.batch_at, bottleneck.losses, config.train, draft.folder, "tokenizer", bottleneck.after)
        draft.counts["parameters"] = sum(p.numel() for p in tokenizer.model.parameters())
        draft.counts["utterances"] = speech.skipped.num_good
        if distributed.is_first():
            tokenizer.save(draft.folder)
            if held_out:
                draft.counts |= measure(tokenizer, held_out)
        discard_checkpoints(draft.folder)
    return artifacts.read(config.out)


def _held_out(config: TokenizerConfig) -> list[Utterance]:
    """What is measured on after training, whose mistakes are found before. Raises UserError for them."""
    found = read_manifest(*config.held_out)
    for u in found:
        load(u.audio)
    if found and not any(normalize(u.text or "") for u in found):
        raise UserError(f"{', '.join(map(str, config.held_out))}: no utterance has a transcript to measure with")
    return found


@dataclass(frozen=True)
class _Bottleneck:
    """The bottleneck while the model trains: it closes after a while, then its codes follow what they are used for."""

    tokenizer: SpeechTokenizer
    speech: TranscribedSpeech
    config: TokenizerConfig

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
        if step + 1 == self.config.quantize_from_step:
            self.close()
        if step < self.config.quantize_from_step:
            return {}
        health = self.tokenizer.model.quantizer.update()
        return {
            "codes_used": health.codes_used,
            "perplexity": health.perplexity,
            "bits_per_sec": health.bits * self.tokenizer.frame_rate_hz,
            "restarts": health.restarts,
        }


def measure(tokenizer: SpeechTokenizer, utterances: Sequence[Utterance]) -> dict[str, float]:
    """Word error rate through the bottleneck and the health of the codebook on transcribed speech."""
    codes = tokenizer.encode([load(u.audio) for u in utterances])
    error = word_error_rate([u.text or "" for u in utterances], tokenizer.transcribe(codes))
    used = health(
        torch.bincount(torch.from_numpy(np.concatenate(codes).astype(np.int64)), minlength=tokenizer.num_codes)
    )
    return {
        "wer": error.rate,
        "wer_low": error.low,
        "wer_high": error.high,
        "wer_words": error.num_units,
        "codes_used_share": used.codes_used_share,
        "perplexity": used.perplexity,
        "bits_per_sec": used.bits * tokenizer.frame_rate_hz,
    }


def _from_nothing(config: TokenizerConfig, texts: Sequence[str]) -> SpeechTokenizer:
    shape = config.whisper
    if shape.width % shape.heads:
        raise UserError(f"whisper.width is {shape.width}: choose a multiple of whisper.heads, {shape.heads}")
    words = text_tokenizer(texts, shape.vocab_size)
    whisper = WhisperConfig(
        vocab_size=len(words),
        num_mel_bins=shape.num_mels,
        d_model=shape.width,
        encoder_layers=shape.encoder_layers,
        decoder_layers=shape.decoder_layers,
        encoder_attention_heads=shape.heads,
        decoder_attention_heads=shape.heads,
        encoder_ffn_dim=4 * shape.width,
        decoder_ffn_dim=4 * shape.width,
        pad_token_id=words.pad_token_id,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        decoder_start_token_id=words.bos_token_id,
        init_std=shape.width**-0.5,
    )
    return SpeechTokenizer(BottleneckWhisper(config.model, WhisperForConditionalGeneration(whisper)), words)


def _base(config: TokenizerConfig) -> SpeechTokenizer:
    assert config.base is not None
    if not config.base.is_dir():
        raise UserError(f"{config.base} does not exist: give the folder of a Hugging Face Whisper")
    with artifacts.loading(config.base, "a Hugging Face Whisper"):
        kind = WhisperConfig.get_config_dict(config.base)[0].get("model_type")
        if kind != "whisper":
            found = f"is of type {kind}" if kind else "has no config.json"
            raise UserError(f"{config.base} is not a Hugging Face Whisper: it {found}")
        loaded: Any = WhisperForConditionalGeneration.from_pretrained(
            config.base, dtype=torch.float32, output_loading_info=True
        )
        whisper, info = loaded
        if missing := sorted(info["missing_keys"]):
            raise UserError(f"{config.base} has no weights for {missing[0]} and {len(missing) - 1} more: is it whole?")
        words = AutoTokenizer.from_pretrained(config.base)
    return SpeechTokenizer(BottleneckWhisper(config.model, whisper), words)
