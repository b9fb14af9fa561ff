"""The language model that reads, listens, writes and speaks: its artifact, its data in rows, its training."""
