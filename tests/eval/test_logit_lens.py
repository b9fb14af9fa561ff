import json
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.eval.conftest import TEXTS
from weft import cli
from weft.errors import UserError
from weft.eval.logit_lens import decodable_words, last_norm
from weft.lm.model import LanguageModel


@pytest.fixture
def known(lm: Path) -> LanguageModel:
    """A model whose codes have, from the first layer on, the embedding of the first id of " cat"."""
    found = LanguageModel.from_pretrained(lm / "lm")
    width = found.model.config.hidden_size
    with torch.no_grad():
        for p in found.model.parameters():
            p.zero_()
        found.model.base_model.norm.weight.fill_(1.0)
        head, cat = found.model.get_output_embeddings().weight, int(found.vocab.text_ids(" cat")[0])
        head[cat, 0] = 1.0
        embeddings = found.model.get_input_embeddings()
        if embeddings.weight is head:  # tied: codes share the direction of the word
            codes = found.vocab.codes_to_ids(range(found.vocab.num_codes)).tolist()
            head[codes] = 0.0
            head[codes, 0] = 1.0
    assert width >= 1
    return found


def test_a_word_is_decodable_if_its_first_id_is_likeliest_at_a_code(known: LanguageModel) -> None:
    found = decodable_words(known, [[1, 2], [3]], ["the cat sat", "dog"], top=1)
    assert len(found.words) == known.model.config.num_hidden_layers + 1
    own = len({int(known.vocab.text_ids(f" {word}")[0]) for word in ("the", "cat", "sat")})
    assert found.words[-1] == [(1, own), (0, 1)]
    assert found.control[-1][0] == (0, 1)
    assert found.control[-1][1] == (1, own)  # "cat" is also likeliest in the speech of "dog": chance


def test_the_command_reports_every_layer(lm: Path, speech: Path, tmp_path: Path) -> None:
    command = ["eval", "logit-lens", "--model", lm, "--data", speech, "--out", tmp_path / "out.json", "--top", "50"]
    assert cli.run([str(a) for a in command]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert {"layer 0", "layer 1", "control, layer 1"} <= found["results"].keys()
    assert all(0 <= result["value"] <= 1 for result in found["results"].values())
    assert found["results"]["layer 1"]["n"] == 3 == len(TEXTS) - 1


def test_a_model_without_a_known_norm_is_rejected() -> None:
    class Body(nn.Module):
        base_model = nn.Linear(1, 1)

    with pytest.raises(UserError, match="has no last norm"):
        last_norm(Body())  # type: ignore[arg-type]
