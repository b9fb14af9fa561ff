"""Loading of a vocoder of any kind.

vocoder = load_vocoder("runs/mini/vocoder")
samples = vocoder(vocoder.spectrogram(samples))        # (B, S) -> (B, T, M) -> (B, S)
"""

from __future__ import annotations

from pathlib import Path

from weft.artifacts import loading, read
from weft.decoder.published.hift import HiFT
from weft.decoder.vocoder import CONFIG, KIND, Vocoder
from weft.files import read_json_object


def load_vocoder(folder: str | Path) -> Vocoder | HiFT:
    """Load a vocoder artifact. Raises UserError if it is not complete."""
    folder = Path(folder)
    read(folder, KIND)
    with loading(folder, "a vocoder"):
        is_hift = "hift" in read_json_object(folder / CONFIG)
    return HiFT.from_files(folder) if is_hift else Vocoder.from_files(folder)
