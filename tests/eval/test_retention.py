import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.eval.conftest import TEXTS
from weft import cli
from weft.eval import retention
from weft.eval.model import load_lm
from weft.eval.retention import bits_per_byte


def test_bits_are_those_of_every_id_of_a_text(text_lm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, text = load_lm(text_lm), " ".join(TEXTS)
    ids = lm.vocab.text_ids(text)
    expected, size = 0.0, 9
    for first in range(0, len(ids), size):
        window = np.concatenate([[lm.vocab.eos_id], ids[first : first + size]])
        with torch.no_grad():
            logs = lm.model(torch.from_numpy(window)[None]).logits[0].log_softmax(-1)
        expected -= float(logs[:-1].gather(1, torch.from_numpy(window[1:])[:, None]).sum()) / math.log(2)
    [(bits, num_bytes), (other, _)] = bits_per_byte(lm.model, lm.vocab, [text, "The"], max_tokens=size + 1)
    assert bits == pytest.approx(expected, rel=1e-4)
    assert num_bytes == len(text.encode())
    monkeypatch.setattr(retention, "_BATCH_TOKENS", 1)
    assert bits_per_byte(lm.model, lm.vocab, ["The"], max_tokens=10)[0][0] == pytest.approx(other, rel=1e-4)


def test_a_uniform_model_needs_the_bits_of_its_vocabulary(text_lm: Path, tmp_path: Path) -> None:
    lm = load_lm(text_lm)
    for p in lm.model.parameters():
        torch.nn.init.zeros_(p)
    lm.model.save_pretrained(tmp_path / "uniform")
    lm.vocab.tokenizer.save_pretrained(tmp_path / "uniform")
    (tmp_path / "text.jsonl").write_text(
        "".join(json.dumps({"id": str(i), "text": t}) + "\n" for i, t in enumerate(TEXTS))
    )
    command = ["eval", "retention", "--model", tmp_path / "uniform", "--base", text_lm, "--max-tokens", "32"]
    given = [str(a) for a in (*command, "--data", tmp_path / "text.jsonl", "--out", tmp_path / "out.json")]
    assert cli.run(given) == 0
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    num_ids, num_bytes = sum(len(lm.vocab.text_ids(t)) for t in TEXTS), sum(len(t.encode()) for t in TEXTS)
    rows = lm.model.get_output_embeddings().weight.shape[0]
    expected = num_ids * math.log2(rows) / num_bytes
    assert results["bits_per_byte"]["value"] == pytest.approx(expected, rel=1e-5)
    assert results["difference"]["value"] == pytest.approx(expected - results["bits_per_byte, base"]["value"], rel=1e-4)
    assert (results["difference"]["n"], results["difference"]["protocol"]["units"]) == (4, num_bytes)


def test_texts_are_needed(text_lm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", "retention", "--model", str(text_lm), "--out", str(tmp_path / "out.json")]
    assert cli.run(command) == 2
    assert "give --data FILE" in capsys.readouterr().err
    (tmp_path / "empty.txt").write_text(" ")
    assert cli.run([*command, "--data", str(tmp_path / "empty.txt")]) == 2
    assert "empty.txt" in capsys.readouterr().err
