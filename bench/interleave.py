"""What interleaved data costs here: codes a second of the engine, of the whole of `weft interleave`, and of other ways.

    python bench/interleave.py [--json FILE] [--quick]

Engine: the spans of interleaved data, Poisson of 10 words each, 1.5 text ids and Poisson of 3.8 codes a word, asked of
a Llama of random weights (18M parameters, as many codes as GLM-4-Voice's tokenizer has). A row stops at its own number
of codes, which random weights would not do. Ours: `weft.engine`, which admits new requests as rows finish, in bf16
where the processor multiplies it. Peer: `generate` with a static cache in fp32, on one batch of as many rows,
those of middle length, which it pads least; it goes on until its last row has stopped. Both draw at temperature 0.8,
ours among the codes and the end marker, the peer among all ids. They take turns in one run, and the median of their
times counts. Floor: the products alone, at the rate of one large product of the same precision.

Whole: `weft interleave` from a .jsonl to documents that are whole on disk, gate off, the model already loaded. Peer:
the engine alone, asked for all of the same spans at once. Then the same job on one thread, by one worker and by two,
which begin as processes and load the model too.

Sound: the other way to the same codes, which synthesizes: the spans' codes through a speech decoder of the nano
recipe's shape to sound, and through a tokenizer of whisper-base's shape, in batches, back to codes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from figures import Figure, in_turn, show, write
from tokenizer import BASE
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from weft import artifacts
from weft.decoder.decoder import SpeechDecoder
from weft.decoder.flow import FlowConfig, FlowDecoder
from weft.decoder.vocoder import MelConfig
from weft.demo.world import World
from weft.engine.generate import Engine, Generated, Request, Sampling
from weft.interleave import interleave
from weft.lm.model import load_hf, save
from weft.text_to_token.synthesize import Synthesizer
from weft.training.loop import multiplies_bf16
from weft.vocab import SpeechVocab, extend_tokenizer, train_text_tokenizer

NUM_THREADS = 2
BATCH_SIZE = 256
NUM_TEXT_IDS, NUM_CODES = 4096, 16_384
SPAN_WORDS, IDS_PER_WORD, CODES_PER_WORD = 10, 1.5, 3.8
SAMPLING = Sampling(temperature=0.8)
ALLOWED = range(NUM_TEXT_IDS, NUM_TEXT_IDS + NUM_CODES + 1)


def new_model(vocab_size: int = NUM_TEXT_IDS + NUM_CODES + 7) -> PreTrainedModel:
    """The size of text-to-token for one GPU and an hour, in fp32, with draws that differ from row to row."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=384,
            intermediate_size=1024,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=6,
            tie_word_embeddings=True,
        )
    )
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.05)
    return model.eval()


def spans(num: int) -> list[Request]:
    """Prompts of random ids, each with the number of codes that it takes."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(num):
        num_words = 1 + rng.poisson(SPAN_WORDS - 1)
        prompt = rng.integers(0, NUM_TEXT_IDS, 1 + round(IDS_PER_WORD * num_words))
        found.append(Request(prompt.tolist(), 1 + rng.poisson(CODES_PER_WORD * num_words - 1), seed=i))
    return found


class _OwnLength(StoppingCriteria):
    """Each row stops at its own number of new ids."""

    def __init__(self, prompt_length: int, requests: Sequence[Request]) -> None:
        self._ends = torch.tensor([prompt_length + r.max_new_tokens for r in requests])

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        return input_ids.shape[1] >= self._ends


def peer_generate(model: PreTrainedModel, requests: Sequence[Request]) -> None:
    """transformers' own, of one batch, padded on the left."""
    longest = max(len(r.ids) for r in requests)
    torch.manual_seed(0)
    model.generate(
        torch.tensor([[0] * (longest - len(r.ids)) + list(r.ids) for r in requests]),
        attention_mask=torch.tensor([[0] * (longest - len(r.ids)) + [1] * len(r.ids) for r in requests]),
        max_new_tokens=max(r.max_new_tokens for r in requests),
        do_sample=True,
        temperature=SAMPLING.temperature,
        top_k=0,
        pad_token_id=0,
        eos_token_id=None,
        cache_implementation="static",
        stopping_criteria=StoppingCriteriaList([_OwnLength(longest, requests)]),
    )


