import pytest
import torch
from torch import nn

from weft.decoder.decoder import SpeechDecoder
from weft.decoder.flow import FlowConfig, FlowDecoder
from weft.decoder.vocoder import MelConfig

NUM_CODES = 32
FLOW = FlowConfig(
    width=16,
    heads=2,
    encoder_layers=1,
    estimator_layers=1,
    context_codes=3,
    block_codes=5,
    first_block_codes=2,
    euler_steps=2,
)


def make_decoder() -> SpeechDecoder:
    """A decoder whose every weight is random, so that all it may depend on changes its sound."""
    torch.manual_seed(0)
    flow = FlowDecoder(FLOW, NUM_CODES, values_per_code=5 * 80).eval()
    for p in flow.parameters():
        nn.init.normal_(p, std=0.2)
    return SpeechDecoder(flow, MelConfig())


@pytest.fixture(scope="session")
def decoder() -> SpeechDecoder:
    return make_decoder()
