import pytest

from .models import CONFIGS, new_model


@pytest.fixture(scope="session")
def llama():
    return new_model(CONFIGS["llama"])
