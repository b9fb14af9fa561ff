"""Fixtures of interleaved data: a corpus, and artifacts without weights."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from weft import artifacts
from weft.artifacts import Manifest
from weft.data.datasets import write_codes_part
from weft.files import write_json
from weft.plan import Plan, open_draft
from weft.tokenizer.artifact import CONFIG

TOKENIZER = Manifest("tokenizer", "aaaa")
TEXT = "the cat and dog sat on 13 old mats, while we all looked at https://a.org/b in the sun."


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """120 documents of 5 to 300 words."""
    rng = np.random.default_rng(0)
    lines = [
        json.dumps({"id": f"d{i}", "text": " ".join(rng.choice(TEXT.split(), rng.integers(5, 300)))})
        for i in range(120)
    ]
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def text_to_token(tmp_path):
    with open_draft(tmp_path / "text_to_token", Plan("text_to_token", {}, {"tokenizer": TOKENIZER})):
        pass
    return tmp_path / "text_to_token"


@pytest.fixture
def make_tokenizer(tmp_path):
    """make_tokenizer(name, fingerprint, **model) -> directory of a tokenizer without weights."""

    def make(name="tokenizer", fingerprint=TOKENIZER.fingerprint, **model):
        write_json(tmp_path / name / artifacts.MANIFEST, asdict(Manifest("tokenizer", fingerprint, format_version=1)))
        write_json(tmp_path / name / CONFIG, {"quantizer": {}, **model})
        return tmp_path / name

    return make


@pytest.fixture
def make_codes(tmp_path):
    """make_codes(name, parts of utterances, tokenizer) -> directory of a codes dataset."""

    def make(name, parts, tokenizer=TOKENIZER):
        with open_draft(tmp_path / name, Plan("codes", {"name": name}, {"tokenizer": tokenizer})) as draft:
            for task, utterances in enumerate(parts):
                write_codes_part(draft.folder, task, utterances)
        return tmp_path / name

    return make
