"""Bad audio files for bench/faults.py: one among three good ones, tokenized; a few also by the other commands."""

from __future__ import annotations

import io
import json
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import soundfile
from fault_cases import Case
from fault_runs import MAX_SEC, Check, Ended, any_of, ends, makes, refused, skipped_items
from fault_world import World, write_jsonl

RATE_HZ = 16_000
SEC = 2.0
_FORMATS = {
    ".wav": "WAV",
    ".flac": "FLAC",
    ".mp3": "MP3",
    ".ogg": "OGG",
    ".opus": "OGG",
    ".aif": "AIFF",
    ".aiff": "AIFF",
}
_FORMATS |= {".au": "AU", ".caf": "CAF", ".w64": "W64"}
_SELF_FRAMED = (".mp3",)  # a prefix of such a file is a shorter file
_CODECS = (
    "PCM_U8",
    "PCM_24",
    "PCM_32",
    "FLOAT",
    "DOUBLE",
    "ULAW",
    "ALAW",
    "IMA_ADPCM",
    "MS_ADPCM",
    "GSM610",
    "G721_32",
)


def noise(sec: float = SEC, seed: int = 0) -> np.ndarray:
    """Return noise at 16 kHz (S,)."""
    return np.random.default_rng(seed).uniform(-0.3, 0.3, round(sec * RATE_HZ)).astype(np.float32)


