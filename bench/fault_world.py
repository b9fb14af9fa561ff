"""Small inputs and models for bench/faults.py, and the commands that create every kind of artifact from them.

world = World(folder)       # takes a minute: each command runs once, and its result is the reference
world.jobs["tokenize"].arguments("out")
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fault_runs import Run, unreadable
from safetensors.torch import save_file
from tokenizers import AddedToken, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, WhisperConfig, WhisperForConditionalGeneration, WhisperTokenizer

from weft.demo.world import World as Stories
from weft.vocab import train_text_tokenizer

NUM_LINES = 72  # three tasks of `weft speak`
NUM_DOCUMENTS = 16
NUM_DIALOGUES = 9
MARKS = ("<|endoftext|>", "<|audio_0|>", "<|user|>", "<|assistant|>", "<|begin_of_audio|>", "<s>", "</s>")  # in texts

_TRAIN = """
[train]
steps = {steps}
lr = 3e-3
warmup_steps = 2
checkpoint_every_steps = 4
log_every_steps = 2
precision = "fp32"
"""
_TOKENIZER = """
speech = ["{world}/speak"]
batch_sec = 12
quantize_from_step = 4
[whisper]
width = 32
encoder_layers = 2
heads = 2
vocab_size = 300
[model]
layer = 1
log_mel_floor = "fixed"
[model.quantizer]
num_codes = 32
"""
_DECODER = """
codes = ["{world}/tokenize"]
audio = ["{world}/speak"]
tokenizer = "{world}/train-tokenizer"
batch_windows = 4
[flow]
width = 32
heads = 2
encoder_layers = 1
estimator_layers = 1
euler_steps = 2
"""
_TEXT_TO_TOKEN = """
codes = ["{world}/tokenize"]
tokenizer = "{world}/train-tokenizer"
vocab_size = 320
batch_utterances = 8
[model]
hidden = 32
layers = 1
heads = 1
ffn = 64
max_position_tokens = 512
"""
_PRETRAIN = """
base = "{world}/{base}"
tokens = ["{world}/{tokens}"]
batch_tokens = 600
max_seq_len = 128
"""


@dataclass
class Job:
    """A command that creates an artifact, without `--out`. `variant` are flags with another result."""

    name: str
    command: tuple[str, ...]
    variant: tuple[str, ...] = ()
    has_workers: bool = False
    sec: float = field(default=0.0, init=False)

    def arguments(self, out: Path | str, *more: str) -> list[str]:
        """Return the arguments of the command line."""
        return [*self.command, "--out", str(out), *more]


class World:
    """Inputs, and a finished artifact of every job, in `folder`, named after the job."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        torch.manual_seed(0)
        write_texts(folder)
        write_whisper(folder / "whisper")
        write_glm(folder / "glm")
        write_llama(folder / "llama")
        self._write_recipes()
        self.jobs = {job.name: job for job in _jobs(folder)}
        for job in self.jobs.values():
            self._create(job)
            if job.name == "speak":
                _write_word_times(folder)
        for part, name in {"tokenizer": "train-tokenizer", "decoder": "train-decoder", "lm": "sft"}.items():
            _link(folder / "bundle" / part, folder / name)
        _link(folder / "bundle/text_to_token", folder / "train-text-to-token")

    def __getitem__(self, name: str) -> str:
        """Return the path of an input or a reference artifact."""
        return str(self.folder / name)

    def _create(self, job: Job) -> None:
        start_sec = time.monotonic()
        ended = Run(job.arguments(self.folder / job.name), self.folder).wait(300)
        job.sec = time.monotonic() - start_sec
        if problem := unreadable(ended) or (f"status {ended.status}" if ended.status else None):
            raise SystemExit(f"{job.name} fails without any fault: {problem}\n{ended.output}")

    def _write_recipes(self) -> None:
        recipes = {
            "tokenizer": (_TOKENIZER, 16, {}),
            "decoder": (_DECODER, 16, {}),
            "text_to_token": (_TEXT_TO_TOKEN, 16, {}),
            "pretrain": (_PRETRAIN, 24, {"base": "init-lm", "tokens": "pack"}),
            "sft": (_PRETRAIN, 12, {"base": "pretrain", "tokens": "pack-dialogues"}),
        }
        for name, (text, steps, values) in recipes.items():
            recipe = (text + _TRAIN).format(world=self.folder, steps=steps, **values)
            (self.folder / f"{name}.toml").write_text(recipe)


