"""The same speech in every format."""

import gzip
import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.data.corpora import jsonl
from weft.audio import save

NAMES = ("u0", "u1", "u2", "u3", "u4")
AUDIO = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def write_sounds(folder):
    """Write WAV files and return rows with `id`, `audio`, `text`, `speaker` and `language`."""
    rng = np.random.default_rng(0)
    for i, name in enumerate(NAMES):
        save(folder / f"{name}.wav", rng.normal(0, 0.1, 1600 + 160 * i).astype(np.float32), 16_000)
    return [
        {"id": n, "audio": str(folder / f"{n}.wav"), "text": f"text {n} é", "speaker": f"s{n}", "language": "en"}
        for n in NAMES
    ]


def content_of(row):
    """Return the bytes of a row's audio."""
    with open(row["audio"], "rb") as f:
        return f.read()


def write_manifest(folder, rows):
    (folder / "manifest.jsonl").write_bytes(jsonl(rows))


def write_compressed_manifest(folder, rows):
    (folder / "manifest.jsonl.gz").write_bytes(gzip.compress(jsonl(rows)))
    return folder / "manifest.jsonl.gz"


def table(rows, **columns):
    """Return a table with a column of each field, and a struct with the bytes of the sounds as `audio`."""
    sounds = [{"bytes": content_of(row), "path": f"{row['id']}.wav"} for row in rows]
    fields = {name: [row[name] for row in rows] for name in rows[0] if name != "audio"}
    return pa.table({"audio": pa.array(sounds, AUDIO), **fields, **columns})


def write_parquet(folder, rows):
    pq.write_table(table(rows), folder / "train.parquet", row_group_size=2)


def write_parquet_of_bytes(folder, rows):
    sounds = pa.array([content_of(row) for row in rows], pa.large_binary())
    pq.write_table(table(rows, audio=sounds), folder / "train.parquet")


def write_parquet_of_paths(folder, rows):
    pq.write_table(table(rows, audio=pa.array([row["audio"] for row in rows])), folder / "train.parquet")


def write_parquet_of_mixed(folder, rows):
    """Write bytes of some sounds and paths of the others, in structs."""
    sounds = [{"bytes": content_of(row) if i % 2 else None, "path": row["audio"]} for i, row in enumerate(rows)]
    pq.write_table(table(rows, audio=pa.array(sounds, AUDIO)), folder / "train.parquet", row_group_size=3)


def write_arrow_stream(path, content, max_rows=2):
    with pa.OSFile(str(path), "wb") as f, pa.ipc.new_stream(f, content.schema) as stream:
        stream.write_table(content, max_rows)


def write_arrow(folder, rows):
    """Write what `save_to_disk` of the `datasets` library writes."""
    write_arrow_stream(folder / "data-00000-of-00002.arrow", table(rows[:3]))
    write_arrow_stream(folder / "data-00001-of-00002.arrow", table(rows[3:]))
    write_arrow_stream(folder / "cache-1234.arrow", pa.table({"indices": [1, 2]}))
    (folder / "state.json").write_text("{}")


def write_arrow_of_paths(folder, rows):
    write_arrow_stream(folder / "a.arrow", table(rows, audio=pa.array([row["audio"] for row in rows])))


def write_arrow_file(folder, rows):
    content = table(rows)
    with pa.OSFile(str(folder / "a.arrow"), "wb") as f, pa.ipc.new_file(f, content.schema) as file:
        file.write_table(content)


def add(tar, name, content):
    """Add a file to a tar file."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def write_tar(path, rows, kind=tarfile.GNU_FORMAT, prefix=""):
    with tarfile.open(path, "w", format=kind) as tar:
        for row in rows:
            fields = {name: row[name] for name in ("id", "speaker", "language")}
            add(tar, f"{prefix}{row['id']}.wav", content_of(row))
            add(tar, f"{prefix}{row['id']}.txt", row["text"].encode())
            add(tar, f"{prefix}{row['id']}.json", json.dumps(fields).encode())


def write_tars(folder, rows):
    write_tar(folder / "0.tar", rows[:2])
    write_tar(folder / "1.tar", rows[2:], tarfile.PAX_FORMAT, prefix="a folder with a long name é/" * 5)


def recording(row, seconds=0.1, **changes):
    """Return a recording of Lhotse."""
    sources = [{"type": "file", "channels": [0], "source": row["audio"]}]
    seconds = (1600 + 160 * int(row["id"][1:])) / 16_000
    return {"id": row["id"], "sources": sources, "sampling_rate": 16_000, "duration": seconds, **changes}


def supervision(row, **changes):
    """Return a supervision of Lhotse that is a whole recording."""
    fields = {name: row[name] for name in ("id", "text", "speaker", "language")}
    length = {"start": 0.0, "duration": recording(row)["duration"]}
    return {**fields, "recording_id": row["id"], **length, "channel": 0, **changes}


def cut(row, **changes):
    """Return a cut of Lhotse that is a whole recording."""
    whole = recording(row)
    length = {"start": 0.0, "duration": whole["duration"], "channel": 0}
    parts = {"supervisions": [supervision(row)], "recording": whole, "type": "MonoCut"}
    return {"id": row["id"], **length, **parts, **changes}


def write_supervisions(folder, rows):
    (folder / "x_recordings_y.jsonl.gz").write_bytes(gzip.compress(jsonl([recording(row) for row in rows[::-1]])))
    (folder / "x_supervisions_y.jsonl.gz").write_bytes(gzip.compress(jsonl([supervision(row) for row in rows])))


def write_cuts(folder, rows):
    (folder / "cuts.jsonl").write_bytes(jsonl([cut(row) for row in rows]))


def write_kaldi(folder, rows):
    for name, field in {"wav.scp": "audio", "text": "text", "utt2spk": "speaker", "utt2lang": "language"}.items():
        (folder / name).write_text("".join(f"{row['id']} {row[field]}\n" for row in rows), "utf-8")


def write_kaldi_segments(folder, rows):
    write_kaldi(folder, rows)
    (folder / "wav.scp").write_text("".join(f"r{row['id']}\t{row['audio']}\n" for row in rows))
    (folder / "segments").write_text("".join(f"{row['id']} r{row['id']} 0.00 -1\n" for row in rows))


WRITERS = (
    write_manifest,
    write_compressed_manifest,
    write_parquet,
    write_parquet_of_bytes,
    write_parquet_of_paths,
    write_parquet_of_mixed,
    write_arrow,
    write_arrow_of_paths,
    write_arrow_file,
    write_tars,
    write_supervisions,
    write_cuts,
    write_kaldi,
    write_kaldi_segments,
)
