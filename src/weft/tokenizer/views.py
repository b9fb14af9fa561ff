"""Features of an utterance in a training step: at its speed, distorted and masked.

read.distort = distortions(config, read, sources, noise)
views = views_of(read, item, Augmentation(speed=0.9, masks=rng, distortions=rng2), config.augment)
views.features, views.clean
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from weft.data.speech import load_speech
from weft.records import Utterance
from weft.tokenizer.augment import AugmentConfig, mask
from weft.tokenizer.config import TokenizerConfig
from weft.tokenizer.items import Item, Items
from weft.tokenizer.noise import Distortions, NoiseLoop
from weft.tokenizer.reader import Reader

_MAX_NOISES = 1000  # utterances or recordings that noise is made from


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of an item in a step: its speed, the random numbers of masks and distortions, if any, and whether
    the item is needed without distortions too.
    """

    speed: float = 1.0
    masks: np.random.Generator | None = None
    distortions: np.random.Generator | None = None
    with_clean: bool = False


@dataclass(frozen=True)
class Views:
    """Features (M, 2T) of an item, and without distortions, if needed."""

    features: Tensor
    clean: Tensor | None
    num_samples: int


def views_of(read: Reader, item: Item, augmentation: Augmentation, config: AugmentConfig) -> Views | None:
    """Return an item's augmented features, and a clean view with the same masks; None if it cannot be read."""
    if (speech := read(item, augmentation.speed)) is None:
        return None
    features, clean = read.features(speech, augmentation.distortions), None
    if augmentation.with_clean:
        clean = read.features(speech)
    if masks := augmentation.masks:
        same = deepcopy(masks)
        features = mask(features, config, masks)
        clean = None if clean is None else mask(clean, config, same)
    return Views(features, clean, speech.num_samples)


def distortions(
    config: TokenizerConfig, read: Reader, sources: Sequence[Items], noise: Sequence[Utterance]
) -> Distortions:
    """Return the distortions, whose babble and recordings are random ones, the same for all ranks."""
    augment, babble, recordings = config.augment, list[Item](), list[Utterance]()
    rng = np.random.default_rng((config.train.seed, _MAX_NOISES))
    if augment.babble_probability:
        babble = [source[row] for source in sources for row in _some(len(source), rng)]
    if augment.recording_probability:
        recordings = [noise[row] for row in _some(len(noise), rng)]
    voices = (read.samples(found) for item in babble if (found := read(item)) is not None)
    return Distortions(augment, NoiseLoop.of(voices, rng), NoiseLoop.of(map(load_speech, recordings), rng))


def _some(total: int, rng: np.random.Generator) -> list[int]:
    """Return up to `_MAX_NOISES` random rows of `total`, each once."""
    return rng.choice(total, min(total, _MAX_NOISES), replace=False).tolist()
