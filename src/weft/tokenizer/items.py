"""The utterances of a source to train on, and their batches, for many millions of utterances.

items = Items(utterances)
items.add(row, item)
batches = Batches(items.num_frames, max_total)
[items[i] for i in batches[0].tolist()]
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from weft.data.batching import ends_of_batches
from weft.records import Utterance

_SIZES = ("number", "num_samples", "num_frames", "num_text_ids", "num_chars", "num_outputs")


@dataclass(frozen=True, eq=False, slots=True)
class Item:
    """An utterance to train on. `num_outputs` are the CTC outputs that its characters need at least."""

    number: int
    utterance: Utterance
    num_samples: int
    num_frames: int
    num_text_ids: int
    num_chars: int
    num_outputs: int


class Items(Sequence[Item]):
    """The utterances of a source that can be trained on, with 32 bytes of memory for each.

    Text ids and characters are computed when a batch needs them.
    """

    def __init__(self, utterances: Sequence[Utterance]) -> None:
        self._utterances, self._rows, self._sizes = utterances, array("q"), array("i")

    def add(self, row: int, item: Item) -> None:
        """Add the utterance in a row."""
        self._rows.append(row)
        self._sizes.extend(getattr(item, name) for name in _SIZES)

    def kept(self, is_kept: Callable[[Item], bool]) -> Items:
        """Return the items that are kept."""
        items = Items(self._utterances)
        for row, item in zip(self._rows, self, strict=True):
            if is_kept(item):
                items.add(row, item)
        return items

    @property
    def num_frames(self) -> np.ndarray:
        """The feature frames of each item."""
        sizes = np.frombuffer(self._sizes, np.int32) if self._sizes else np.zeros(0, np.int32)
        return sizes.reshape(-1, len(_SIZES))[:, _SIZES.index("num_frames")]

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        index = range(len(self))[index]
        number, *sizes = self._sizes[index * len(_SIZES) : (index + 1) * len(_SIZES)]
        return Item(number, self._utterances[self._rows[index]], *sizes)


class Batches(Sequence[np.ndarray]):
    """Rows of items of similar length, in groups of up to `max_total` frames with padding."""

    def __init__(self, num_frames: np.ndarray, max_total: int) -> None:
        order = np.argsort(num_frames, kind="stable")
        self._order, self._ends = order.astype(np.int32), ends_of_batches(num_frames[order], max_total)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        return self._order[self._ends[index - 1] if index else 0 : self._ends[index]]