def _jobs(world: Path) -> Iterable[Job]:
    """Yield the jobs, each after those whose results it reads."""

    def recipe(command: str, name: str) -> Job:
        return Job(command, (command, f"{world}/{name}.toml"), ("--train.seed", "1"))

    seed = ("--seed", "1")
    model = ("--text-to-token", f"{world}/train-text-to-token")
    tokenizer = ("--tokenizer", f"{world}/train-tokenizer")
    yield Job("speak", ("speak", f"{world}/lines.txt"), ("--voice", "espeak:en-us?speed=200"), True)
    yield recipe("train-tokenizer", "tokenizer")
    whisper = ("--whisper", f"{world}/whisper", "--language", "en", "--min-log-prob", "-100", "--max-repetition", "99")
    yield Job("pseudo-label", ("pseudo-label", f"{world}/speak", *whisper), ("--batch-size", "3"), True)
    yield Job("import-glm", ("import-glm", f"{world}/glm"))
    yield Job("tokenize", ("tokenize", f"{world}/speak", *tokenizer), ("--precision", "bf16"), True)
    yield recipe("train-decoder", "decoder")
    resynth = ("resynth", f"{world}/speak/audio/lines-1.flac", *tokenizer, "--decoder", f"{world}/train-decoder")
    yield Job("resynth", resynth, seed)
    yield recipe("train-text-to-token", "text_to_token")
    yield Job("interleave", ("interleave", f"{world}/corpus.jsonl", *model, "--tasks", "4"), seed, True)
    aligned = ("interleave", f"{world}/speak", "--aligned", f"{world}/words.jsonl", *tokenizer, "--tasks", "4")
    yield Job("interleave-aligned", aligned, seed, True)
    for kind, source in {"text": "corpus.jsonl", "speech": "tokenize", "asr": "tokenize", "tts": "tokenize"}.items():
        arguments = ("documents", kind, "--source", f"{world}/{source}", "--tasks")
        yield Job(f"documents-{kind}", (*arguments, "3"), (), kind == "text")
    yield Job("documents-marks", ("documents", "text", "--source", f"{world}/marks.jsonl"))
    dialogues = ("dialogues", f"{world}/dialogues.jsonl", *model, "--tasks", "3")
    yield Job("dialogues", dialogues, seed, True)
    yield Job("init-lm", ("init-lm", "--base", f"{world}/llama", *tokenizer), seed)
    names = ("interleave", "interleave-aligned", "documents-text", "documents-speech", "documents-asr", "documents-tts")
    lm = ("--lm", f"{world}/init-lm")
    yield Job("pack", ("pack", *(f"{world}/{name}" for name in names), *lm), (), True)
    yield Job("pack-dialogues", ("pack", f"{world}/dialogues", *lm))
    yield recipe("pretrain", "pretrain")
    yield recipe("sft", "sft")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_texts(folder: Path) -> None:
    """Write lines to speak, a corpus, dialogues, and pairs of endings."""
    stories = Stories(0)
    sentences = [sentence for i in range(NUM_LINES) for sentence in stories.story(i).sentences]
    (folder / "lines.txt").write_text("\n".join(sentences[:NUM_LINES]) + "\n")
    rows = ({"id": f"d{i}", "text": stories.document(i)} for i in range(NUM_DOCUMENTS))
    write_jsonl(folder / "corpus.jsonl", rows)
    write_jsonl(folder / "marks.jsonl", ({"id": f"m{i}", "text": f"The {MARKS[i]} sat."} for i in range(len(MARKS))))
    write_jsonl(folder / "dialogues.jsonl", (asdict(stories.dialogue(i)) for i in range(NUM_DIALOGUES)))
    write_jsonl(folder / "pairs.jsonl", (asdict(stories.cloze_pair(i)) for i in range(2)))


