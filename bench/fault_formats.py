"""Bad Parquet files, `datasets` folders, tar files, Lhotse manifests and Kaldi directories, for bench/faults.py."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fault_audio import encoded, noise
from fault_cases import Case
from fault_runs import Check, any_of, ends, makes, refused
from fault_world import World

_NUM = 4  # utterances of each corpus, of which some may be bad
_SOUNDS = [encoded(noise(1.0, i), "FLAC") for i in range(_NUM)]

Write = Callable[[Path], Any]
_Item = tuple[str, Write, Check]


def cases(world: World) -> Iterator[Case]:
    """Yield all cases with bad files of these formats, tokenized."""
    groups = {"Parquet": _parquet, "datasets": _arrow, "tar": _tar, "Lhotse": _lhotse, "Kaldi": _kaldi}
    for group, items in groups.items():
        for name, write, check in items():

            def arguments(folder: Path, write: Write = write) -> list[str | bytes]:
                (folder / "speech").mkdir()
                path = write(folder / "speech") or folder / "speech"
                tokenizer = ["--tokenizer", world["train-tokenizer"], "--max-bad-fraction", "0.8"]
                return ["tokenize", str(path), *tokenizer, "--out", "out"]

            yield Case(f"speech, {group}", name, arguments, check)


_ALL, _THREE = makes(utterances=_NUM, skipped=0), makes(utterances=_NUM - 1, skipped=1)
_SOME = any_of(_ALL, makes(utterances=1), makes(utterances=2), makes(utterances=3), refused("speech"))


def _table(**changed: Any) -> pa.Table:
    """Return a table as `datasets` writes it, with other columns; None removes one."""
    columns = {
        "id": [f"u{i}" for i in range(_NUM)],
        "audio": [{"bytes": sound, "path": f"{i}.flac"} for i, sound in enumerate(_SOUNDS)],
        "text": ["a b"] * _NUM,
    }
    return pa.table({name: column for name, column in {**columns, **changed}.items() if column is not None})


def _written(table: pa.Table, **how: Any) -> Write:
    return lambda folder: pq.write_table(table, folder / "train.parquet", **how)


def _content(name: str, content: bytes) -> Write:
    def write(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return write


def _cut(write: Write, name: str, fraction: float) -> Write:
    def cut(folder: Path) -> Any:
        found = write(folder)
        os.truncate(folder / name, int((folder / name).stat().st_size * fraction))
        return found

    return cut


def _patched(write: Write, name: str, fraction: float) -> Write:
    """Return a writer of a file with 64 bytes of it changed."""

    def patch(folder: Path) -> Any:
        found, content = write(folder), bytearray((folder / name).read_bytes())
        at = int(len(content) * fraction)
        content[at : at + 64] = bytes(255 - byte for byte in content[at : at + 64])
        (folder / name).write_bytes(content)
        return found

    return patch


def _parquet() -> Iterator[_Item]:
    good = _written(_table())
    sounds = _table().column("audio").to_pylist()
    yield "intact", good, _ALL
    yield "no audio column", _written(_table(audio=None, length=[1] * _NUM)), refused("id (string)", "length (int64)")
    yield "no columns", _written(pa.table({})), refused("speech")
    yield "audio numbers", _written(_table(audio=[1] * _NUM)), refused("audio (int64)")
    yield "two audio columns", _written(_table(audio=None, left=sounds, right=sounds)), refused("left, right")
    yield "no rows", _written(_table().slice(0, 0)), refused("speech")
    yield "a null sound", _written(_table(audio=[*sounds[:3], None])), _THREE
    yield "a sound of text", _written(_table(audio=[*sounds[:3], {"bytes": b"text", "path": "x"}])), _THREE
    yield "a sound cut", _written(_table(audio=[*sounds[:3], {"bytes": _SOUNDS[3][:900], "path": "x"}])), _THREE
    yield "paths of missing files", _written(_table(audio=["a.wav", "b.wav"] * 2)), refused("4 of 4")
    yield "path of a device", _written(_table(audio=[{"bytes": None, "path": "/dev/zero"}, *sounds[:3]])), _THREE
    yield "repeated ids", _written(_table(id=["a", "b", "a", "c"])), _THREE
    yield "ids of null", _written(_table(id=[None] * _NUM)), any_of(_ALL, refused("speech"))
    yield "text of numbers", _written(_table(text=[1, 2, 3, 4])), any_of(_ALL, refused("text"))
    yield "truncated", _cut(good, "train.parquet", 0.6), refused("train.parquet")
    yield "empty", _cut(good, "train.parquet", 0), refused("train.parquet")
    yield "text", _content("train.parquet", b"a,b\n"), refused("train.parquet")
    yield "data changed", _patched(good, "train.parquet", 0.4), _SOME
    yield "footer changed", _patched(good, "train.parquet", 0.97), any_of(_SOME, refused("train.parquet"))
    yield "1 GB of one text", _written(_table(text=[" " * (1 << 28)] * _NUM), compression="zstd"), _SOME
    yield "a directory named x.parquet", lambda f: (f / "x.parquet").mkdir(), refused("speech")


def _arrow() -> Iterator[_Item]:
    def write(folder: Path, table: pa.Table | None = None) -> None:
        table = _table() if table is None else table
        with pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as f, pa.ipc.new_stream(f, table.schema) as s:
            s.write_table(table)
        (folder / "dataset_info.json").write_text("{}")
        (folder / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')

    def without_table(folder: Path) -> None:
        write(folder)
        (folder / name).unlink()

    name = "data-00000-of-00001.arrow"
    yield "intact", write, _ALL
    yield "no audio column", lambda f: write(f, _table(audio=None)), refused("id (string)", "text (string)")
    yield "truncated", _cut(write, name, 0.6), _SOME
    yield "empty", _cut(write, name, 0), refused(name)
    yield "changed", _patched(write, name, 0.5), _SOME
    yield "schema changed", _patched(write, name, 0.001), any_of(_SOME, refused(name))
    yield "no table", without_table, refused("speech")


def _tar() -> Iterator[_Item]:
    def write(folder: Path, changes: dict[str, bytes | None] | None = None) -> None:
        files: dict[str, bytes | None] = {}
        for i, sound in enumerate(_SOUNDS):
            files |= {f"u{i}.flac": sound, f"u{i}.txt": b"a b"}
        with tarfile.open(folder / "0.tar", "w") as tar:
            for name, content in (files | (changes or {})).items():
                if content is not None:
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))

    def linked(folder: Path) -> None:
        write(folder)
        with tarfile.open(folder / "0.tar", "a") as tar:
            member = tarfile.TarInfo("u9.flac")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member)

    def compressed(folder: Path) -> Path:
        write(folder)
        (folder / "0.tar.gz").write_bytes(gzip.compress((folder / "0.tar").read_bytes()))
        (folder / "0.tar").unlink()
        return folder / "0.tar.gz"

    yield "intact", write, _ALL
    for fraction in (0.3, 0.6, 0.9):
        yield f"truncated at {fraction:.0%}", _cut(write, "0.tar", fraction), _SOME
    yield "empty", _cut(write, "0.tar", 0), refused("0.tar")
    yield "changed", _patched(write, "0.tar", 0.0), refused("0.tar")
    yield "text", _content("0.tar", b"not a tar file\n" * 99), refused("0.tar")
    yield "zeros", _content("0.tar", bytes(10240)), refused("speech")
    yield "compressed", compressed, refused("decompress")
    yield "a sample without sound", lambda f: write(f, {"u1.flac": None}), _THREE
    yield "a sample with two sounds", lambda f: write(f, {"u3.wav": b"x"}), any_of(_THREE, _SOME)
    yield "text that is not UTF-8", lambda f: write(f, {"u1.txt": b"\xff\xfe\xff"}), _THREE
    yield "invalid JSON", lambda f: write(f, {"u3.json": b"{"}), any_of(_THREE, _SOME)
    yield "no sounds", lambda f: write(f, {f"u{i}.flac": None for i in range(_NUM)}), refused("0.tar")
    yield "names that leave the directory", lambda f: write(f, {"../../u9.flac": _SOUNDS[0]}), ends
    yield "a link", linked, _ALL


def _sounds(folder: Path) -> None:
    for i, sound in enumerate(_SOUNDS):
        (folder / f"{i}.flac").write_bytes(sound)


def _lhotse() -> Iterator[_Item]:
    def recording(i: int, **changed: Any) -> dict[str, Any]:
        source = {"type": "file", "channels": [0], "source": f"{i}.flac"}
        row = {"id": f"r{i}", "sources": [source], "sampling_rate": 16_000, "num_samples": 16_000, "duration": 1.0}
        return {**row, **changed}

    def cut(i: int, **changed: Any) -> dict[str, Any]:
        row = {"id": f"c{i}", "type": "MonoCut", "start": 0, "duration": 1.0, "channel": 0, "recording": recording(i)}
        return {**row, "supervisions": [{"id": f"s{i}", "start": 0, "duration": 1.0, "text": "a b"}], **changed}

    def write(last: Any, suffix: str = ".jsonl.gz") -> Write:
        def written(folder: Path) -> Path:
            _sounds(folder)
            rows = [*map(cut, range(_NUM - 1)), last]
            content = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows).encode()
            path = folder / f"cuts{suffix}"
            path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
            return path

        return written

    def supervisions(folder: Path) -> Path:
        (folder / "supervisions.jsonl").write_text('{"id": "s", "recording_id": "r", "start": 0, "duration": 1}')
        return folder / "supervisions.jsonl"

    good = write(cut(3))
    yield "intact", good, _ALL
    yield "not compressed", write(cut(3), ".jsonl"), _ALL
    yield "truncated", _cut(good, "cuts.jsonl.gz", 0.7), _SOME
    yield "changed", _patched(good, "cuts.jsonl.gz", 0.6), _SOME
    yield "not gzip", _content("cuts.jsonl.gz", b"text"), refused("cuts.jsonl.gz")
    yield "source a command", write(cut(3, recording=_with_source(recording(3), "command", "touch canary"))), _THREE
    yield "source a URL", write(cut(3, recording=_with_source(recording(3), "url", "http://localhost:9/a"))), _THREE
    yield "source in memory", write(cut(3, recording=_with_source(recording(3), "memory", "AAAA"))), _THREE
    yield "missing file", write(cut(3, recording=recording(9))), _THREE
    yield "padded cut", write({"type": "PaddingCut", "id": "p", "duration": 1.0}), _THREE
    yield "mixed cut", write({"type": "MixedCut", "id": "m", "tracks": []}), _THREE
    yield "after the end", write(cut(3, start=5.0)), _THREE
    yield "start NaN", write(cut(3, start=float("nan"))), _THREE
    yield "duration a string", write(cut(3, duration="1")), _THREE
    yield "invalid JSON", write("{"), _THREE
    yield "supervisions without recordings", supervisions, refused("recordings")


def _with_source(recording: dict[str, Any], kind: str, source: str) -> dict[str, Any]:
    return {**recording, "sources": [{"type": kind, "channels": [0], "source": source}]}


def _kaldi() -> Iterator[_Item]:
    scp = [f"u{i} {i}.flac" for i in range(_NUM)]

    def write(**files: str | bytes) -> Write:
        def written(folder: Path) -> None:
            _sounds(folder)
            for name, content in ({"wav.scp": "\n".join(scp), "text": "u0 a b\n"} | files).items():
                path = folder / name.replace("_scp", ".scp")
                path.write_bytes(content if isinstance(content, bytes) else content.encode())

        return written

    def with_last(line: str) -> Write:
        return write(wav_scp="\n".join([*scp[:-1], line]))

    yield "intact", write(), _ALL
    yield "a command", with_last("u3 touch canary |"), _THREE
    yield "an archive", with_last("u3 wav.ark:123"), _THREE
    yield "a line without path", with_last("u3"), _THREE
    yield "a missing file", with_last("u3 9.flac"), _THREE
    yield "a device", with_last("u3 /dev/zero"), _THREE
    yield "repeated id", with_last("u0 3.flac"), _THREE
    yield "empty wav.scp", write(wav_scp=""), refused("wav.scp")
    yield "binary wav.scp", write(wav_scp=bytes(range(256))), refused("wav.scp")
    yield "text in UTF-16", write(text="u0 a b\n".encode("utf-16")), makes(utterances=_NUM)
    yield "segments of unknown recordings", write(segments="a x 0 1\nb y 0 1\n"), refused("wav.scp")
    yield "segments of words", write(segments="a u0 start end\nb u1 0 1\n"), makes(utterances=1, skipped=1)
    yield "segments after the end", write(segments="a u0 5 6\nb u1 0 1\n"), makes(utterances=1, skipped=1)
