"""A bundle: the parts that make a model talk, in one folder, checked to belong together.

bundle = Bundle.load("runs/demo")               # tokenizer/, decoder/, lm/, and perhaps text_to_token/
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from weft.artifacts import read_bundle
from weft.decoder.decoder import SpeechDecoder
from weft.engine.generate import Engine
from weft.lm.model import LanguageModel
from weft.rhythm import Part, Rhythm
from weft.tokenizer.tokenizer import SpeechTokenizer
from weft.vocab import SpeechVocab


@dataclass(frozen=True, eq=False)
class Bundle:
    """What a conversation needs, loaded once and shared by all conversations; nothing in it changes."""

    tokenizer: SpeechTokenizer
    decoder: SpeechDecoder
    engine: Engine
    vocab: SpeechVocab

    @classmethod
    def load(cls, folder: str | Path) -> Bundle:
        """Load a bundle, the language model onto a GPU where there is one.

        Raises UserError, before anything is loaded, for a part that is missing or made with another tokenizer.
        """
        folder = Path(folder)
        read_bundle(folder, needed=("tokenizer", "decoder", "lm"))
        lm = LanguageModel.load(folder / "lm")
        lm.model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
        parts = SpeechTokenizer.load(folder / "tokenizer"), SpeechDecoder.load(folder / "decoder")
        return cls(*parts, Engine(lm.model), lm.vocab)

    def ends(self, rhythm: Rhythm) -> frozenset[int]:
        """The ids that say, at this place of an answer, that there is no more of the part's modality."""
        if rhythm.part == "audio":
            return frozenset({self.vocab.end_of_audio_id})
        if not rhythm.alone:
            return frozenset({self.vocab.begin_of_audio_id})
        return frozenset({self.vocab.eos_id, self.vocab.role_start_ids["user"]})

    def allowed(self, rhythm: Rhythm) -> Tensor:
        """Which ids (V,) may stand at this place of an answer: the part's own, and those that end it, save that audio
        cannot end before it has begun."""
        if rhythm.part == "audio" and rhythm.silent:
            return self._audio_mask
        return self._allowed[rhythm.part, rhythm.alone]

    @cached_property
    def _allowed(self) -> dict[tuple[Part, bool], Tensor]:
        own: dict[Part, Tensor] = {"text": self._text_mask, "audio": self._audio_mask}
        masks = {}
        for part, mask in own.items():
            for alone in (False, True):
                masks[part, alone] = mask.clone()
                masks[part, alone][list(self.ends(Rhythm(part, alone)))] = True
        return masks

    @cached_property
    def _audio_mask(self) -> Tensor:
        return self.vocab.is_audio(torch.arange(self._num_rows))

    @cached_property
    def _text_mask(self) -> Tensor:
        """Every id that has a token which is neither audio nor special: embeddings often have spare rows."""
        mask = torch.zeros(self._num_rows, dtype=torch.bool)
        mask[list(self.vocab.tokenizer.get_vocab().values())] = True
        special = [i for i, token in self.vocab.tokenizer.added_tokens_decoder.items() if token.special]
        mask[special] = False
        return mask & ~self._audio_mask

    @property
    def _num_rows(self) -> int:
        return self.engine.model.get_output_embeddings().weight.shape[0]
