"""Recipes that come with weft: they load, state the size of their models, and contain the published settings."""

import importlib
import re
from copy import deepcopy
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GlmConfig,
    LlamaConfig,
    Qwen2Config,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from weft.cli import COMMANDS
from weft.config import FLAT, NOT_IN_PLAN, RENAMED, load_recipe, recipes_folder
from weft.data.job import JobConfig
from weft.decoder.published.flow import PUBLISHED_MEL, PublishedConfig, PublishedFlow
from weft.decoder.published.hift import HiFT, HiFTShape
from weft.tokenizer.augment import AugmentConfig
from weft.tokenizer.encoder import BottleneckWhisper, encoder_parameters

RECIPES = {str(path.relative_to(recipes_folder())): path for path in sorted(recipes_folder().rglob("*.toml"))}
COMMAND_OF = {
    "tokenizer": "train-tokenizer",
    "decoder": "train-decoder",
    "vocoder": "train-vocoder",
    "text_to_token": "train-text-to-token",
    "lm": "init-lm",
    "pretrain": "pretrain",
    "sft": "sft",
}


def shape(width: int, layers: int, heads: int, num_mels: int, vocab_size: int) -> WhisperConfig:
    return WhisperConfig(
        d_model=width, encoder_layers=layers, decoder_layers=layers, encoder_attention_heads=heads,
        decoder_attention_heads=heads, encoder_ffn_dim=4 * width, decoder_ffn_dim=4 * width, num_mel_bins=num_mels,
        vocab_size=vocab_size,
    )  # fmt: skip


# Shapes and published numbers of parameters of the Whispers that recipes start from.
WHISPERS = {
    "models/whisper-base": (shape(512, 6, 8, 80, 51865), 72_593_920),
    "models/whisper-small": (shape(768, 12, 12, 80, 51865), 241_734_912),
    "models/whisper-large-v3": (shape(1280, 32, 20, 128, 51866), 1_543_490_560),
}

# Shapes and published numbers of parameters of the language models that recipes start from; the number of ids of their
# tokenizers, and how many of the roles are among them.
QWEN = Qwen2Config(
    vocab_size=151_936, hidden_size=1536, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2,
    intermediate_size=8960, tie_word_embeddings=True,
)  # fmt: skip
SMOL = LlamaConfig(
    vocab_size=49_152, hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
    intermediate_size=1536, tie_word_embeddings=True,
)  # fmt: skip
LMS = {
    "models/glm-4-9b-hf": (GlmConfig(), 9_399_951_360, 151_343, 3),  # the defaults are the shape of this model
    "models/Qwen2.5-1.5B": (QWEN, 1_543_714_304, 151_665, 0),
    "models/SmolLM2-135M": (SMOL, 134_515_008, 49_152, 0),
}


def config_class(command: str) -> type:
    return getattr(importlib.import_module(COMMANDS[command].module), COMMANDS[command].config)


@cache
def load(name: str) -> Any:
    path = RECIPES[name]
    return load_recipe(config_class(COMMAND_OF[path.stem.split("-")[0]]), path)


