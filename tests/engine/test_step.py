import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from weft.engine import step
from weft.engine.sampling import Sampling
from weft.engine.step import State, Step, prefill

from .models import CONFIGS, SUPPORTED, new_model, random_requests


@pytest.mark.parametrize("name", CONFIGS)
def test_models_with_full_attention_in_all_layers_are_supported(name):
    assert step.is_supported(new_model(CONFIGS[name])) == (name in SUPPORTED)


class _RecordOperations(TorchDispatchMode):
    """Records the operations that run, and whether one of them has a shape that depends on values."""

    def __init__(self):
        super().__init__()
        self.names, self.bool_indices = set(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        if func.overloadpacket.__name__ in ("index", "index_put_", "index_put"):
            self.bool_indices += any(i is not None and i.dtype == torch.bool for i in args[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", sorted(SUPPORTED))
@pytest.mark.parametrize("sampling", [Sampling(temperature=0), Sampling(top_k=5), Sampling(top_p=0.9)])
def test_no_operation_of_a_step_waits_for_sampled_ids(name, sampling):
    model, requests = new_model(CONFIGS[name]), random_requests(8, 20)
    rows = torch.arange(8)
    state = State.empty(8, 20, 6, model.device)
    state.begin(rows, requests)
    with torch.inference_mode(), _RecordOperations() as operations:
        batch = prefill(model, [r.ids[:-1] for r in requests], rows)
        batch.reserve()
        operations.names.clear()
        Step(model, sampling, {3, 5}, None)(state, rows, [batch])
    assert "index_put_" in operations.names
    assert not operations.names & {"_local_scalar_dense", "nonzero", "masked_select", "item", "is_nonzero", "unique"}
    assert not operations.bool_indices
