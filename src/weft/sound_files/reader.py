"""Decoding of sound files in blocks, from the first to the last sample that they contain.

    with Reader(source) as reader:
        for block in reader.blocks(): ...          # (F, C) float32

libsndfile trusts the lengths in headers. This module gives it corrected headers, decodes until the data end, and
raises UserError where the file contains less or more than it says. Memory is one block, whatever a header says.

Shapes: F frames (samples per channel), C channels.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import soundfile

from weft.errors import UserError, reason_of
from weft.sound_files import flac, mp3, ogg
from weft.sound_files.chunks import UNKNOWN_BYTES, undeclared_bytes
from weft.sound_files.source import Source
from weft.sound_files.view import View

MIN_RATE_HZ, MAX_RATE_HZ = 4_000, 384_000  # below, speech is not intelligible; no converter samples faster
MAX_CHANNELS = 64  # of the largest microphone arrays
_BLOCK_SAMPLES = 1 << 18  # of all channels
_PCM = ("PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW")
_PCM_FORMATS = ("WAV", "WAVEX", "RF64", "AIFF", "AU", "CAF", "W64")  # libsndfile compares their sizes with the file's
_MAX_UNDECLARED = 0.01  # of a file: less is a tag, or junk
_MIN_UNDECLARED_BYTES = 1024
_MIN_FRACTION = 0.99  # of the length in the header, which some formats only estimate
# Signs of a truncated file in the log of libsndfile: less data than the header says, or an incomplete last page.
_LESS_DATA = re.compile(r"^\s*(?:data|riff|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
_FACT_CHUNK = re.compile(r"^\s*frames\s*: (\d+)", re.MULTILINE)
_INCOMPLETE_OGG = "Junk after the last page"
_UNKNOWN_FRAMES = 1 << 62
_MAX_CODEC_FRAMES = 4096  # of a block of a codec such as ADPCM


class _Stream(soundfile.SoundFile):
    """A sound file that is read without seeking, which soundfile otherwise does around every block."""

    def seekable(self) -> bool:
        return False

    @property
    def can_seek(self) -> bool:
        return super().seekable()


class Reader:
    """An open sound file.

    `num_frames` is None if only decoding shows it.
    """

    def __init__(self, source: Source) -> None:
        """Open a sound. Raises UserError for a file that is not audio, has an unusual shape, or is damaged."""
        self._source, self._closing, self._views = source, ExitStack(), list[View]()
        self._least_frames, self._end = 0, _UNKNOWN_FRAMES  # of an intact file; without the padding of a codec
        self.num_frames: int | None = None
        try:
            with self._errors():
                self._streams = self._open()
            self.rate_hz = self._streams[0].samplerate
            self._check_shape()
        except BaseException:
            self._closing.close()
            raise

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """Yield the frames from `start` to `stop`, or to the end, as blocks (F, C).

        Raises UserError for a file that is shorter than its header says, or cannot be decoded.
        """
        if (place := self._seek(start)) is None:
            return
        stop = self._end if stop is None else min(stop, self._end)
        for stream in self._streams:
            block_frames = max(1, _BLOCK_SAMPLES // stream.channels)
            while place < stop:
                with self._errors():
                    block = stream.read(min(block_frames, stop - place), dtype="float32", always_2d=True)
                if not len(block):
                    break
                before, place = place, place + len(block)
                if place > start:
                    yield block[max(0, start - before) :]
        if place < min(stop, self._least_frames):
            raise self._cut_off()

    def _open(self) -> list[_Stream]:
        """Open the file, or corrected views of it, and find its length."""
        try:
            stream = self._stream(self._source)
        except soundfile.LibsndfileError:
            is_mp3 = not self._source.is_file or self._source.path.suffix.lower() == ".mp3"
            if not is_mp3 or not (views := self._open_mp3()):  # its count may be too small
                raise
            return views
        if stream.format == "RAW":  # libsndfile takes the format of a file without a header from its suffix
            raise UserError(f"{self._source.name} cannot be read as audio (it has no header): check the file")
        if stream.format == "OGG":
            ranges = ogg.streams(self._source)
            streams = [stream] if len(ranges) == 1 else [self._stream(self._view(*each)) for each in ranges]
            self._least_frames = int(_MIN_FRACTION * sum(s.frames for s in streams))
            return streams
        if stream.subtype.startswith("MPEG_LAYER"):
            return self._open_mp3() or [stream]
        if stream.format == "FLAC" and (header := flac.scan(self._source)) is not None:
            self._least_frames = header.declared_frames
            if header.is_exact:
                self.num_frames = header.declared_frames
                return [stream]
            return [self._stream(flac.without_length(self._source, header))]
        if stream.frames < _UNKNOWN_FRAMES:
            self._least_frames = int(_MIN_FRACTION * stream.frames)
        if stream.subtype not in _PCM:
            fact = _FACT_CHUNK.search(stream.extra_info)  # of WAV: the length without the padding of the last block
            if fact is not None and 0 < stream.frames - int(fact[1]) < _MAX_CODEC_FRAMES:
                self._end = int(fact[1])
        elif stream.format in _PCM_FORMATS:
            self.num_frames = stream.frames
        return [stream]

    def _open_mp3(self) -> list[_Stream]:
        """Open an MP3 with a corrected frame count; return nothing if it can be read as it is."""
        if (found := mp3.scan(self._source)) is None:
            return []
        self._least_frames = found.least_samples
        if found.is_cut_off:
            raise self._cut_off()
        view = mp3.corrected(self._source, found)
        return [] if view is None else [self._stream(view)]

    def _stream(self, source: Source | View) -> _Stream:
        if isinstance(source, Source):
            if source.is_file:
                return self._closing.enter_context(_Stream(os.fsencode(source.path)))  # a name that is not UTF-8
            source = self._view(0, source.size_bytes)
        self._views.append(self._closing.enter_context(source))
        return self._closing.enter_context(_Stream(source))

    def _view(self, start: int, stop: int) -> View:
        return View(self._source.open(), start, stop)

    def _seek(self, start: int) -> int | None:
        """Move to `start` if the file supports it; return the position, None if `start` is after the end."""
        if not start or len(self._streams) > 1 or not self._streams[0].can_seek:
            return 0
        try:
            return self._streams[0].seek(start)
        except soundfile.LibsndfileError:
            return None

    def _check_shape(self) -> None:
        name, channels = self._source.name, max(s.channels for s in self._streams)
        if not MIN_RATE_HZ <= self.rate_hz <= MAX_RATE_HZ:
            raise UserError(
                f"{name} has a sample rate of {self.rate_hz:,} Hz: give audio of {MIN_RATE_HZ:,} to {MAX_RATE_HZ:,} Hz"
            )
        if channels > MAX_CHANNELS:
            raise UserError(f"{name} has {channels:,} channels: give audio with at most {MAX_CHANNELS}")
        if any(s.samplerate != self.rate_hz for s in self._streams):
            raise UserError(f"{name} is a chain of streams with several sample rates: convert it to WAV or FLAC")
        log = self._streams[-1].extra_info
        less = _LESS_DATA.search(log)
        if _INCOMPLETE_OGG in log or (less is not None and int(less[2]) < int(less[1]) < UNKNOWN_BYTES):
            raise self._cut_off()
        extra, size = undeclared_bytes(self._source), self._source.size_bytes
        if extra > max(_MIN_UNDECLARED_BYTES, _MAX_UNDECLARED * size):
            raise UserError(
                f"{name} declares less audio than it contains, {extra:,} of its {size:,} bytes are not declared: "
                "export it again"
            )

    def _cut_off(self) -> UserError:
        return UserError(f"{self._source.name} is cut off, it is shorter than its header says: copy or export it again")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise UserError for a file that cannot be read or decoded."""
        try:
            yield
            for view in self._views:
                if view.error is not None:
                    raise view.error
        except soundfile.LibsndfileError as e:
            reason = e.error_string.rstrip(".")
            raise UserError(f"{self._source.name} cannot be read as audio ({reason}): check the file") from e
        except OSError as e:
            raise UserError(f"{self._source.name} cannot be read ({reason_of(e)}): check the file") from e
