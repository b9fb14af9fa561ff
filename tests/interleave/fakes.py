"""Fakes of the text-to-token model and of the tokenizer, and an interleave job that a test can start and kill.

python fakes.py CORPUS TEXT_TO_TOKEN OUT WORKERS
"""

import sys
import time
from pathlib import Path

from weft.data.job import JobConfig
from weft.interleave.config import InterleaveConfig
from weft.interleave.interleave import run

SLOW_SEC = 0.1
NUM_CODES = 512
SPEAKERS = ("ann", "bob", "cy")
GATE = {"max_wer": 0.3, "tries": 2}
WORDS = [
    "the", "cat", "and", "dog", "sat", "on", "13", "old", "mats", "while", "we", "all", "looked", "at", "in", "sun",
]  # fmt: skip
_WRONG = 256  # the first code of a word that is transcribed as another one


class FakeSynthesizer:
    """Returns four codes per word, the first of which identifies it; of 40 spans, one does not end and one is empty.

    By its seed, a span has none, a quarter, half or all of its words wrong. With several speakers, all codes are the
    index of the speaker.
    """

    frame_rate_hz = 12.5
    language = "en"

    def __init__(self, slow_sec=0.0, speakers=()):
        self.slow_sec, self.speakers = slow_sec, speakers

    def synthesize(self, texts, seeds, speakers=None):
        time.sleep(self.slow_sec)
        if speakers is not None:
            return [[SPEAKERS.index(s)] * 4 * len(text.split()) for text, s in zip(texts, speakers, strict=True)]
        return [self.codes(text, seed) for text, seed in zip(texts, seeds, strict=True)]

    def normalize(self, text):
        return text

    def problem_of(self, text, speaker=None):
        return None

    def codes(self, text, seed):
        if seed % 40 < 2:
            return None if seed % 40 else []
        words = [word.strip(",.") for word in text.split()]
        num_wrong = len(words) * (0, 1, 2, 4)[seed // 40 % 4] // 4
        codes = [(seed >> i) % NUM_CODES for i in range(4 * len(words))]
        codes[::4] = [
            _WRONG if i < num_wrong else WORDS.index(word) if word in WORDS else len(WORDS)
            for i, word in enumerate(words)
        ]
        return codes


class FakeTranscriber:
    """Transcribes the first of each four codes."""

    def transcribe(self, codes, languages):
        assert languages == ["en"] * len(codes)
        return [" ".join("wrong" if c == _WRONG else [*WORDS, "other"][c] for c in row[::4]) for row in codes]


def load(folder, url):
    return FakeSynthesizer()


def load_and_log(folder, url):
    """Append the URL to the file `loads` beside the model's directory."""
    with (folder.parent / "loads").open("a") as f:
        f.write(f"{url}\n")
    return FakeSynthesizer()


def load_with_speakers(folder, url):
    return FakeSynthesizer(speakers=SPEAKERS)


def load_slow(folder, url):
    return FakeSynthesizer(SLOW_SEC)


def load_for_dialogues(folder):
    return FakeSynthesizer()


def load_transcriber(folder):
    return FakeTranscriber()


if __name__ == "__main__":
    corpus, text_to_token, out, workers = sys.argv[1:]
    run(
        InterleaveConfig((corpus,), Path(out), Path(text_to_token), tasks=12, job=JobConfig(workers=int(workers))),
        load_slow,
    )
