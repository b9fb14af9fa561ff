"""Training a speech-text language model on token shards: pre-training, and with other shards and base, fine-tuning.

    run(PretrainConfig(base=Path("runs/lm-start"), tokens=(Path("runs/tokens"),), out=Path("runs/lm"),
                       weights={"woven": 0.66, "text": 0.3, "asr": 0.04}))

The loss is over all trained ids alike (section 6 of arXiv 2411.17607 trains on every token, of ASR and TTS on the
target side). It is also told apart by modality: text ids and speech codes; markers and roles count in neither.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from weft import artifacts
from weft.artifacts import Manifest
from weft.config import Count, NonNegative
from weft.data.shards import TokenShards, tokenizer_of
from weft.errors import UserError
from weft.lm.mixture import Mixture, Pieces, Source
from weft.lm.model import KIND, LanguageModel, save
from weft.lm.packing import Batch, check_rows, pack, token_losses
from weft.training import distributed
from weft.training.loop import TrainConfig, discard_checkpoints, fit
from weft.vocab import SpeechVocab


@dataclass(frozen=True)
class PretrainConfig:
    """What a language model is trained from, on what, and how."""

    base: Path
    """Language model to continue from."""
    tokens: tuple[Path, ...]
    """Token shards, packed for the vocabulary of `base`."""
    out: Path
    """Folder of the language model to make."""
    weights: dict[str, NonNegative] = field(default_factory=dict)
    """Share of the tokens from each dataset, by its name, in any unit; without any, in proportion to their sizes."""
    held_out: tuple[Path, ...] = ()
    """Token shards that are measured on at the end and not trained on."""
    tokens_per_step: Count = 4096
    """Tokens of a step, about: a step is a fixed number of documents or pieces of them."""
    row_tokens: Count = 512
    """Longest piece of a document, and width of a packed row."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=1000))


def run(config: PretrainConfig) -> Manifest:
    """Make the artifact `config.out`; one that is made already by the same plan is left as it is.

    Its counts tell parameters, tokens, epochs of each dataset, `tokens_per_sec` (padding not counted) and, with
    `held_out`, `loss.text` and `loss.speech` (nats a token). Raises UserError for shards of another vocabulary, wrong
    names in `weights`, and rows longer than the model's positions.
    """
    base = LanguageModel.load(config.base)
    check_rows(base.model, config.row_tokens)
    parents = {"base": base.manifest}
    for name, folders in (("tokens", config.tokens), ("held_out", config.held_out)):
        parents |= {f"{name} {i}": _tokens_manifest(folder, base.vocab) for i, folder in enumerate(folders)}
    parents |= tokenizer_of(parents)
    settings = {k: v for k, v in asdict(config).items() if k not in ("base", "tokens", "held_out", "out")}
    if artifacts.is_made(config.out, KIND, settings, parents):
        return artifacts.read(config.out)
    mixture = Mixture(_sources(config), config.train.seed)
    with distributed.build(config.out, KIND, settings, parents) as draft:
        model = base.model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
        draft.counts["parameters"] = model.num_parameters()
        draft.counts |= _train(model, base.vocab, mixture, config, draft.folder)
        if distributed.is_first():
            datasets = [d for folder in config.held_out for d in _datasets(folder, config.row_tokens).values()]
            draft.counts |= held_out_losses(model, base.vocab, datasets, config.tokens_per_step)
            save(model, base.tokenizer, draft.folder)
        discard_checkpoints(draft.folder)
    return artifacts.read(config.out)


def _train(
    model: PreTrainedModel, vocab: SpeechVocab, mixture: Mixture, config: PretrainConfig, folder: Path
) -> dict[str, Any]:
    num_samples = max(1, round(config.tokens_per_step / mixture.mean_tokens))
    tokens_here = 0  # a run that was interrupted measures its speed on the steps since

    def batch_at(step: int, part: slice) -> Batch | None:
        nonlocal tokens_here
        samples = range(step * num_samples, (step + 1) * num_samples)[part]
        if not samples:
            return None
        batch = _pack([mixture[j] for j in samples], config.row_tokens, vocab)
        tokens_here += batch.num_tokens
        return batch

    def loss_of(_: nn.Module, batch: Batch) -> dict[str, Tensor]:
        losses = token_losses(model, batch)
        means = {f"loss_{m}": losses.detach()[at].mean() for m, at in _modalities(batch, vocab).items() if at.any()}
        return {"loss": losses.sum() / max(1, len(losses)), **means}

    seconds = fit(model, batch_at, loss_of, config.train, folder, "language model")
    total = config.train.steps * num_samples
    return {
        "tokens": round(total * mixture.mean_tokens),
        "tokens_per_sec": distributed.total(tokens_here) / seconds,
        "epochs": mixture.epochs(total),
    }