def ours(model: PreTrainedModel, requests: Sequence[Request]) -> None:
    Engine(model, BATCH_SIZE).generate(requests, SAMPLING, allowed=ALLOWED)


def floor_sec(model: PreTrainedModel, requests: Sequence[Request], dtype: torch.dtype) -> float:
    """Seconds of the products alone: those of layers for every id, those of the head for every code."""
    a, b = (torch.randn(2048, 2048, dtype=dtype) for _ in range(2))
    flops_per_sec = 2 * 2048**3 / in_turn(10, product=lambda: a @ b)["product"]
    layers = sum(p.numel() for p in model.model.layers.parameters() if p.ndim > 1)
    num_codes = sum(r.max_new_tokens for r in requests)
    num_ids = num_codes + sum(len(r.ids) - 1 for r in requests)
    return 2 * (layers * num_ids + len(ALLOWED) * model.config.hidden_size * num_codes) / flops_per_sec


def speed(num_requests: int, rounds: int) -> dict[str, Figure]:
    requests = spans(num_requests)
    num_codes = sum(r.max_new_tokens for r in requests)
    first = (num_requests - BATCH_SIZE) // 2
    few = sorted(requests, key=lambda r: len(r.ids))[first : first + BATCH_SIZE]
    whole = new_model()
    best, name = (new_model().to(torch.bfloat16), "bf16") if multiplies_bf16("cpu") else (whole, "fp32")
    taken = in_turn(rounds, ours=lambda: ours(best, requests), peer=lambda: peer_generate(whole, few))
    rate, peer = num_codes / taken["ours"], sum(r.max_new_tokens for r in few) / taken["peer"]
    floor = num_codes / floor_sec(whole, requests, best.dtype)
    unit = "codes a s"
    return {
        f"{name}, to transformers' generate": Figure(rate, peer, rate / peer, unit),
        f"{name}, to its products alone": Figure(rate, floor, rate / floor, unit),
    }


class _OwnLengths(Engine):
    """Ends each request after a number of codes that its text takes, as a trained model would by its end marker.

    `asked` are the requests so far, as they were run.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model, BATCH_SIZE)
        self.asked: list[Request] = []

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        stop_ids: Collection[int] = (),
        allowed: Collection[int] | None = None,
        max_repeats: int | None = None,
    ) -> list[Generated]:
        requests = [replace(r, max_new_tokens=_length(r)) for r in requests]
        self.asked += requests
        codes = set(allowed or ()) - set(stop_ids)
        return [replace(g, stopped=True) for g in super().generate(requests, sampling, (), codes, max_repeats)]


def _length(request: Request) -> int:
    mean = CODES_PER_WORD / IDS_PER_WORD * len(request.ids)
    return int(1 + np.random.default_rng(request.seed).poisson(mean - 1))


def load(folder: Path, url: str | None = None) -> Synthesizer:
    """`Synthesizer.load` with such an engine."""
    model, tokenizer = load_hf(folder, torch.bfloat16 if multiplies_bf16("cpu") else torch.float32)
    return Synthesizer(_OwnLengths(model), SpeechVocab.of(tokenizer), artifacts.read(folder))


def material(folder: Path, size_bytes: int) -> tuple[Path, Path]:
    """A corpus of the demo's world, and a text-to-token model of random weights."""
    world, texts = World(0), []
    while sum(map(len, texts)) < size_bytes:
        texts.append(world.document(len(texts)))
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(texts)))
    words = extend_tokenizer(train_text_tokenizer(texts, NUM_TEXT_IDS), NUM_CODES)
    parents = {"tokenizer": artifacts.Manifest("tokenizer", "random")}
    with artifacts.build(folder / "model", "text_to_token", {"temperature": 0.8}, parents) as draft:
        save(new_model(SpeechVocab.of(words).size), words, draft.folder)
        draft.counts |= {"frame_rate_hz": 12.5, "max_codes_per_character": 2.0}
    return corpus, folder / "model"


