"""Speech-text language models: artifact, packed data, training."""
