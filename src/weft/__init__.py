"""weft weaves speech into text: speech-text pre-training with synthetic interleaved data, the whole road."""

__version__ = "0.1.0"
