"""Safetensors files with the parts of tensors that one process holds, and their checksums.

    digest = write_parts(folder / "rank-00000.safetensors", {"weight": Part.of(parameter)})
    files = read_headers(folder, names)                     # {"weight": Stored(dtype, shape, rows by file)}
    with PartReader(folder) as reader: reader.read_into(files["weight"], "weight", parameter)

A sharded tensor is split by rows, one range per process. A file is a plain safetensors file whose metadata contains the
first row and the shape of the whole tensor, so that any other split can be read from the files of all processes.
Tensors are copied from the device, hashed and written one by one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor

_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_PARTS = "parts"  # key of the metadata


@dataclass(frozen=True)
class Part:
    """The rows of a tensor that this process holds, as a view: all of them unless the tensor is sharded."""

    rows: Tensor
    first_row: int
    shape: torch.Size
    """Shape of the whole tensor."""

    @classmethod
    def of(cls, tensor: Tensor) -> Part:
        """Return this process's part of a tensor that is whole or, as FSDP2 does, split into equal ranges of rows."""
        if not isinstance(tensor, DTensor):
            return cls(tensor.detach(), 0, tensor.shape)
        rows: Tensor = tensor.to_local().detach()
        mesh = tensor.device_mesh
        assert mesh.ndim == 1
        assert all(placement.is_shard(0) for placement in tensor.placements)
        size = -(-len(tensor) // mesh.size())  # the last ranges may be shorter or empty
        first_row = min(mesh.get_local_rank() * size, len(tensor))
        assert len(rows) == min(size, len(tensor) - first_row)
        return cls(rows, first_row, tensor.shape)


@dataclass(frozen=True)
class Stored:
    """A tensor in files: its type, its shape, and (file, first row, number of rows) of its parts."""

    dtype: torch.dtype
    shape: torch.Size
    parts: tuple[tuple[str, int, int], ...]


def write_parts(path: Path, parts: Mapping[str, Part]) -> str:
    """Write a file, synced to disk; return its SHA-256."""
    ordered = sorted(parts.items(), key=lambda item: (-item[1].rows.dtype.itemsize, item[0]))  # for their alignment
    places = {name: [part.first_row, list(part.shape)] for name, part in ordered}
    header: dict[str, Any] = {"__metadata__": {_PARTS: json.dumps(places)}}
    end = 0
    for name, part in ordered:
        begin, end = end, end + part.rows.nbytes
        dtype, shape = _NAMES[part.rows.dtype], list(part.rows.shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as f, ThreadPoolExecutor(1) as thread:

        def write(content: Any) -> None:
            hashed = thread.submit(digest.update, content)
            f.write(content)
            hashed.result()

        write(len(encoded).to_bytes(8, "little") + encoded)
        for _, part in ordered:
            write(part.rows.cpu().contiguous().flatten().view(torch.uint8).numpy())
        f.flush()
        os.fsync(f.fileno())
    return digest.hexdigest()


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def read_headers(folder: Path, names: Sequence[str]) -> dict[str, Stored]:
    """Return the tensors in files, of which only the headers are read. Raises SafetensorError or ValueError."""
    found: dict[str, Stored] = {}
    for name in names:
        with safe_open(folder / name, "pt") as f:
            places = json.loads((f.metadata() or {})[_PARTS])
            for tensor, (first_row, shape) in places.items():
                part = f.get_slice(tensor)
                own = part.get_shape()
                parts = found[tensor].parts if tensor in found else ()
                here = (name, first_row, own[0] if own else 1)
                found[tensor] = Stored(_DTYPES[part.get_dtype()], torch.Size(shape), (*parts, here))
    for tensor, stored in found.items():
        if sum(num_rows for *_, num_rows in stored.parts) != (stored.shape[0] if stored.shape else 1):
            raise ValueError(f"{tensor} is incomplete")
    return found


class PartReader(ExitStack):
    """Reads tensors from the files of a directory, which are opened when they are needed."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder, self._files = folder, dict[str, Any]()

    def read_into(self, stored: Stored, name: str, target: Tensor) -> None:
        """Overwrite `target`, which may be sharded, with the tensor of this name and shape."""
        part = Part.of(target)
        if not stored.shape:
            part.rows.copy_(self._file(stored.parts[0][0]).get_tensor(name))
            return
        begin, end = part.first_row, part.first_row + len(part.rows)
        for file, first_row, num_rows in stored.parts:
            first, last = max(begin, first_row), min(end, first_row + num_rows)
            if first < last:
                rows = self._file(file).get_slice(name)[first - first_row : last - first_row]
                part.rows[first - begin : last - begin].copy_(rows)

    def _file(self, name: str) -> Any:
        if name not in self._files:
            self._files[name] = self.enter_context(safe_open(self._folder / name, "pt"))
        return self._files[name]