@torch.no_grad()
def held_out_losses(
    model: PreTrainedModel, vocab: SpeechVocab, datasets: Sequence[Pieces], tokens_per_batch: int
) -> dict[str, float]:
    """Mean loss, in nats, of the trained text ids and of the speech codes: `loss.text` and `loss.speech`."""
    model.eval()
    sums: defaultdict[str, float] = defaultdict(float)
    counts: Counter[str] = Counter()
    for batch in _batches(datasets, tokens_per_batch, vocab):
        losses = token_losses(model, batch).double()
        for modality, at in _modalities(batch, vocab).items():
            sums[modality] += float(losses[at].sum())
            counts[modality] += int(at.sum())
    return {f"loss.{modality}": sums[modality] / n for modality, n in counts.items() if n}


def _pack(pieces: Sequence[tuple[np.ndarray, np.ndarray]], row_tokens: int, vocab: SpeechVocab) -> Batch:
    batch = pack(pieces, row_tokens)
    if int(batch.ids.max()) >= vocab.size:
        raise UserError(f"tokens hold id {int(batch.ids.max())} of {vocab.size}: they are damaged, pack them again")
    return batch


def _batches(datasets: Sequence[Pieces], tokens_per_batch: int, vocab: SpeechVocab) -> Iterator[Batch]:
    """Every piece once, in batches of at least `tokens_per_batch` ids, the last one smaller."""
    for pieces in datasets:
        waiting: list[tuple[np.ndarray, np.ndarray]] = []
        for i in range(len(pieces)):
            waiting.append(pieces[i])
            if i == len(pieces) - 1 or sum(len(ids) for ids, _ in waiting) >= tokens_per_batch:
                yield _pack(waiting, pieces.row_tokens, vocab)
                waiting = []


def _modalities(batch: Batch, vocab: SpeechVocab) -> dict[str, Tensor]:
    """Which targets are text and which speech codes, (N,) bool each; markers, roles and ends are neither."""
    ids = batch.targets.numpy()
    speech = vocab.is_audio(ids)
    text = ~speech & ~vocab.is_control(ids)
    return {"text": torch.from_numpy(text), "speech": torch.from_numpy(speech)}


def _sources(config: PretrainConfig) -> list[Source]:
    found: dict[str, Pieces] = {}
    for folder in config.tokens:
        for name, pieces in _datasets(folder, config.row_tokens).items():
            if name in found:
                raise UserError(f"two folders in tokens hold a dataset {name!r}: rename one and pack it again")
            found[name] = pieces
    weights = config.weights or {name: float(pieces.num_tokens) for name, pieces in found.items()}
    for name in weights:
        if name not in found:
            raise UserError(f"weights names {name!r}, which tokens does not hold: it holds {', '.join(found)}")
    if left := sorted(found.keys() - weights.keys()):
        raise UserError(f"weights lacks {', '.join(left)}: give its share of the tokens, or 0 to leave it out")
    if not any(weights.values()):
        raise UserError("there is nothing to train on: give a dataset in tokens a weight above 0")
    return [Source(name, found[name], weight) for name, weight in sorted(weights.items()) if weight]


def _datasets(folder: Path, row_tokens: int) -> dict[str, Pieces]:
    """The datasets of packed token shards, by name: a folder of shards each."""
    folders = sorted({path.parent for path in Path(folder).glob("*/*.ds")})
    return {f.name: Pieces(TokenShards(f), row_tokens) for f in folders}


def _tokens_manifest(folder: Path, vocab: SpeechVocab) -> Manifest:
    manifest = artifacts.read(folder, "tokens")
    if manifest.settings.get("vocab") != vocab.fingerprint:
        raise UserError(f"{folder} was packed for another vocabulary: pack its datasets with --lm this base")
    return manifest
