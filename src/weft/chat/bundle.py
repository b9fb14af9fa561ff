"""A bundle: the models of a spoken chatbot in one directory, with tokenizer/, decoder/ and lm/.

bundle = Bundle.from_pretrained("runs/demo")
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from weft import plan
from weft.alternation import ChunkSchedule, Modality
from weft.artifacts import read_bundle, require_parent
from weft.decoder.decoder import SpeechDecoder
from weft.device import default_device
from weft.engine.generate import Engine
from weft.lm.model import LanguageModel, save
from weft.tokenizer.tokenizer import SpeechTokenizer
from weft.vocab import SpeechVocab


@dataclass(frozen=True, eq=False)
class Bundle:
    """The models of a chatbot, loaded once and shared by all conversations. A bundle does not change."""

    tokenizer: SpeechTokenizer
    decoder: SpeechDecoder
    lm: LanguageModel

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Bundle:
        """Load a bundle, onto a GPU if there is one.

        Raises UserError, before anything is loaded, for a model that is missing or was made with another tokenizer.

        Example:
            >>> import weft
            >>> bundle = weft.Bundle.from_pretrained("runs/demo")
            >>> bundle.tokenizer.frame_rate_hz
            12.5
            >>> bundle.save_pretrained("runs/copy")
        """
        folder = Path(folder)
        read_bundle(folder, needed=("tokenizer", "decoder", "lm"))
        lm = LanguageModel.from_pretrained(folder / "lm", device=default_device())
        tokenizer = SpeechTokenizer.from_pretrained(folder / "tokenizer")
        return cls(tokenizer, SpeechDecoder.from_pretrained(folder / "decoder"), lm)

    def save_pretrained(self, folder: str | Path) -> None:
        """Save the models, which were loaded from artifacts, as new artifacts in `folder`.

        Raises UserError if one of them exists there, and for a model that was made with another tokenizer.
        """
        folder, lm = Path(folder), self.lm
        parts = {
            "decoder": (self.decoder.manifest, self.decoder.write_files),
            "lm": (lm.manifest, lambda draft: save(lm.model, lm.tokenizer, draft)),
        }
        for manifest, _ in parts.values():
            require_parent(manifest, "tokenizer", self.tokenizer.manifest)
        # transformers may add settings to the files of a loaded tokenizer, which changes its fingerprint.
        tokenizer = self.tokenizer.save_pretrained(folder / "tokenizer")
        for name, (manifest, write_files) in parts.items():
            parents = {**manifest.parents, "tokenizer": tokenizer.fingerprint}
            plan.save(folder / name, manifest.kind, write_files, replace(manifest, parents=parents))

    @cached_property
    def engine(self) -> Engine:
        """Generation with the language model."""
        return Engine(self.lm.model)

    @property
    def vocab(self) -> SpeechVocab:
        """The vocabulary of the language model."""
        return self.lm.vocab

    def ends(self, schedule: ChunkSchedule) -> frozenset[int]:
        """Return the ids that end the modality of the next id of an answer."""
        if schedule.modality == "audio":
            return frozenset({self.vocab.end_of_audio_id})
        if not schedule.alone:
            return frozenset({self.vocab.begin_of_audio_id})
        return frozenset({self.vocab.eos_id, self.vocab.role_start_ids["user"]})

    def allowed(self, schedule: ChunkSchedule) -> Tensor:
        """Return a mask (V,) of the ids that may come next in an answer: ids of the modality, and those that end it.

        Audio cannot end before it has begun.
        """
        if schedule.modality == "audio" and schedule.silent:
            return self._audio_mask
        return self._allowed[schedule.modality, schedule.alone]

    @cached_property
    def _allowed(self) -> dict[tuple[Modality, bool], Tensor]:
        own: dict[Modality, Tensor] = {"text": self._text_mask, "audio": self._audio_mask}
        masks = {}
        for part, mask in own.items():
            for alone in (False, True):
                masks[part, alone] = mask.clone()
                masks[part, alone][list(self.ends(ChunkSchedule(part, alone)))] = True
        return masks

    @cached_property
    def _audio_mask(self) -> Tensor:
        return self.vocab.is_audio(torch.arange(self._num_rows))

    @cached_property
    def _text_mask(self) -> Tensor:
        """A mask of the ids whose token is neither audio nor special. Embeddings often have unused rows."""
        mask = torch.zeros(self._num_rows, dtype=torch.bool)
        mask[list(self.vocab.tokenizer.get_vocab().values())] = True
        special = [i for i, token in self.vocab.tokenizer.added_tokens_decoder.items() if token.special]
        mask[special] = False
        return mask & ~self._audio_mask

    @property
    def _num_rows(self) -> int:
        return self.lm.model.get_output_embeddings().weight.shape[0]  # type: ignore[union-attr,return-value]
