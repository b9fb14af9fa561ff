"""Every recipe that comes with weft loads, and makes models of the size that it says, which are the published ones."""

import importlib
import re
from dataclasses import replace
from pathlib import Path

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

from weft.cli import VERBS
from weft.config import load_recipe, recipes_folder
from weft.tokenizer.augment import AugmentConfig
from weft.tokenizer.encoder import BottleneckWhisper, kept_parameters
from weft.training.loop import learning_rate

RECIPES = {str(path.relative_to(recipes_folder())): path for path in sorted(recipes_folder().rglob("*.toml"))}
TOKENIZERS = [name for name in RECIPES if "/tokenizer" in name]
VERB_OF = {
    "tokenizer": "train-tokenizer",
    "decoder": "train-decoder",
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


# The released Whispers that recipes start from, with the parameters of each as they are published.
WHISPERS = {
    "models/whisper-base": (shape(512, 6, 8, 80, 51865), 72_593_920),
    "models/whisper-small": (shape(768, 12, 12, 80, 51865), 241_734_912),
    "models/whisper-large-v3": (shape(1280, 32, 20, 128, 51866), 1_543_490_560),
}

# The released language models that recipes start from, with the parameters of each as they are published; how many ids
# its tokenizer has, and how many of the roles are among them.
QWEN = Qwen2Config(
    vocab_size=151_936, hidden_size=1536, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2,
    intermediate_size=8960, tie_word_embeddings=True,
)  # fmt: skip
SMOL = LlamaConfig(
    vocab_size=49_152, hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
    intermediate_size=1536, tie_word_embeddings=True,
)  # fmt: skip
LMS = {
    "models/glm-4-9b-hf": (GlmConfig(), 9_399_951_360, 151_343, 3),  # whose defaults are that model's shape
    "models/Qwen2.5-1.5B": (QWEN, 1_543_714_304, 151_665, 0),
    "models/SmolLM2-135M": (SMOL, 134_515_008, 49_152, 0),
}


def load(name: str):
    path = RECIPES[name]
    verb = VERBS[VERB_OF[path.stem.split("-")[0]]]
    return load_recipe(getattr(importlib.import_module(verb.module), verb.config), path)


@pytest.mark.parametrize("name", RECIPES)
def test_it_loads_and_makes_its_own_folder(name: str) -> None:
    recipe, folder = load(name), Path(name).parent.name
    assert str(recipe.out).startswith(f"runs/{folder}/")
    assert recipe.train.steps > recipe.train.warmup_steps if hasattr(recipe, "train") else True


def test_no_two_make_the_same() -> None:
    made = [load(name).out for name in RECIPES]
    assert len(set(made)) == len(made)


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if load(name).base])
def test_a_tokenizer_keeps_as_many_parameters_as_it_says(name: str) -> None:
    recipe = load(name)
    whisper, num_parameters = WHISPERS[str(recipe.base)]
    with torch.device("meta"):
        model = BottleneckWhisper(recipe.model, WhisperForConditionalGeneration(whisper))
    assert sum(p.numel() for p in model.whisper.parameters()) == num_parameters
    said = re.search(r"([\d,]+) parameters are kept", RECIPES[name].read_text())
    assert said
    assert kept_parameters(recipe.model, whisper) == int(said[1].replace(",", ""))
    assert whisper.max_source_positions * 0.02 == 30
    assert recipe.quantize_from_step < recipe.train.steps


def test_the_papers_tokenizer_has_its_published_size_and_rates() -> None:
    large = WHISPERS["models/whisper-large-v3"][0]
    paper = {rate: load(f"paper/tokenizer-{rate}hz.toml") for rate in ("50", "25", "12.5", "6.25")}
    assert kept_parameters(paper["12.5"].model, large) == 343_599_360  # of the released tokenizer
    assert {r: 50 / p.model.pooling for r, p in paper.items()} == {"50": 50, "25": 25, "12.5": 12.5, "6.25": 6.25}
    assert [p.model.quantizer.num_codes for p in paper.values()] == [4096, 4096, 16384, 65536]


