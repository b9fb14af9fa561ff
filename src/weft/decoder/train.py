"""Training of the speech decoder on the codes and the recordings of a voice: `weft train-decoder`.

manifest = run(DecoderConfig(out=..., codes=(...,), audio=(...,), tokenizer=..., train=TrainConfig(steps=600)))
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from weft import launch, progress
from weft.artifacts import Manifest, read_parent, require_parent
from weft.data.datasets import codes_parents
from weft.data.speech import read_manifest, speech_id
from weft.decoder import blocks
from weft.decoder.config import DecoderConfig, Training
from weft.decoder.decoder import KIND
from weft.decoder.flow import FlowBatch
from weft.decoder.published import train as published
from weft.decoder.vocoder import KIND as VOCODER
from weft.device import default_device
from weft.plan import Draft, Plan
from weft.records import Utterance
from weft.training import distributed
from weft.training.average import Averaged
from weft.training.estimate import Estimate, Memory
from weft.training.loop import discard_checkpoints, fit


def run(config: DecoderConfig) -> Manifest | None:
    """Create the artifact `config.out`, or print an estimate for a `dry_run`.

    Raises UserError for codes of another tokenizer, for missing or too much unreadable audio, and for a mel spectrogram
    without a whole number of frames per code.
    """
    if config.dry_run:
        if launch.rank() == 0:
            progress.show(*estimate(config).lines({}))
        return None
    distributed.init()
    _kind(config).check(config)
    parents = distributed.compute_once(lambda: _parents(config))
    audio = read_manifest(*config.audio)
    plan = Plan.of(KIND, config, parents, audio=distributed.compute_once(lambda: speech_id(audio)))
    return distributed.create(config.out, plan, lambda draft: _train(config, audio, draft))


def _kind(config: DecoderConfig) -> ModuleType:
    """Return the module of a kind of flow model, which has `check`, `new_training` and `for_estimate`."""
    return published if config.kind == "published" else blocks


def _parents(config: DecoderConfig) -> dict[str, Manifest]:
    """Return the manifests of all inputs. Raises UserError for decoders of another tokenizer."""
    parents = codes_parents(config.codes, config.tokenizer)
    if config.vocoder:
        parents |= {"vocoder": read_parent(config.vocoder, VOCODER)}
    for name, folder in (("init", config.init), ("teacher", config.teacher)):
        if folder:
            parents |= {name: read_parent(folder, KIND)}
            require_parent(parents[name], "tokenizer", parents["tokenizer"])
    return parents


def _train(config: DecoderConfig, audio: Sequence[Utterance], draft: Draft) -> None:
    """Train a decoder and write it into the draft."""
    with torch.random.fork_rng():
        torch.manual_seed(config.train.seed)
        training = _kind(config).new_training(config, audio)
        decoder, skipped = training.decoder.to(default_device()), training.dataset.skipped
        skipped.check(config.max_bad_fraction, draft.folder / "log/skipped.jsonl")
        skipped.write(draft.folder / "log/skipped.jsonl")
        _fit(config, training, draft)
        if distributed.is_main_process():
            decoder.write_files(draft.folder, torch.bfloat16 if config.save_dtype == "bf16" else torch.float32)
        discard_checkpoints(draft.folder)
        draft.counts["parameters"] = sum(p.numel() for p in training.flow.parameters())
        draft.counts["utterances"] = skipped.num_good
        draft.counts["skipped_utterances"] = skipped.num_bad
        draft.counts["seconds"] = training.dataset.num_codes * decoder.samples_per_code / decoder.sample_rate_hz


def _fit(config: DecoderConfig, training: Training, draft: Draft) -> None:
    """Train a model in place; its weights are then the average, if there is one."""
    flow, device = training.flow, training.decoder.device
    averaged = Averaged(flow) if config.average_decay else None

    def losses(_: nn.Module, batch: FlowBatch) -> dict[str, Tensor]:
        return training.loss_of(batch.to(device))

    def after_step(_: int, updated: bool) -> dict[str, float]:
        if averaged and updated:
            averaged.update(config.average_decay)
        return {}

    batch_at = training.dataset.batch_at
    fit(averaged or flow, batch_at, losses, config.train, draft.folder, "decoder", after_step=after_step)
    if averaged:
        flow.load_state_dict(averaged.average.model.state_dict())


def estimate(config: DecoderConfig) -> Estimate:
    """Return the estimate of training by `config`."""
    _kind(config).check(config)
    new_model = _kind(config).for_estimate(config)
    with FakeTensorMode():
        flow, forward = new_model()
        with FlopCounterMode(display=False) as counter:
            forward(1)
        memory = Memory.of(flow, forward, config.train)
    flops = 3 * counter.get_total_flops() * config.batch_windows * config.train.steps
    parameters = sum(p.numel() for p in flow.parameters())
    return Estimate(parameters, memory, flops, config.train, config.batch_windows, "window")