TOKENIZERS = [name for name in RECIPES if "/tokenizer" in name]
WHISPER_TOKENIZERS = [name for name in TOKENIZERS if load(name).base]
PAPER_TOKENIZERS = [name for name in TOKENIZERS if name.startswith("paper/")]
LM_RECIPES = [name for name in RECIPES if Path(name).stem.startswith("lm") and not name.startswith("nano/")]
PRETRAINING = [name for name in RECIPES if Path(name).stem.startswith("pretrain")]
FINE_TUNING = [name for name in RECIPES if Path(name).stem == "sft"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_loads_and_writes_to_the_directory_of_its_name(name: str) -> None:
    recipe, folder = load(name), Path(name).parent.name
    assert str(recipe.out).startswith(f"runs/{folder}/")
    assert recipe.train.steps > recipe.train.warmup_steps if hasattr(recipe, "train") else True


def test_no_two_recipes_have_the_same_output() -> None:
    outputs = [load(name).out for name in RECIPES]
    assert len(set(outputs)) == len(outputs)


def test_renamed_settings_exist_under_their_new_names() -> None:
    def names_in(kind: type) -> set[str]:
        nested = [hint for hint in get_type_hints(kind).values() if isinstance(hint, type) and is_dataclass(hint)]
        return {f.name for f in fields(kind)}.union(*map(names_in, nested))

    names = set().union(*(names_in(config_class(command)) for command in COMMANDS))
    assert set(RENAMED.values()) <= names
    assert names.isdisjoint(RENAMED)


def test_job_settings_of_every_data_command_are_flat_and_not_in_the_plan() -> None:
    hints = {name: get_type_hints(config_class(name), include_extras=True) for name in COMMANDS}
    jobs = {name: found["job"] for name, found in hints.items() if "job" in found}
    assert set(jobs) >= {"speak", "pseudo-label", "tokenize", "interleave", "documents", "dialogues", "pack"}
    assert all(job.__origin__ is JobConfig and job.__metadata__ == (FLAT, NOT_IN_PLAN) for job in jobs.values())


@pytest.mark.parametrize("base", WHISPERS)
def test_the_whispers_have_their_published_size(base: str) -> None:
    whisper, num_parameters = WHISPERS[base]
    recipe = next(load(name) for name in WHISPER_TOKENIZERS if str(load(name).base) == base)
    with torch.device("meta"):
        model = BottleneckWhisper(recipe.model, WhisperForConditionalGeneration(whisper))
    assert sum(p.numel() for p in model.whisper.parameters()) == num_parameters
    assert whisper.max_source_positions * 0.02 == 30


@pytest.mark.parametrize("name", WHISPER_TOKENIZERS)
def test_a_tokenizer_has_as_many_parameters_as_its_recipe_says(name: str) -> None:
    recipe = load(name)
    stated = re.search(r"([\d,]+) parameters compute the codes", RECIPES[name].read_text())
    assert stated or name.startswith("laptop/")
    if stated:
        parameters = encoder_parameters(recipe.model, WHISPERS[str(recipe.base)][0])
        assert parameters == int(stated[1].replace(",", ""))
    assert recipe.quantize_from_step < recipe.train.steps


@pytest.mark.parametrize("name", WHISPER_TOKENIZERS)
def test_a_recipe_with_a_multilingual_whisper_has_a_language(name: str) -> None:
    assert load(name).language or name in PAPER_TOKENIZERS  # where manifests name one of two languages


@pytest.mark.parametrize("name", [name for name in WHISPER_TOKENIZERS if not name.startswith("laptop/")])
def test_recipes_with_little_speech_augment_it(name: str) -> None:
    assert (load(name).augment == AugmentConfig()) == (name in PAPER_TOKENIZERS)


def test_the_papers_tokenizers_have_their_published_size_and_rates() -> None:
    large = WHISPERS["models/whisper-large-v3"][0]
    paper = {rate: load(f"paper/tokenizer-{rate}hz.toml") for rate in ("50", "25", "12.5", "6.25")}
    assert encoder_parameters(paper["12.5"].model, large) == 343_599_360  # of the released tokenizer
    assert {r: 50 / p.model.pooling for r, p in paper.items()} == {"50": 50, "25": 25, "12.5": 12.5, "6.25": 6.25}
    assert [p.model.quantizer.num_codes for p in paper.values()] == [4096, 4096, 16384, 65536]


def test_the_papers_tokenizers_differ_in_rate_and_codes_only() -> None:
    def rest(recipe: Any) -> Any:
        quantizer = replace(recipe.model.quantizer, num_codes=2)
        model = replace(recipe.model, pooling=1, block_frames=0, quantizer=quantizer)
        return replace(recipe, out=Path(), model=model)

    paper = [load(name) for name in PAPER_TOKENIZERS]
    assert len(paper) == 4
    assert all(rest(recipe) == rest(paper[0]) for recipe in paper)


@pytest.mark.parametrize("name", PAPER_TOKENIZERS)
def test_the_papers_tokenizers_train_two_epochs_on_pseudo_labels(name: str) -> None:
    recipe = load(name)
    assert recipe.pseudo
    hours = recipe.train.steps * recipe.batch_sec / 3600
    assert (1 - recipe.supervised_fraction) * hours == pytest.approx(2 * 700_000, rel=0.01)


def test_the_papers_decoder_has_its_published_shape_in_both_stages() -> None:
    first, second, vocoder = (load(f"paper/{name}.toml") for name in ("decoder-all-voices", "decoder", "vocoder"))
    assert first.published == second.published == PublishedConfig(max_clip_blocks=24)
    assert second.init == first.out
    assert first.vocoder == vocoder.out
    assert (vocoder.hift, vocoder.mel) == (HiFTShape(), PUBLISHED_MEL)
    with torch.device("meta"):
        models = PublishedFlow(first.published, 16_384, 12.5, vocoder.mel), HiFT(vocoder.hift, vocoder.mel)
    for model, name in zip(models, ("decoder", "vocoder"), strict=True):
        assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in RECIPES[f"paper/{name}.toml"].read_text()


@pytest.mark.parametrize("name", LM_RECIPES)
def test_a_language_model_has_as_many_parameters_as_its_recipe_says(name: str) -> None:
    recipe = load(name)
    shape, num_parameters, num_ids, num_roles = LMS[str(recipe.base)]
    tokenizer = load(f"{Path(name).parent}/{recipe.tokenizer.name}.toml")
    assert tokenizer.out == recipe.tokenizer
    num_ids += tokenizer.model.quantizer.num_codes + 2 + 3 - num_roles
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(deepcopy(shape))  # resizing changes it
        assert model.num_parameters() == num_parameters
        model.resize_token_embeddings(num_ids, pad_to_multiple_of=64, mean_resizing=False)
    stated = [int(n.replace(",", "")) for n in re.findall(r"[\d,]{9,}", RECIPES[name].read_text())]
    assert stated == [model.num_parameters(), model.num_parameters() - num_parameters][: len(stated)]


@pytest.mark.parametrize("name", [*PRETRAINING, *FINE_TUNING])
def test_pretraining_starts_from_the_output_of_a_recipe_beside_it(name: str) -> None:
    outputs = {load(n).out for n in RECIPES if Path(n).parent == Path(name).parent}
    assert load(name).base in outputs


@pytest.mark.parametrize("name", FINE_TUNING)
def test_fine_tuning_follows_pretraining_with_a_lower_learning_rate(name: str) -> None:
    recipe, before = load(name), load(str(Path(name).with_name("pretrain.toml")))
    assert recipe.base == before.out
    assert recipe.out.name == "lm"  # of a bundle, with the other models beside it
    assert recipe.train.lr < before.train.lr
    assert recipe.max_seq_len >= before.max_seq_len


@pytest.mark.parametrize("name", [name for name in PRETRAINING if name.startswith(("paper/", "mini/"))])
def test_pretraining_has_the_mixture_of_the_paper(name: str) -> None:
    weights = {"text": 0.3, "speech": "1 epoch", "asr": "1 epoch", "tts": "1 epoch", "interleaved": "rest"}
    assert load(name).weights == weights


def test_the_papers_pretraining_has_its_published_settings() -> None:
    recipe = load("paper/pretrain-9b.toml")
    train = recipe.train
    assert recipe.max_seq_len == 8192
    assert train.steps * recipe.batch_tokens == pytest.approx(1e12, rel=1e-5)
    assert recipe.batch_tokens % (64 * train.grad_accum_steps * recipe.max_seq_len) == 0
    assert (train.optimizer, train.beta2, train.schedule) == ("adamw", 0.95, "linear")
    assert max(train.lr_at(step) for step in range(train.warmup_steps + 1)) == 6e-5
    assert train.lr_at(train.steps) == pytest.approx(6e-6)
    other = load("paper/pretrain-1.5b.toml")
    same = ("base", "tokens", "out", "parallel", "activation_checkpointing")  # the small model fits a GPU
    assert replace(other, **{name: getattr(recipe, name) for name in same}) == recipe
