import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.demo.conftest import SIZES
from weft.data.speech import read_manifest
from weft.demo.data import from_user, from_world
from weft.demo.run import DemoConfig
from weft.demo.world import World
from weft.errors import UserError
from weft.eval.cloze import read_pairs

pytestmark = pytest.mark.xdist_group("demo")


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_data_of_the_world_has_the_requested_sizes_and_no_text_twice(finished: DemoConfig) -> None:
    data = from_world(finished.out / "data", SIZES, finished.seed, workers=1)  # it exists and is not created again
    texts = [row["text"] for path in (data.interleaved, data.text, data.synthetic_speech) for row in rows_of(path)]
    assert len(texts) == len(set(texts)) == 4 + 2 + 2
    assert len(rows_of(data.dialogues)) == SIZES.dialogues
    assert read_pairs(data.pairs) == [World(finished.seed).cloze_pair(i) for i in range(SIZES.pairs)]
    assert len(read_manifest(data.held_out)) == SIZES.held_out
    held_out = {u.text for u in read_manifest(data.held_out)}
    assert held_out.isdisjoint(u.text for u in read_manifest(*data.speech))
    assert data.keywords in (data.expected or "")


def test_three_quarters_of_the_stories_have_the_main_voice(finished: DemoConfig) -> None:
    main, other = (
        {u.id.split(".")[0] for u in read_manifest(finished.out / "data" / name) if u.id.startswith("story")}
        for name in ("voice", "other")
    )
    assert (len(main), len(other)) == (5, 1)


def test_text_alone_is_spoken_and_held_out_in_part(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("\n\n".join(World(3).document(i) for i in range(20)))
    sizes = replace(SIZES, stories=10, pairs=3)
    data = from_user(tmp_path / "data", [tmp_path / "book.txt"], [], sizes, seed=0, workers=1)
    voice, held_out = read_manifest(data.voice), read_manifest(data.held_out)
    assert (len(voice), len(held_out)) == (38, 2)
    assert {u.id for u in voice}.isdisjoint(u.id for u in held_out)
    pairs = read_pairs(data.pairs)
    assert len(pairs) == 3
    assert all(pair.right != pair.wrong for pair in pairs)
    training = " ".join(
        row["text"] for path in (data.interleaved, data.text, data.synthetic_speech) for row in rows_of(path)
    )
    assert not [pair for pair in pairs if f"{pair.beginning} {pair.right}" in training]
    assert rows_of(data.dialogues)[0]["turns"][0]["role"] == "user"
    assert (data.pairs_speech, data.held_out_spans, data.keywords) == (None, None, None)


def test_too_little_text_or_speech_is_rejected(finished: DemoConfig, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text(World(3).document(0))
    with pytest.raises(UserError, match="sentences of 3 to 16 words: give at least 40"):
        from_user(tmp_path / "data", [tmp_path / "short.txt"], [], SIZES, seed=0, workers=1)
    with pytest.raises(UserError, match="has 2 transcribed utterances: give at least 40"):
        from_user(tmp_path / "data", [], [finished.out / "data/held_out"], SIZES, seed=0, workers=1)
