"""Language models to evaluate: of a bundle, of weft, or any causal LM of Hugging Face, for text only.

lm = load_lm(Path("runs/demo"))            # lm.model, lm.vocab
lm.vocab.has_speech
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from weft.artifacts import MANIFEST, loading, read
from weft.device import default_device
from weft.errors import UserError
from weft.lm.model import KIND, LanguageModel, load_causal_lm
from weft.pretrained import load_pretrained
from weft.records import Segment
from weft.vocab import SpeechVocab


@dataclass(frozen=True, eq=False)
class TextVocab:
    """The ids of a tokenizer without speech tokens."""

    tokenizer: PreTrainedTokenizerBase

    @property
    def eos_id(self) -> int:
        """The id that ends a text, or the padding of a tokenizer without one."""
        found = self.tokenizer.eos_token_id if self.tokenizer.eos_token_id is not None else self.tokenizer.pad_token_id
        if found is None:
            raise UserError("the tokenizer has no eos token: set its eos_token")
        return int(found)

    @cached_property
    def size(self) -> int:
        """The highest id + 1."""
        return max(self.tokenizer.get_vocab().values()) + 1

    @cached_property
    def document_start_ids(self) -> np.ndarray:
        """The ids that the tokenizer puts before a text."""
        ids = np.asarray(self.tokenizer("").input_ids, np.int64)
        return ids[ids != self.eos_id]

    def text_ids(self, text: str) -> np.ndarray:
        """Return the ids (int64) of a text."""
        return np.asarray(self.tokenizer(text, add_special_tokens=False).input_ids, np.int64)

    def segment_ids(self, segment: Segment) -> np.ndarray:
        """Return the ids (int64) of a text segment."""
        assert segment.type == "text", "this language model has no speech tokens"
        return self.text_ids(segment.text or "")

    def is_audio(self, ids: np.ndarray) -> np.ndarray:
        """Return a mask of speech tokens: none."""
        return np.zeros(np.shape(ids), bool)

    def is_control(self, ids: np.ndarray) -> np.ndarray:
        """Return a mask of the special ids."""
        return np.isin(ids, [*self.tokenizer.all_special_ids, self.eos_id])


Vocab = SpeechVocab | TextVocab


@dataclass(frozen=True)
class EvaluatedLm:
    """A causal language model in evaluation mode, and its ids."""

    model: PreTrainedModel
    vocab: Vocab


def load_vocab(folder: Path) -> Vocab:
    """Load the ids of the language model of a bundle, or of the one in a directory."""
    path = folder / "lm" if (folder / "lm").is_dir() else folder
    with loading(path, "a tokenizer"):
        tokenizer = load_pretrained(AutoTokenizer, path)
    return SpeechVocab.of(tokenizer) if (path / MANIFEST).is_file() else TextVocab(tokenizer)


def load_lm(folder: Path) -> EvaluatedLm:
    """Load the language model of a bundle, or the one in a directory. Raises UserError for another directory."""
    path = folder / "lm" if (folder / "lm").is_dir() else folder
    device = default_device()
    if (path / MANIFEST).is_file():
        read(path, KIND)
        lm = LanguageModel.from_pretrained(path, device=device)
        return EvaluatedLm(lm.model, lm.vocab)
    model, tokenizer = load_causal_lm(path, torch.float32)
    model.to(device)  # type: ignore[arg-type]
    return EvaluatedLm(model.eval(), TextVocab(tokenizer))