def test_the_papers_mixture_is_two_epochs_of_its_pseudo_labelled_hours() -> None:
    for recipe in [load(name) for name in TOKENIZERS if name.startswith("paper/")]:
        assert recipe.pseudo
        hours = recipe.train.steps * recipe.batch_sec / 3600
        assert (1 - recipe.supervised_share) * hours == pytest.approx(2 * 700_000, rel=0.01)


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if load(name).base])
def test_a_multilingual_whisper_is_told_what_is_spoken(name: str) -> None:
    """By the recipe, or by the manifests of the paper's, which are of two languages."""
    recipe = load(name)
    assert recipe.language or name.startswith("paper/")
    assert (recipe.augment != AugmentConfig()) == (not name.startswith("paper/"))


def test_the_papers_rates_differ_in_nothing_else() -> None:
    def rest(recipe):
        quantizer = replace(recipe.model.quantizer, num_codes=2)
        model = replace(recipe.model, pooling=1, block_frames=0, quantizer=quantizer)
        return replace(recipe, out=Path(), model=model)

    paper = [load(name) for name in TOKENIZERS if name.startswith("paper/")]
    assert len(paper) == 4
    assert all(rest(recipe) == rest(paper[0]) for recipe in paper)


STARTS = [name for name in RECIPES if Path(name).stem.startswith("lm") and not name.startswith("nano/")]


@pytest.mark.parametrize("name", STARTS)
def test_a_language_model_with_speech_tokens_has_as_many_parameters_as_it_says(name: str) -> None:
    recipe = load(name)
    shape, num_parameters, num_ids, num_roles = LMS[str(recipe.base)]
    tokenizer = load(f"{Path(name).parent}/{recipe.tokenizer.name}.toml")
    assert tokenizer.out == recipe.tokenizer
    num_ids += tokenizer.model.quantizer.num_codes + 2 + 3 - num_roles
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape)
        assert model.num_parameters() == num_parameters
        model.resize_token_embeddings(num_ids, pad_to_multiple_of=64, mean_resizing=False)
    said = [int(n.replace(",", "")) for n in re.findall(r"[\d,]{9,}", RECIPES[name].read_text())]
    assert said == [model.num_parameters(), model.num_parameters() - num_parameters][: len(said)]


PRETRAINING = [name for name in RECIPES if Path(name).stem.startswith("pretrain")]


@pytest.mark.parametrize("name", PRETRAINING)
def test_pre_training_goes_on_from_a_recipe_of_its_road(name: str) -> None:
    made = {load(n).out for n in RECIPES if Path(n).parent == Path(name).parent}
    assert load(name).base in made


@pytest.mark.parametrize("name", [name for name in PRETRAINING if not name.startswith("nano/")])
def test_every_dataset_has_a_weight_that_can_be_kept(name: str) -> None:
    weights = load(name).weights
    assert weights == {"text": 0.3, "speech": "1 epoch", "asr": "1 epoch", "tts": "1 epoch", "woven": "rest"}


def test_the_papers_pre_training_has_its_published_figures() -> None:
    recipe = load("paper/pretrain-9b.toml")
    train = recipe.train
    assert recipe.row_tokens == 8192
    assert train.steps * recipe.tokens_per_step == pytest.approx(1e12, rel=1e-5)
    assert recipe.tokens_per_step % (64 * train.accumulate * recipe.row_tokens) == 0
    assert (train.optimizer, train.beta2, train.schedule) == ("adamw", 0.95, "linear")
    assert max(learning_rate(train, step) for step in range(train.warmup_steps + 1)) == 6e-5
    assert learning_rate(train, train.steps) == pytest.approx(6e-6)
    other = load("paper/pretrain-1.5b.toml")
    same = ("base", "tokens", "out", "parallel", "recompute")  # the small one fits a GPU
    assert replace(other, **{name: getattr(recipe, name) for name in same}) == recipe
