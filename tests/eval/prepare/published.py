"""Tiny evaluation sets in every published layout. Each builder returns what is given as --from."""

import csv
import gzip
import io
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from weft.audio import save

LENGTH, RATE_HZ = 400, 16_000


def samples(number: int) -> np.ndarray:
    """Sounds that differ by their number, which `number_of` returns."""
    return np.full(LENGTH, (number + 1) / 1000, np.float32)


def number_of(path: Path) -> int:
    sound, rate_hz = soundfile.read(path)
    assert (rate_hz, soundfile.info(path).format, soundfile.info(path).channels) == (RATE_HZ, "FLAC", 1)
    return round(float(np.median(sound)) * 1000) - 1


def wav(path: Path, number: int) -> Path:
    save(path, samples(number), RATE_HZ)
    return path


def wav_bytes(number: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples(number), RATE_HZ, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def zipped(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, f"top/{file.relative_to(folder)}")
        archive.writestr("__MACOSX/top/._0_a.wav", b"no audio")
    return path


def json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(columns)
        writer.writerows(rows)
    return path


def parquet(path: Path, **columns: Sequence[Any]) -> Path:
    """Write columns; numbers in columns of audio become structs of bytes and path, as `datasets` writes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    audio = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    arrays = {
        name: pa.array([{"bytes": wav_bytes(n), "path": f"{n}.wav"} for n in values], audio)
        if name in ("audio", "positive", "negative")
        else pa.array(values)
        for name, values in columns.items()
    }
    pq.write_table(pa.table(arrays), path, row_group_size=2)
    return path


def storycloze(folder: Path, numbers: Iterable[int] = range(24)) -> Path:
    """Numbered files, whose order by name (0, 1, 10, 11, ...) is another than that by number."""
    for n in numbers:
        wav(folder / f"{n}_{'abc'[n % 3]}.wav", n)
    return folder


def cross_modal(folder: Path) -> Path:
    for i, name in enumerate("ab"):
        for j, part in enumerate(("mutual", "correct", "incorrect")):
            wav(folder / f"{name}_{part}.wav", 3 * i + j)
            (folder / f"{name}_{part}.txt").write_text(f"{name} {part}.\n")
    return folder


def swuggy(folder: Path) -> Path:
    rows = []
    for i in range(4):
        wav(folder / f"lexical/dev/file{i}.wav", i)
        rows.append([i // 2 % 2, f"file{i}", "AB"[i // 2], 3, "cat" if i % 2 else "cet", "K AE T", 3, i % 2])
    header = ["id", "filename", "voice", "frequency", "word", "phones", "length_phone", "correct"]
    table(folder / "lexical/dev/gold.csv", header, rows)
    sblimp(folder)  # of the same challenge
    return folder


def sblimp(folder: Path) -> Path:
    rows = []
    for i in range(4):
        wav(folder / f"syntactic/dev/line{i}.wav", 10 + i)
        kind = ["agreement", "anaphor"][i // 2]
        rows.append([0, f"line{i}", "A", kind, "x", "They sing." if i % 2 == 0 else "They sings.", 1 - i % 2])
    header = ["id", "filename", "voice", "type", "subtype", "transcription", "correct"]
    table(folder / "syntactic/dev/gold.csv", header, rows)
    return folder


def salmon(folder: Path) -> Path:
    for i, part in enumerate(("rir_consistency", "speaker_consistency")):
        for sample in range(11):
            for k in (1, 0):
                wav(folder / f"{part}/sample_{sample}_{k}.wav", 100 * i + 2 * sample + k)
    return folder


def open_audio_bench(folder: Path, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    sounds = [[*row, f"{name}_{i}.wav"] for i, row in enumerate(rows)]
    table(folder / f"eval_datas/{name}/{name}.csv", [*columns, "audio_filename"], sounds)
    for i in range(len(rows)):
        wav(folder / f"eval_datas/{name}/audios/{name}_{i}.wav", i)
    return folder
