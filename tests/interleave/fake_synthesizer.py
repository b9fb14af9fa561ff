"""Stand-ins for the text-to-token model and the tokenizer, and an interleave job that a test can start and kill.

python fake_synthesizer.py CORPUS TEXT_TO_TOKEN OUT WORKERS TOKENIZER
"""

import sys
import time
from pathlib import Path

from weft.interleave.config import InterleaveConfig
from weft.interleave.interleave import run

SLOW_SEC = 0.15
NUM_CODES = 512
SPEAKERS = ("ann", "bob", "cy")
GATE = {"max_wer": 0.3, "tries": 2}
WORDS = [
    "the",
    "cat",
    "and",
    "dog",
    "sat",
    "on",
    "13",
    "old",
    "mats",
    "while",
    "we",
    "all",
    "looked",
    "at",
    "in",
    "sun",
]
_SLIP = 256  # a word's first code: it is read as a word that was never said


class FakeSynthesizer:
    """Four codes a word, the first of which tells the word; one span in 40 runs away, and one is silence.

    By its seed, a span slips in none, a quarter, a half or all of its words. With several speakers, all codes are the
    speaker's number.
    """

    frame_rate_hz = 12.5

    def __init__(self, slow_sec=0.0, speakers=()):
        self.slow_sec, self.speakers = slow_sec, speakers

    def speak(self, texts, seeds, speakers=None):
        time.sleep(self.slow_sec)
        if speakers is not None:
            return [[SPEAKERS.index(s)] * 4 * len(text.split()) for text, s in zip(texts, speakers, strict=True)]
        return [self.codes(text, seed) for text, seed in zip(texts, seeds, strict=True)]

    def normalize(self, text):
        return text

    def codes(self, text, seed):
        if seed % 40 < 2:
            return None if seed % 40 else []
        words = [word.strip(",.") for word in text.split()]
        num_slips = len(words) * (0, 1, 2, 4)[seed // 40 % 4] // 4
        codes = [(seed >> i) % NUM_CODES for i in range(4 * len(words))]
        codes[::4] = [
            _SLIP if i < num_slips else WORDS.index(word) if word in WORDS else len(WORDS)
            for i, word in enumerate(words)
        ]
        return codes


class FakeReader:
    """Reads the first of each four codes."""

    def transcribe(self, codes):
        return [" ".join("slip" if c == _SLIP else [*WORDS, "other"][c] for c in row[::4]) for row in codes]


def load(folder, url):
    with (folder.parent / "loads").open("a") as f:
        f.write(f"{url}\n")
    return FakeSynthesizer()


def load_choir(folder, url):
    return FakeSynthesizer(speakers=SPEAKERS)


def load_slow(folder, url):
    return FakeSynthesizer(SLOW_SEC)


def load_reader(folder):
    return FakeReader()


if __name__ == "__main__":
    corpus, text_to_token, out, workers, tokenizer = sys.argv[1:]
    gate = {"tokenizer": Path(tokenizer), **GATE}
    run(
        InterleaveConfig((Path(corpus),), Path(out), Path(text_to_token), tasks=12, workers=int(workers), **gate),
        load_slow,
        load_reader,
    )
