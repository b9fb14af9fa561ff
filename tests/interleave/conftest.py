import json
from dataclasses import asdict

import numpy as np
import pytest

from weft import artifacts
from weft.artifacts import Manifest
from weft.data.shards import write_codes

TOKENIZER = Manifest("tokenizer", "aaaa")
TEXT = "the cat and dog sat on 13 old mats, while we all looked at https://a.org/b in the sun."


@pytest.fixture
def corpus(tmp_path):
    """120 documents of 5 to 300 words."""
    rng = np.random.default_rng(0)
    lines = [
        json.dumps({"id": f"d{i}", "text": " ".join(rng.choice(TEXT.split(), rng.integers(5, 300)))})
        for i in range(120)
    ]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    return tmp_path / "corpus.jsonl"


@pytest.fixture
def text_to_token(tmp_path):
    with artifacts.build(tmp_path / "text_to_token", "text_to_token", {}, {"tokenizer": TOKENIZER}):
        pass
    return tmp_path / "text_to_token"


@pytest.fixture
def make_tokenizer(tmp_path):
    """make_tokenizer(name, fingerprint, **model) -> folder of a tokenizer without weights."""

    def make(name="tokenizer", fingerprint=TOKENIZER.fingerprint, **model):
        manifest = Manifest("tokenizer", fingerprint, settings={"model": model})
        artifacts.write_json(tmp_path / name / artifacts.MANIFEST, asdict(manifest))
        return tmp_path / name

    return make


@pytest.fixture
def make_codes(tmp_path):
    """make_codes(name, parts of utterances, tokenizer) -> folder of a codes dataset."""

    def make(name, parts, tokenizer=TOKENIZER):
        with artifacts.build(tmp_path / name, "codes", {"name": name}, {"tokenizer": tokenizer}) as draft:
            for task, utterances in enumerate(parts):
                write_codes(draft.folder, task, utterances)
        return tmp_path / name

    return make