def whole(size_bytes: int, rounds: int) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    with TemporaryDirectory(prefix="weft-bench-") as name:
        corpus, model = material(Path(name), size_bytes)
        synthesizer = load(model)
        engine = synthesizer._engine
        assert isinstance(engine, _OwnLengths)
        out = Path(name) / "out"

        def interleaved(workers: int = 1, loaded: Synthesizer | None = synthesizer, tasks: int | None = None) -> float:
            shutil.rmtree(out, ignore_errors=True)
            begun_sec = time.perf_counter()
            config = interleave.InterleaveConfig((corpus,), out, model, tasks=tasks, workers=workers)
            made = interleave.run(config, load if loaded is None else lambda folder, url: loaded)
            return made.counts["speech_codes"] / (time.perf_counter() - begun_sec)

        interleaved()
        requests = list(engine.asked)
        num_codes = sum(r.max_new_tokens for r in requests)
        bare, vocab = Engine(engine.model, BATCH_SIZE), SpeechVocab.of(load_hf(model, "auto")[1])
        ids = vocab.codes_to_ids(range(NUM_CODES)).tolist()
        taken: dict[str, list[float]] = {"whole": [], "bare": []}
        for _ in range(rounds):
            taken["whole"].append(interleaved())
            begun_sec = time.perf_counter()
            bare.generate(requests, SAMPLING, allowed=ids)
            taken["bare"].append(num_codes / (time.perf_counter() - begun_sec))
        rate, peer = (statistics.median(rates) for rates in taken.values())
        unit = "codes a s"
        figures["whole of interleave, to the bare engine"] = Figure(rate, peer, rate / peer, unit)
        torch.set_num_threads(1)
        one, two = interleaved(tasks=4), interleaved(2, None, tasks=4)
        torch.set_num_threads(NUM_THREADS)
        figures["two workers, to one, a thread each"] = Figure(two, one, two / one, unit)
        done = bare.generate(requests[:128], SAMPLING, allowed=ids)
        codes = [vocab.ids_to_codes(g.ids).tolist() for g in done]
        sound = sound_sec(codes) / sum(map(len, codes))
        through_sound = 1 / (1 / peer + sound)
        figures["codes alone, to codes by way of sound"] = Figure(rate, through_sound, rate / through_sound, unit)
    return figures


def sound_sec(codes: Sequence[Sequence[int]]) -> float:
    """Seconds that codes take to become sound, and the sound to become codes again."""
    torch.manual_seed(0)
    mel, tokenizer = MelConfig(), BASE.build()
    frames_per_code = round(mel.sample_rate_hz / 12.5 / mel.hop_samples)
    decoder = SpeechDecoder(FlowDecoder(FlowConfig(), NUM_CODES, frames_per_code * mel.num_mels).eval(), mel)
    for _ in range(2):  # the first time is a rehearsal
        begun_sec = time.perf_counter()
        tokenizer.encode([decoder.synthesize(row) for row in codes])
        taken_sec = time.perf_counter() - begun_sec
    return taken_sec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--quick", action="store_true", help="one round, for a first look")
    given = parser.parse_args()
    torch.set_num_threads(NUM_THREADS)
    figures = speed(512, 1 if given.quick else 5)
    figures |= whole(128 << 10 if given.quick else 512 << 10, 1 if given.quick else 3)
    show(figures)
    if given.json:
        write(given.json, figures)


if __name__ == "__main__":
    main()
