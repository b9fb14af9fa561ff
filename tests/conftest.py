"""Settings of all tests: the same examples of every property in every run, one thread per worker, no network."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and inherited by subprocesses
os.environ["HF_HUB_OFFLINE"] = "1"

from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")
