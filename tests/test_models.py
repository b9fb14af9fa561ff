"""The models that come with weft are complete, small, and described by their cards."""

from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard

from weft.artifacts import read_parent
from weft.tokenizer.tokenizer import SpeechTokenizer

MINI = Path(__file__).parents[1] / "models/mini"
FOLDERS = sorted(path.parent for path in MINI.glob("*/manifest.json"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_model_is_complete_small_and_has_a_card(folder: Path) -> None:
    manifest = read_parent(folder)  # compares all checksums
    assert manifest.notes["licences"]
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 24e6
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == manifest.notes["licences"].lower().replace(" ", "-")
    for part in ("## Training", "## Limits", "## Licence"):
        assert part in card.content


def test_the_mini_tokenizer_computes_the_same_codes_in_a_stream() -> None:
    tokenizer = SpeechTokenizer.from_pretrained(MINI / "tokenizer")
    assert (tokenizer.num_codes, tokenizer.frame_rate_hz) == (1024, 12.5)
    samples = (0.1 * np.random.default_rng(0).standard_normal(5 * 16_000)).astype(np.float32)
    [codes] = tokenizer.encode([samples])
    stream = tokenizer.stream()
    parts = [stream.push(samples[i : i + 7000]) for i in range(0, len(samples), 7000)]
    assert np.array_equal(np.concatenate([*parts, stream.finish()]), codes)
    assert len(codes) == 63
    assert len(set(codes.tolist())) > 5
