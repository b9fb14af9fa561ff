"""Sound files with correct and with wrong headers."""

import numpy as np
import soundfile

from weft.sound_files import mp3
from weft.sound_files.address import address_of
from weft.sound_files.source import source_of

RATE_HZ = 16_000


def noise(num_samples, seed=0):
    """Return noise of varying loudness, which codecs cannot compress as well as a tone."""
    rng = np.random.default_rng(seed)
    return (0.2 * rng.normal(size=num_samples) * np.abs(np.sin(np.arange(num_samples) / 3000))).astype(np.float32)


def write(path, samples, subtype=None, rate_hz=RATE_HZ):
    """Write a file whose format follows from its suffix, and return the path."""
    format_name = {".opus": "OGG", ".oga": "OGG", ".sph": "NIST", ".snd": "AU", ".aifc": "AIFF"}.get(path.suffix)
    subtype = subtype or ("OPUS" if path.suffix == ".opus" else "PCM_16" if format_name in ("NIST", "AU") else None)
    soundfile.write(path, samples, rate_hz, subtype, format=format_name)
    return path


def edit(path, place, content):
    """Overwrite bytes of a file."""
    data = bytearray(path.read_bytes())
    data[place : place + len(content)] = content
    path.write_bytes(data)


def declare_flac_frames(path, num_frames):
    """Change the number of samples in a FLAC header."""
    fields = int.from_bytes(path.read_bytes()[18:26], "big") >> 36 << 36
    edit(path, 18, (fields | num_frames).to_bytes(8, "big"))


def declare_mp3_frames(path, num_frames):
    """Change the number of frames in an MP3's Xing frame."""
    edit(path, path.read_bytes().index(b"Xing") + 8, num_frames.to_bytes(4, "big"))


def without_xing_frame(path):
    """Remove the Xing frame of an MP3."""
    content, first = path.read_bytes(), mp3.scan(source_of(address_of(path))).header
    path.write_bytes(content[content.index(first[:2], 4) :])
