"""Bundles: parts that belong together are loaded and saved, others are an error before anything is loaded."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from tests.chat.conftest import noise
from weft import artifacts
from weft.alternation import ChunkSchedule
from weft.artifacts import Manifest
from weft.chat.bundle import Bundle
from weft.chat.session import respond
from weft.errors import UserError
from weft.lm.model import LmConfig, new_lm, save
from weft.plan import Plan, open_draft

KINDS = {"decoder": "decoder", "lm": "language_model", "text_to_token": "text_to_token"}


@pytest.fixture
def make_parts(tmp_path):
    """make_parts(foreign=None) -> a bundle of parts without weights, `foreign` made with another tokenizer."""

    def make(foreign=None, without=()):
        with open_draft(tmp_path / "tokenizer", Plan("tokenizer", {})):
            pass
        for name in KINDS.keys() - without:
            tokenizer = artifacts.read(tmp_path / "tokenizer")
            parent = Manifest("tokenizer", "another") if name == foreign else tokenizer
            with open_draft(tmp_path / name, Plan(KINDS[name], {}, {"tokenizer": parent})):
                pass
        return tmp_path

    return make


@pytest.fixture(scope="module")
def saved(bundle, tmp_path_factory):
    """The directory of a bundle whose parts were written as the trainers do."""
    folder = tmp_path_factory.mktemp("saved")
    settings = {"model": asdict(bundle.tokenizer.model.config)}
    with open_draft(folder / "tokenizer", Plan("tokenizer", settings)) as draft:
        bundle.tokenizer.write_files(draft.folder)
    parents = {"tokenizer": artifacts.read(folder / "tokenizer")}
    with open_draft(folder / "decoder", Plan("decoder", {}, parents)) as draft:
        bundle.decoder.write_files(draft.folder)
        draft.counts["steps"] = 7
    with open_draft(folder / "lm", Plan("language_model", {}, parents), licence="mine") as draft:
        save(bundle.lm.model, bundle.lm.tokenizer, draft.folder)
    return folder


def assert_same_answers(one, other):
    found, expected = (respond(b, noise(20_000), seed=3, max_sec=2) for b in (one, other))
    assert (found.text, found.codes) == (expected.text, expected.codes)
    assert np.array_equal(found.samples, expected.samples)
    assert expected.text
    assert expected.codes


@pytest.mark.parametrize("foreign", KINDS)
def test_a_part_of_another_tokenizer_is_an_error_with_its_path(make_parts, foreign):
    with pytest.raises(UserError, match=f"{foreign} was made with tokenizer another"):
        Bundle.from_pretrained(make_parts(foreign))


@pytest.mark.parametrize("missing", ["decoder", "lm"])
def test_an_error_for_a_missing_part_names_it(make_parts, missing):
    with pytest.raises(UserError, match=f"{missing} does not exist"):
        Bundle.from_pretrained(make_parts(without={missing}))


def test_a_loaded_bundle_answers_like_its_parts(bundle, saved):
    assert_same_answers(Bundle.from_pretrained(saved), bundle)


def test_a_bundle_can_be_saved_and_loaded_any_number_of_times(saved, tmp_path):
    loaded = Bundle.from_pretrained(saved)
    loaded.save_pretrained(tmp_path / "second")
    second = Bundle.from_pretrained(tmp_path / "second")
    second.save_pretrained(tmp_path / "third")
    third = Bundle.from_pretrained(tmp_path / "third")
    assert_same_answers(third, loaded)
    assert third.decoder.manifest.counts == {"steps": 7}
    assert third.lm.manifest.notes == {"licences": "mine"}
    with pytest.raises(UserError, match="tokenizer already exists"):
        second.save_pretrained(tmp_path / "third")


def test_parts_that_do_not_belong_together_are_not_saved(saved, tmp_path):
    loaded = Bundle.from_pretrained(saved)
    manifest = replace(loaded.lm.manifest, parents={"tokenizer": "another"})
    mixed = Bundle(loaded.tokenizer, loaded.decoder, replace(loaded.lm, manifest=manifest))
    with pytest.raises(UserError, match="this language model was made with tokenizer another"):
        mixed.save_pretrained(tmp_path / "mixed")
    assert not (tmp_path / "mixed").exists()


def test_only_text_that_is_not_special_is_allowed_and_unused_rows_are_not(vocab, make_bundle):
    model = new_lm(LmConfig(hidden=64, layers=1, heads=1), vocab.tokenizer, seed=0)
    model.resize_token_embeddings(vocab.size + 7, mean_resizing=False)
    bundle = make_bundle(model=model)
    allowed = bundle.allowed(ChunkSchedule()).nonzero()[:, 0].numpy()
    assert allowed.max() < vocab.size
    assert vocab.tokenizer.pad_token_id not in allowed
    assert set(allowed[vocab.is_control(allowed)]) == {vocab.begin_of_audio_id}
    assert not vocab.is_audio(allowed).any()