def _write_word_times(folder: Path) -> None:
    """Write word times at equal distances for the speech of `weft speak`."""
    rows = []
    for line in (folder / "speak/manifest.jsonl").read_text().splitlines():
        utterance = json.loads(line)
        words = utterance["text"].split()
        times = np.linspace(0, utterance["seconds"], len(words) + 1).round(3).tolist()
        timed = [{"word": w, "start": a, "end": b} for w, a, b in zip(words, times, times[1:], strict=False)]
        rows.append({"id": utterance["id"], "words": timed})
    write_jsonl(folder / "words.jsonl", rows)


def write_whisper(folder: Path) -> None:
    """Write a Hugging Face Whisper with random weights and a text tokenizer of bytes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = WhisperTokenizer(vocab={letter: i for i, letter in enumerate(letters)}, merges=[])
    special = ["<|startoftranscript|>", "<|en|>", "<|zh|>", "<|transcribe|>", "<|notimestamps|>"]
    words.add_tokens([AddedToken(name, special=True) for name in special])
    ends = {"eos_token_id": words.eos_token_id, "pad_token_id": words.eos_token_id, "bos_token_id": words.eos_token_id}
    config = WhisperConfig(
        vocab_size=len(words),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_source_positions=120,
        max_target_positions=24,
        init_std=0.3,
        decoder_start_token_id=words.convert_tokens_to_ids("<|startoftranscript|>"),
        **ends,
    )
    whisper = WhisperForConditionalGeneration(config)
    whisper.save_pretrained(folder)
    words.save_pretrained(folder)


def write_llama(folder: Path) -> None:
    """Write a Hugging Face Llama with random weights and a text tokenizer of the corpus."""
    texts = [Stories(0).document(i) for i in range(NUM_DOCUMENTS)]
    words = train_text_tokenizer(texts, 320)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)


def write_glm(folder: Path) -> None:
    """Write a directory in the form of a released GLM-4-Voice tokenizer, with random weights."""
    width, mels, rng = 16, 80, np.random.default_rng(3)
    shapes: dict[str, tuple[int, ...]] = {
        "conv1.weight": (width, mels, 3),
        "conv1.bias": (width,),
        "conv2.weight": (width, width, 3),
        "conv2.bias": (width,),
        "embed_positions.weight": (1500, width),
        "embed_positions2.weight": (375, width),
        "codebook.weight": (32, width),
        "layers.0.fc1.weight": (32, width),
        "layers.0.fc1.bias": (32,),
        "layers.0.fc2.weight": (width, 32),
        "layers.0.fc2.bias": (width,),
    }
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        shapes[f"layers.0.self_attn.{name}.weight"] = (width, width)
        if name != "k_proj":
            shapes[f"layers.0.self_attn.{name}.bias"] = (width,)
    for name in ("self_attn_layer_norm", "final_layer_norm"):
        shapes |= {f"layers.0.{name}.weight": (width,), f"layers.0.{name}.bias": (width,)}
    folder.mkdir()
    tensors = {name: torch.from_numpy(rng.normal(size=shape)).float() for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    config = {
        "model_type": "whisper",
        "architectures": ["WhisperVQEncoder"],
        "d_model": width,
        "encoder_layers": 32,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "decoder_layers": 1,
        "num_mel_bins": mels,
        "encoder_causal_convolution": True,
        "pooling_kernel_size": 4,
        "pooling_type": "avg",
        "pooling_position": 1,
        "quantize_position": 1,
        "quantize_causal_block_size": 40,
        "quantize_vocab_size": 32,
        "quantize_encoder_only": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    features = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": mels}
    (folder / "preprocessor_config.json").write_text(json.dumps(features))


def _link(link: Path, target: Path) -> None:
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(target)
