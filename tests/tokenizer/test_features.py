import numpy as np
import pytest
import torch

from tests.tokenizer.conftest import make_tokenizer, noise


@pytest.mark.parametrize("floor", ["fixed", "window"])
def test_features_do_not_depend_on_the_other_windows(floor: str) -> None:
    """Each window has the features of its recording's longest window, however many are computed together."""
    extractor = make_tokenizer(log_mel_floor=floor).features
    windows = [noise(n, n) for n in (38_400, 5_000, 1)]
    together = extractor(windows, [38_400, 5_000, 20_000])
    padded = [np.pad(x, (0, n - len(x))) for x, n in zip(windows, (38_400, 5_120, 20_480), strict=True)]
    for features, x in zip(together, padded, strict=True):
        alone = extractor.log_mel(torch.from_numpy(x))[0, :, : features.shape[1]]
        last = features.shape[1] - (floor == "fixed")  # Whisper mirrors the end, which a stream cannot
        assert torch.allclose(features[:, :last], alone[:, :last], atol=1e-5)


def test_a_batch_is_padded_and_marks_the_valid_frames() -> None:
    extractor = make_tokenizer().features
    windows = [noise(5_000), noise(1_000)]
    features = extractor(windows, [5_000, 1_000])
    batch, valid = extractor.collate(features, [5_000, 1_000])
    assert [f.shape[1] for f in features] == [32, 8]
    assert batch.shape == (2, 80, 32)
    assert torch.equal(batch[1, :, :8], features[1])
    assert not batch[1, :, 8:].any()
    assert valid.sum(1).tolist() == [16, 4]  # frames that begin within the recording
