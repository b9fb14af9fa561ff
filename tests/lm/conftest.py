import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from weft.artifacts import Manifest
from weft.data.token_shards import write_tokens
from weft.lm.model import KIND, LmConfig, new_lm, save
from weft.lm.pretrain import PretrainConfig
from weft.plan import Plan, open_draft
from weft.records import Document, Segment
from weft.tokenizer.artifact import CONFIG, WEIGHTS
from weft.tokenizer.encoder import BottleneckConfig
from weft.tokenizer.quantizer import QuantizerConfig
from weft.training.config import TrainConfig
from weft.vocab import SpeechVocab, extend_tokenizer, train_text_tokenizer

from .families import NUM_CODES
from .runs import skip_plot_and_peak

TEXTS = ["The cat sat on the mat, and the dog barked at the cat.", "A bird sang to the cat; the dog slept."] * 20
TINY = LmConfig(hidden=32, layers=2, heads=2, ffn=64, max_position_tokens=256)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Compute with one thread, as `tests.ranks` does, for results with the same bits."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="session")
def text_tokenizer():
    return train_text_tokenizer(TEXTS, vocab_size=320)


@pytest.fixture(scope="session")
def vocab(text_tokenizer):
    return SpeechVocab.of(extend_tokenizer(text_tokenizer, NUM_CODES))


@pytest.fixture
def tiny_lm(vocab):
    return new_lm(TINY, vocab.tokenizer, seed=0).eval()


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def speech_tokenizer(tmp_path_factory):
    """A tokenizer artifact with a codebook only."""
    out = tmp_path_factory.mktemp("speech-tokenizer") / "tokenizer"
    codebook = torch.randn(NUM_CODES, 8, generator=torch.Generator().manual_seed(0))
    with open_draft(out, Plan("tokenizer", {})) as draft:
        config = BottleneckConfig(quantizer=QuantizerConfig(num_codes=NUM_CODES))
        (draft.folder / CONFIG).write_text(json.dumps(asdict(config)))
        save_file({"quantizer.codebook": codebook}, draft.folder / WEIGHTS)
    return out


def _documents(rng, kind, num):
    """Yield documents of two sentences, each with its own codes, so that what follows can be learnt."""
    codes = {" the cat sat": [1, 2, 3, 4], " a bird sang": [9, 8, 7, 6]}
    for i in range(num):
        first, second = rng.choice(list(codes), 2)
        speech = Segment.of_speech(codes[first], first)
        yield Document(str(i), kind, (speech, Segment.of_text(second)) if kind == "interleaved" else (speech,) * 3)


@pytest.fixture(scope="session")
def pack_tokens(tmp_path_factory, vocab):
    """A function that creates token shards of datasets with 60 documents each."""

    def make(seed=0, fingerprint=vocab.fingerprint, kinds=("interleaved", "speech"), tokenizer="t0"):
        out = tmp_path_factory.mktemp("pack") / "tokens"
        parents = {"tokenizer": Manifest("tokenizer", tokenizer)}
        with open_draft(out, Plan("tokens", {"vocab": fingerprint}, parents)) as draft:
            for kind in kinds:
                ids = list(map(vocab.document_ids, _documents(np.random.default_rng(seed), kind, 60)))
                write_tokens(draft.folder / kind, 0, vocab.size, ids)
                tokens = sum(len(document) for document, _ in ids)
                draft.counts.setdefault("datasets", {})[kind] = {"documents": 60, "tokens": tokens}
        return out

    return make


@pytest.fixture(scope="session")
def tokens(pack_tokens):
    return pack_tokens()


@pytest.fixture(scope="session")
def held_out(pack_tokens):
    return pack_tokens(seed=1)


@pytest.fixture(scope="session")
def base(tmp_path_factory, vocab):
    """A language model artifact with random weights."""
    out = tmp_path_factory.mktemp("lm") / "base"
    with open_draft(out, Plan(KIND, {}, {"tokenizer": Manifest("tokenizer", "t0")})) as draft:
        save(new_lm(TINY, vocab.tokenizer, seed=0), vocab.tokenizer, draft.folder)
        draft.counts["frame_rate_hz"] = 12.5
    return out


@pytest.fixture
def config(tmp_path, base, tokens, held_out):
    """A short training run on shared artifacts, which tests must not change."""
    return PretrainConfig(
        base=base,
        tokens=(tokens,),
        held_out=(held_out,),
        out=tmp_path / "lm",
        batch_tokens=256,
        max_seq_len=32,
        train=TrainConfig(steps=40, lr=1e-2, warmup_steps=5, checkpoint_every_steps=7, log_every_steps=5),
    )


@pytest.fixture
def short_run(monkeypatch):
    """Skip what takes longer than a short training run."""
    skip_plot_and_peak(monkeypatch)
