"""Bundles: parts that belong together load as they were, others are refused before anything is loaded."""

from dataclasses import asdict

import numpy as np
import pytest

from tests.chat.conftest import noise
from weft import artifacts
from weft.artifacts import Manifest
from weft.chat.bundle import Bundle
from weft.chat.session import respond
from weft.errors import UserError
from weft.lm.model import save

KINDS = {"decoder": "decoder", "lm": "language_model", "text_to_token": "text_to_token"}


@pytest.fixture
def make_parts(tmp_path):
    """make_parts(strange=None) -> a bundle of hollow parts, `strange` made with another tokenizer."""

    def make(strange=None, without=()):
        with artifacts.build(tmp_path / "tokenizer", "tokenizer", {}):
            pass
        for name in KINDS.keys() - without:
            tokenizer = artifacts.read(tmp_path / "tokenizer")
            parent = Manifest("tokenizer", "another") if name == strange else tokenizer
            with artifacts.build(tmp_path / name, KINDS[name], {}, {"tokenizer": parent}):
                pass
        return tmp_path

    return make


@pytest.mark.parametrize("strange", KINDS)
def test_a_part_of_another_tokenizer_is_refused_by_name(make_parts, strange):
    with pytest.raises(UserError, match=f"this {KINDS[strange].replace('_', '.')}.* was made with tokenizer another"):
        Bundle.load(make_parts(strange))


@pytest.mark.parametrize("missing", ["decoder", "lm"])
def test_a_missing_part_is_named(make_parts, missing):
    with pytest.raises(UserError, match=f"{missing} does not exist"):
        Bundle.load(make_parts(without={missing}))


def test_a_saved_bundle_answers_as_its_parts_did(bundle, tmp_path):
    settings = {"model": asdict(bundle.tokenizer.model.config)}
    with artifacts.build(tmp_path / "tokenizer", "tokenizer", settings) as draft:
        bundle.tokenizer.save(draft.folder)
    parents = {"tokenizer": artifacts.read(tmp_path / "tokenizer")}
    with artifacts.build(tmp_path / "decoder", "decoder", {}, parents) as draft:
        bundle.decoder.save(draft.folder)
    with artifacts.build(tmp_path / "lm", "language_model", {}, parents) as draft:
        save(bundle.engine.model, bundle.vocab.tokenizer, draft.folder)
    found, expected = (respond(b, noise(20_000), seed=3, max_sec=2) for b in (Bundle.load(tmp_path), bundle))
    assert (found.text, found.codes) == (expected.text, expected.codes)
    assert np.array_equal(found.samples, expected.samples)
