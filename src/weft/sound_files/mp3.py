"""The number of frames of an MP3 file, counted from the headers of all frames.

libsndfile takes the length from the Xing frame, or without one, from the bit rate of the first frame. Both can be
wrong: a file with variable bit rate and no Xing frame loses what lies after the estimated end. `corrected` therefore
gives it the file with a Xing frame that has the right count.

Reference: ISO 11172-3 and 13818-3; the Xing frame as LAME and mpg123 (check_lame_tag) have it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

from weft.sound_files.source import Source
from weft.sound_files.view import View

_KBPS = {  # by MPEG-1 or not, and layer
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES_HZ = (44_100, 48_000, 32_000)
_JUNK_BYTES = 1 << 16  # searched at once for the next frame
_DECODER_SAMPLES = 2 * 4095  # that a decoder may leave out: delay and padding of the encoder
_EXTRA_FRAMES = 16  # declared in a new Xing frame: the decoder ends at the end of the file


@dataclass(frozen=True)
class _Header:
    """Header of a frame."""

    num_bytes: int
    num_samples: int
    rate_hz: int
    layer: int
    side_bytes: int  # between the header and the place of a Xing frame's name


@dataclass(frozen=True)
class Mp3:
    """Contents of a file: the number of audio frames, their samples, and the place and the count of its Xing frame."""

    first: int  # byte position of the first frame
    header: bytes
    size: int
    num_frames: int
    samples_per_frame: int
    xing: int | None  # position of the frame count, if there is one
    declared_frames: int | None

    @property
    def is_cut_off(self) -> bool:
        """Whether the file has fewer frames than it declares. Some encoders also count the Xing frame."""
        return self.num_frames + 1 < 0.99 * (self.declared_frames or 0)

    @property
    def least_samples(self) -> int:
        """The fewest samples per channel that a decoder returns for an intact file."""
        return int(0.99 * self.num_frames * self.samples_per_frame) - _DECODER_SAMPLES


def scan(source: Source) -> Mp3 | None:
    """Count the frames of a file; None if it has none. A last frame without all of its bytes is not counted."""
    with source.open() as f:
        size = f.seek(0, 2)
        first = _next_frame(f, _end_of_tags(f), size)
        if first is None:
            return None
        f.seek(first)
        start = f.read(4096)
        header = _parse(start)
        assert header is not None
        info = _info_frame(start[: header.num_bytes], header)
        num_frames = 0
        next_frame: int | None = first
        while next_frame is not None:
            place = next_frame
            while (found := _frame_at(f, place)) is not None:
                place += found.num_bytes
                num_frames += place <= size
            next_frame = _next_frame(f, place, size)
    xing, declared, is_info = info
    audio_first = first if xing is not None or not is_info else first + header.num_bytes
    return Mp3(
        first=audio_first,
        header=start[:4],
        size=size,
        num_frames=num_frames - is_info,
        samples_per_frame=header.num_samples,
        xing=None if xing is None else first + xing,
        declared_frames=declared,
    )


def corrected(source: Source, mp3: Mp3) -> View | None:
    """Return the file with a right frame count for its decoder; None if it can be read as it is."""
    if mp3.xing is not None:
        if mp3.declared_frames is not None and mp3.declared_frames >= mp3.num_frames:
            return None
        with source.open() as f:
            f.seek(mp3.first)
            before = f.read(mp3.xing - mp3.first)
        prefix = before + mp3.num_frames.to_bytes(4, "big")
        return View(source.open(), mp3.xing + 4, mp3.size, prefix)
    frame = _xing_frame(mp3.header, mp3.num_frames + _EXTRA_FRAMES)
    return None if frame is None else View(source.open(), mp3.first, mp3.size, frame)


def _parse(head: bytes) -> _Header | None:
    """Return the header in the first four bytes, if they are one. Frames of "free" bit rate are not supported."""
    if len(head) < 4 or head[0] != 0xFF or head[1] < 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    bit_rate, rate, padding, is_mono = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1, head[3] >> 6 == 3
    if version == 1 or layer == 4 or bit_rate in (0, 15) or rate == 3:
        return None
    is_mpeg1 = version == 3
    bits_per_sec = 1000 * _KBPS[is_mpeg1, layer if is_mpeg1 else min(layer, 2)][bit_rate]
    rate_hz = _RATES_HZ[rate] >> {3: 0, 2: 1, 0: 2}[version]
    side = (17 if is_mono else 32) if is_mpeg1 else (9 if is_mono else 17)
    if layer == 1:
        return _Header(4 * (12 * bits_per_sec // rate_hz + padding), 384, rate_hz, layer, side)
    num_samples = 1152 if layer == 2 or is_mpeg1 else 576
    return _Header(num_samples // 8 * bits_per_sec // rate_hz + padding, num_samples, rate_hz, layer, side)


def _frame_at(f: BinaryIO, place: int) -> _Header | None:
    f.seek(place)
    return _parse(f.read(4))


def _next_frame(f: BinaryIO, place: int, size: int) -> int | None:
    """Return the first place from `place` where a frame begins that another one of the same kind follows."""
    while place < size:
        f.seek(place)
        block = f.read(_JUNK_BYTES + 3)
        offset = block.find(b"\xff")
        while 0 <= offset < _JUNK_BYTES:
            if (header := _parse(block[offset : offset + 4])) is not None:
                after = place + offset + header.num_bytes
                following = _frame_at(f, after)
                if after == size or (following is not None and following.rate_hz == header.rate_hz):
                    return place + offset
            offset = block.find(b"\xff", offset + 1)
        place += _JUNK_BYTES
    return None


def _end_of_tags(f: BinaryIO) -> int:
    """Return where the ID3v2 tags at the start of the file end."""
    place = 0
    while True:
        f.seek(place)
        head = f.read(10)
        if len(head) < 10 or head[:3] != b"ID3":
            return place
        place += 10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9])


def _info_frame(frame: bytes, header: _Header) -> tuple[int | None, int | None, bool]:
    """Return the offset of the frame count and the count of a Xing frame, and whether it is an information frame."""
    name = 4 + header.side_bytes
    if header.layer == 3 and frame[name : name + 4] in (b"Xing", b"Info"):
        if not frame[name + 7] & 1:
            return None, None, True
        return name + 8, int.from_bytes(frame[name + 8 : name + 12], "big"), True
    return None, None, frame[36:40] == b"VBRI"


def _xing_frame(head: bytes, num_frames: int) -> bytes | None:
    """Return a Xing frame like the frames with the header `head`; None for another layer, which has no such frame."""
    large = bytes((head[0], head[1] | 1, (head[2] & 0x0D) | 0x80, head[3]))  # no checksum, and room for the count
    header = _parse(large)
    if header is None or header.layer != 3:
        return None
    content = large + bytes(header.side_bytes) + b"Xing" + (1).to_bytes(4, "big") + num_frames.to_bytes(4, "big")
    return content.ljust(header.num_bytes, b"\0")