def encoded(
    samples: np.ndarray, container: str = "WAV", subtype: str | None = None, rate_hz: int = RATE_HZ, **how: Any
) -> bytes:
    """Return samples as the content of an audio file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, format=container, subtype=subtype, **how)
    return buffer.getvalue()


def wav(
    data: bytes, rate_hz: int = RATE_HZ, channels: int = 1, bits: int = 16, code: int = 1, data_bytes: int | None = None
) -> bytes:
    """Return a WAV file whose header may be wrong."""
    block = max(1, channels * bits // 8) & 0xFFFF
    form = struct.pack("<HHIIHH", code, channels & 0xFFFF, rate_hz, rate_hz * block & 0xFFFFFFFF, block, bits)
    size = len(data) if data_bytes is None else data_bytes
    body = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", size) + data
    return b"RIFF" + struct.pack("<I", min(36 + size, 0xFFFFFFFF)) + body


def flac_header(rate_hz: int, channels: int, num_frames: int) -> bytes:
    """Return a FLAC file of 132 bytes with a header and no valid frame."""
    fields = (rate_hz << 44) | (channels - 1 << 41) | (15 << 36) | num_frames
    info = struct.pack(">HH", 4096, 4096) + bytes(6) + fields.to_bytes(8, "big") + bytes(16)
    return (b"fLaC\x80\x00\x00\x22" + info).ljust(132, b"\xff")


# Expectations for the bad item, whose id is "bad"


def skips(ended: Ended, folder: Path) -> str | None:
    """Expect that the bad item is skipped and listed, and that the others are read."""
    if problem := makes(utterances=3, skipped=1)(ended, folder):
        return problem
    return None if skipped_items(folder)[0]["where"] == "bad" else f"skipped {skipped_items(folder)}"


def reads(sec: float = SEC, tolerance_sec: float = 0.15) -> Check:
    """Expect that all items are read, and the bad one to its end."""

    def check(ended: Ended, folder: Path) -> str | None:
        if problem := makes(utterances=4, skipped=0)(ended, folder):
            return problem
        rows = [row for part in (folder / "out").glob("*.parquet") for row in pq.read_table(part).to_pylist()]
        found = next(row["seconds"] for row in rows if row["id"] == "bad")
        return None if abs(found - sec) <= tolerance_sec else f"read {found:.2f} s, expected {sec:.2f} s"

    return check


def says_name(ended: Ended, folder: Path) -> str | None:
    """Expect that the item is read, and that the output names it."""
    return makes(utterances=4, says="bad")(ended, folder)


def reads_or_skips(sec: float = SEC, tolerance_sec: float = 0.15) -> Check:
    """Expect that the bad item is read to its end, or skipped and listed."""
    return any_of(reads(sec, tolerance_sec), skips)


def cases(world: World) -> Iterator[Case]:
    """Yield all cases with bad audio."""
    for name, content, check in (*_suffixes(), *_headers(), *_values(), *_codecs(), *_streams()):
        suffix = name.split(" ")[0] if name.startswith(".") else ".flac" if "FLAC" in name else ".wav"
        suffix = ".mp3" if "MP3" in name else ".opus" if "Ogg" in name else suffix
        yield _tokenized(world, name, _writer(content, suffix), check)
    for name, row, check in _rows():
        yield _tokenized(world, name, lambda folder, row=row: _good_file(folder, row), check)
    for name, make, check in _files():
        yield _tokenized(world, name, make, check)
    yield from _folders(world)
    yield from _other_commands(world)


def _tokenized(world: World, name: str, make: Callable[[Path], dict[str, Any]], check: Check) -> Case:
    """Return a case that tokenizes a manifest of three good items and the bad one."""

    def arguments(folder: Path) -> list[str | bytes]:
        good = [{"id": f"good-{i}", "audio": world[f"speak/audio/lines-{i}.flac"]} for i in (1, 2, 3)]
        write_jsonl(folder / "manifest.jsonl", [good[0], {"id": "bad", **make(folder)}, *good[1:]])
        tokenizer = ["--tokenizer", world["train-tokenizer"]]
        return ["tokenize", "manifest.jsonl", *tokenizer, "--out", "out", "--max-bad-fraction", "0.5"]

    return Case("audio", name, arguments, check, max_sec=300 if "hour" in name else MAX_SEC)


def _writer(content: bytes | Callable[[], bytes], suffix: str) -> Callable[[Path], dict[str, Any]]:
    def make(folder: Path) -> dict[str, Any]:
        (folder / f"bad{suffix}").write_bytes(content() if callable(content) else content)
        return {"audio": f"bad{suffix}"}

    return make


def _good_file(folder: Path, row: dict[str, Any]) -> dict[str, Any]:
    (folder / "bad.wav").write_bytes(encoded(noise()))
    return {"audio": "bad.wav", **row}


_Item = tuple[str, "bytes | Callable[[], bytes]", Check]


def _suffixes() -> Iterator[_Item]:
    """Yield simple damages of every format."""
    for suffix, container in _FORMATS.items():
        content = encoded(noise(), container, "OPUS" if suffix == ".opus" else None)
        yield f"{suffix} intact", content, reads()
        cut = reads_or_skips(0.6 * SEC, 0.3) if suffix in _SELF_FRAMED else skips
        yield f"{suffix} truncated", content[: len(content) * 6 // 10], cut
        yield f"{suffix} empty", b"", skips
        yield f"{suffix} of zeros", bytes(4096), skips
        magic = bytes(255 - b for b in content[:12]) + content[12:]
        yield f"{suffix} wrong magic", magic, reads_or_skips() if suffix in _SELF_FRAMED else skips
        yield f"{suffix} of text", b"not audio\n" * 300, skips


def _headers() -> Iterator[_Item]:
    """Yield headers that declare impossible or wrong values."""
    data = (noise() * 32767).astype("<i2").tobytes()
    yield "WAV at 1 Hz", wav(data, rate_hz=1), skips
    yield "WAV at 0 Hz", wav(data, rate_hz=0), skips
    yield "WAV at 4 GHz", wav(data, rate_hz=0xFFFFFFFF), skips
    yield "WAV at 2 GHz", wav(data, rate_hz=1 << 31), skips
    yield "WAV with 0 channels", wav(data, channels=0), skips
    yield "WAV with 1000 channels", encoded(np.repeat(noise(0.5)[:, None], 1000, 1)), reads_or_skips(0.5)
    yield "WAV with 65535 channels", wav(data, channels=65535), skips
    yield "WAV with 0 bits", wav(data, bits=0), skips
    yield "WAV with 7 bits", wav(data, bits=7), reads_or_skips(SEC, 9)
    yield "WAV with an unknown codec", wav(data, code=0x1234), skips
    yield "WAV longer than the file", wav(data, data_bytes=4 * len(data)), skips
    yield "WAV of unknown length", wav(data, data_bytes=0xFFFFFFFF), reads_or_skips()
    yield "WAV shorter than the file", wav(data, data_bytes=len(data) // 2), reads_or_skips(SEC / 2, SEC / 2 + 0.1)
    yield "WAV without samples", wav(b""), skips
    yield "WAV with a header only", wav(data)[:44], skips
    yield "WAV with half a header", wav(data)[:20], skips
    yield "WAV with an odd number of bytes", wav(data + b"\0"), reads_or_skips()
    yield "FLAC of 2^36 frames", flac_header(16_000, 1, (1 << 36) - 1), skips
    yield "FLAC of 2^36 frames at 655 kHz, 8 channels", flac_header(655_350, 8, (1 << 36) - 1), skips
    yield "FLAC at 1 Hz", flac_header(1, 1, 1 << 30), skips
    yield "FLAC with 0 Hz", flac_header(0, 1, 1 << 20), skips


def _values() -> Iterator[_Item]:
    """Yield samples that cannot be speech."""
    samples = noise()
    for name, value in {"NaN": np.nan, "infinite": np.inf, "1e30": 1e30}.items():
        changed = samples.copy()
        changed[777] = value
        yield f"one {name} sample", encoded(changed, subtype="FLOAT"), skips
    yield "floats as 16-bit integers", encoded(samples * 32768, subtype="FLOAT"), skips
    yield "silence", encoded(samples * 0), reads_or_skips()
    yield "one sample", encoded(samples[:1]), reads_or_skips(0.0)
    yield "two samples at 48 kHz", encoded(samples[:2], rate_hz=48_000), reads_or_skips(0.0)
    yield "antiphase stereo", encoded(np.stack([samples, -samples], 1)), any_of(skips, says_name)
    yield "192 kHz", encoded(samples, rate_hz=192_000), reads_or_skips(SEC / 12)
    yield "constant offset", encoded(samples * 0 + 0.9), reads_or_skips()
    yield "an hour at 192 kHz", lambda: wav(bytes(192_000 * 3600), 192_000, bits=8), reads_or_skips(3600.0)


def _codecs() -> Iterator[_Item]:
    for subtype in _CODECS:
        yield f".wav {subtype}", encoded(noise(), subtype=subtype), reads_or_skips()
    for container, subtype in {"AU": "G723_24", "CAF": "ALAC_16", "W64": "GSM610"}.items():
        yield f".{container.lower()} {subtype}", encoded(noise(), container, subtype), reads_or_skips()


def _streams() -> Iterator[_Item]:
    """Yield streams whose length is not in their header."""
    opus, flac = encoded(noise(), "OGG", "OPUS"), bytearray(encoded(noise(), "FLAC"))
    yield "chained Ogg Opus", opus + encoded(noise(seed=1), "OGG", "OPUS"), reads_or_skips(2 * SEC)
    yield "chained Ogg Vorbis", encoded(noise(), "OGG") + encoded(noise(seed=1), "OGG"), reads_or_skips(2 * SEC)
    yield "Ogg with junk between its pages", opus[:1500] + b"junk" * 9 + opus[1500:], reads_or_skips()
    yield "Ogg with a changed byte", opus[:2000] + bytes([opus[2000] ^ 4]) + opus[2001:], reads_or_skips()
    changed = bytes(flac[:9000]) + bytes([flac[9000] ^ 4]) + bytes(flac[9001:])
    yield "FLAC with a changed byte", changed, reads_or_skips()
    unknown = bytearray(flac)
    unknown[21] &= 0xF0
    unknown[22:26] = bytes(4)
    yield "FLAC of unknown length", bytes(unknown), reads_or_skips()
    yield "MP3 without Xing", _variable_mp3(), reads_or_skips(20.0, 0.3)
    yield "MP3 whose Xing declares half of the frames", _halved_mp3(), reads_or_skips(SEC, 0.15)
    yield "MP3 with junk before it", b"\0" * 5000 + encoded(noise(), "MP3"), reads_or_skips()
    yield (
        "MP3 after a large ID3 tag",
        b"ID3\x04\0\0\0\x01\0\0" + bytes(16384) + encoded(noise(), "MP3"),
        reads_or_skips(),
    )
    yield "two MP3 files in one", encoded(noise(), "MP3") + encoded(noise(seed=1), "MP3"), reads_or_skips(2 * SEC, 0.3)


def _variable_mp3() -> bytes:
    """Return 20 s of MP3 with a variable bit rate, loud at the start, without its first frame, which has the length."""
    loudness = np.where(np.arange(20 * RATE_HZ) < 4 * RATE_HZ, 1.0, 0.0).astype(np.float32)
    content = encoded(noise(20.0) * loudness, "MP3", bitrate_mode="VARIABLE")
    return content[content.index(b"\xff", 4 + max(content.find(b"Xing"), content.find(b"Info"))) :]


def _halved_mp3() -> bytes:
    content = bytearray(encoded(noise(), "MP3"))
    at = max(content.find(b"Xing"), content.find(b"Info")) + 8
    frames = int.from_bytes(content[at : at + 4], "big")
    content[at : at + 4] = (frames // 2).to_bytes(4, "big")
    return bytes(content)


def _rows() -> Iterator[tuple[str, dict[str, Any], Check]]:
    """Yield rows of a manifest that disagree with their file of 2 s."""
    yield "range after the end", {"audio": "bad.wav#t=5,6"}, skips
    yield "range that ends 8 s after the end", {"audio": "bad.wav#t=0.5,10"}, any_of(skips, says_name)
    yield "empty range", {"audio": "bad.wav#t=0.5,0.5"}, skips
    yield "reversed range", {"audio": "bad.wav#t=1.5,0.5"}, skips
    yield "range of words", {"audio": "bad.wav#t=start,end"}, skips
    yield "negative range", {"audio": "bad.wav#t=-1,1"}, skips
    yield "range of huge numbers", {"audio": f"bad.wav#t={'9' * 400},{'9' * 500}"}, skips
    yield "range", {"audio": "bad.wav#t=0.5,1.5"}, reads(1.0)
    yield "`seconds` of 100", {"seconds": 100.0}, reads_or_skips()
    yield "`offset` and `duration`", {"offset": 0.5, "duration": 1.0}, any_of(reads_or_skips(1.0), reads(), refused())
    yield "missing file", {"audio": "missing.wav"}, skips
    yield "system file", {"audio": "/etc/passwd"}, skips
    yield "endless device", {"audio": "/dev/zero"}, skips
    yield "terminal device", {"audio": "/dev/tty"}, skips
    yield "directory", {"audio": "."}, skips
    yield "name of 5000 characters", {"audio": "a" * 5000 + ".wav"}, skips
    yield "name with a NUL", {"audio": "a\0.wav"}, any_of(skips, refused())
    yield "name with control characters", {"audio": "\x1b[31m\x07\n.wav"}, skips
    yield "name with a lone surrogate", {"audio": "\ud800.wav"}, any_of(skips, refused())
    yield (
        "URL with a password",
        {"audio": "https://user:secret@localhost:9/a.wav?token=secret"},
        any_of(skips, refused()),
    )


def _files() -> Iterator[tuple[str, Callable[[Path], dict[str, Any]], Check]]:
    """Yield special files."""

    def special(make: Callable[[Path], Any]) -> Callable[[Path], dict[str, Any]]:
        def write(folder: Path) -> dict[str, Any]:
            make(folder / "bad.wav")
            return {"audio": "bad.wav"}

        return write

    yield "FIFO", special(os.mkfifo), skips
    yield "directory named x.wav", special(os.mkdir), skips
    yield "symlink to itself", special(lambda path: path.symlink_to(path)), skips
    yield "symlink to nothing", special(lambda path: path.symlink_to("nowhere")), skips
    yield "symlink to a device", special(lambda path: path.symlink_to("/dev/zero")), skips


def _folders(world: World) -> Iterator[Case]:
    """Yield directories of audio files without a manifest, each with a good file."""

    def case(name: str, make: Callable[[Path], Any], check: Check) -> Case:
        def arguments(folder: Path) -> list[str | bytes]:
            (folder / "speech").mkdir()
            (folder / "speech/good.wav").write_bytes(encoded(noise()))
            make(folder / "speech")
            tokenizer = ["--tokenizer", world["train-tokenizer"]]
            return ["tokenize", "speech", *tokenizer, "--out", "out", "--max-bad-fraction", "0.5"]

        return Case("audio directory", name, arguments, check)

    def write(name: str | bytes) -> Callable[[Path], Any]:
        return lambda folder: Path(os.fsdecode(os.path.join(os.fsencode(folder), os.fsencode(name)))).write_bytes(
            encoded(noise(seed=1))
        )

    one, two = makes(utterances=1), makes(utterances=2)
    yield case("FIFO", lambda f: os.mkfifo(f / "x.wav"), one)
    yield case("directory named x.wav", lambda f: (f / "x.wav").mkdir(), one)
    yield case("symlink to itself", lambda f: (f / "x.wav").symlink_to("x.wav"), one)
    yield case("symlink to its parent", lambda f: (f / "x").symlink_to(f), one)
    yield case(
        "symlink out of the directory",
        _link_outside,
        any_of(makes(utterances=1, says="x.wav"), makes(utterances=1, skipped=1), refused("x.wav")),
    )
    yield case("name with an escape and a newline", write("a\x1b[31m\nb.wav"), any_of(two, one))
    yield case("damaged file, name with an escape", lambda f: (f / "a\x1b[31m\nb.wav").write_bytes(b"x"), one)
    yield case("name that is not UTF-8", write(b"caf\xe9.wav"), any_of(two, makes(utterances=1, skipped=1)))
    yield case("name like a time range", write("x.wav#t=1,2.wav"), two)
    yield case(
        "two files with one id", write("good.flac"), any_of(two, makes(utterances=1, skipped=1), refused("good"))
    )
    for suffix in (".m4a", ".sph", ".oga", ".wma", ".webm"):
        check = any_of(
            makes(utterances=1, says=suffix), makes(utterances=1, skipped=1), makes(utterances=2), refused(suffix)
        )
        yield case(f"{suffix} file, which is not read", write(f"x{suffix}"), check)
    yield case("hidden file", write(".x.wav"), any_of(one, two))


def _link_outside(folder: Path) -> None:
    (folder.parent / "private.wav").write_bytes(encoded(noise(seed=1)))
    (folder / "x.wav").symlink_to(folder.parent / "private.wav")


_BAD: dict[str, Callable[[], bytes]] = {
    "zeros": lambda: bytes(4096),
    "truncated": lambda: encoded(noise())[:9000],
    "NaN": lambda: encoded(noise() * np.nan, subtype="FLOAT"),
    "2^36 frames": lambda: flac_header(16_000, 1, (1 << 36) - 1),
    "GSM": lambda: encoded(noise(), subtype="GSM610"),
    "1 Hz": lambda: wav(bytes(9000), rate_hz=1),
}


def _other_commands(world: World) -> Iterator[Case]:
    """Yield a few kinds of bad files for every other command that reads audio."""
    tokenizer, decoder = ["--tokenizer", world["train-tokenizer"]], ["--decoder", world["train-decoder"]]
    commands: dict[str, tuple[list[str], Check]] = {
        "pseudo-label": (
            ["pseudo-label", "manifest.jsonl", *world.jobs["pseudo-label"].command[2:]],
            makes(),
        ),
        "train-tokenizer": (["train-tokenizer", world["tokenizer.toml"], "--speech", "manifest.jsonl"], makes()),
        "interleave --aligned": (
            ["interleave", "manifest.jsonl", "--aligned", world["words.jsonl"], *tokenizer],
            makes(),
        ),
        "resynth": (["resynth", "manifest.jsonl", *tokenizer, *decoder], any_of(makes(), refused("bad"))),
        "eval tokenizer": (
            ["eval", "tokenizer", "--model", world["bundle"], "--data", "manifest.jsonl"],
            makes(),
        ),
        "chat": (["chat", world["bundle"], "--wav", "bad.wav", "--max-sec", "1"], any_of(refused("bad"), ends)),
    }
    for command, (fixed, check) in commands.items():
        for name, content in _BAD.items():

            def arguments(
                folder: Path, fixed: list[str] = fixed, content: Callable[[], bytes] = content
            ) -> list[str | bytes]:
                rows = [json.loads(row) for row in (world.folder / "speak/manifest.jsonl").read_text().splitlines()[:8]]
                rows = [{**row, "audio": world[f"speak/{row['audio']}"]} for row in rows]
                (folder / "bad.wav").write_bytes(content())
                write_jsonl(folder / "manifest.jsonl", [*rows[:4], {**rows[4], "audio": "bad.wav"}, *rows[5:]])
                out = ["--out", "out.wav" if fixed[0] == "chat" else "out.json" if fixed[0] == "eval" else "out"]
                bad = [] if fixed[0] in ("chat", "eval", "resynth") else ["--max-bad-fraction", "0.5"]
                return [*fixed, *out, *bad]

            yield Case(f"audio, {command}", name, arguments, check)
