"""A stand-in for the text-to-token model, and an interleave job that a test can start and kill.

python fake_synthesizer.py CORPUS TEXT_TO_TOKEN OUT WORKERS
"""

import sys
import time
from pathlib import Path

from weft.interleave.interleave import InterleaveConfig, run

SLOW_SEC = 0.15
NUM_CODES = 512


class FakeSynthesizer:
    """Four codes a word, decided by the seed; one span in 40 runs away, and one is silence."""

    frame_rate_hz = 12.5

    def __init__(self, slow_sec=0.0):
        self.slow_sec = slow_sec

    def speak(self, texts, seeds):
        time.sleep(self.slow_sec)
        return [self.codes(text, seed) for text, seed in zip(texts, seeds, strict=True)]

    def codes(self, text, seed):
        if seed % 40 < 2:
            return None if seed % 40 else []
        return [(seed >> i) % NUM_CODES for i in range(4 * len(text.split()))]


def load(folder):
    with (folder.parent / "loads").open("a") as f:
        f.write("x")
    return FakeSynthesizer()


def load_slow(folder):
    return FakeSynthesizer(SLOW_SEC)


if __name__ == "__main__":
    corpus, text_to_token, out, workers = sys.argv[1:]
    config = InterleaveConfig((Path(corpus),), Path(text_to_token), Path(out), tasks=12, workers=int(workers))
    run(config, load_slow)
