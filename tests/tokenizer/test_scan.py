import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.tokenizer.conftest import make_tokenizer, write_speech
from weft.audio import load, save
from weft.data.speech import read_manifest
from weft.tokenizer.config import TokenizerConfig
from weft.tokenizer.scan import Scan
from weft.training.config import TrainConfig

CONFIG = TokenizerConfig(Path("out"), (), batch_sec=4.0, ctc_outputs=3, train=TrainConfig(steps=100, seed=5))


@pytest.mark.parametrize(("ctc_outputs", "max_chars"), [(3, 6), (0, 8)])
def test_a_transcript_too_long_for_its_audio_is_left_out(tmp_path: Path, ctc_outputs: int, max_chars: int) -> None:
    save(tmp_path / "two_codes.wav", np.full(2 * 1280, 0.1, np.float32), 16_000)
    texts = {"fits": "tatatata"[:max_chars], "too long": "tatatatat"[: max_chars + 1]}
    rows = [{"id": id, "audio": "two_codes.wav", "text": text} for id, text in texts.items()]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [read_manifest(tmp_path)]
    scan = Scan(replace(CONFIG, ctc_outputs=ctc_outputs), make_tokenizer(), sources)
    assert [item.utterance.id for item in scan(sources[0])] == ["fits"]
    assert scan.skipped.bad == [("too long", "its transcript is too long for its duration")]


def test_items_are_numbered_across_sources_and_have_their_targets(tmp_path: Path) -> None:
    tokenizer, sources = make_tokenizer(), [read_manifest(write_speech(tmp_path / name, 3)) for name in "ab"]
    scan = Scan(CONFIG, tokenizer, sources)
    items = [item for source in sources for item in scan(source)]
    assert [item.number for item in items] == list(range(6))
    for item in items:
        assert item.num_samples == len(load(item.utterance.audio))
        chars = "".join(scan.alphabet[i - 1] for i in scan.chars(item.utterance))
        assert chars == (item.utterance.text or "").lower()
        assert len(chars) == item.num_chars
        ids = scan.text_ids(item.utterance)
        assert len(ids) == item.num_text_ids
        assert tokenizer.text_tokenizer.decode(ids, skip_special_tokens=True).strip() == item.utterance.text
