"""A CPU without 16-bit arithmetic is told of before it is asked for it."""

import warnings

import pytest
import torch

from meanaudio.pipeline import MeanAudio
from meanaudio.precision import DTYPES, warn_if_slow


@pytest.mark.parametrize("supported", [True, False])
@pytest.mark.parametrize(("precision", "device"), [("bf16", "cpu"), ("float32", "cpu"), ("bf16", "cuda")])
def test_only_16_bits_on_a_cpu_that_has_none_are_slow(monkeypatch, supported, precision, device):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        warn_if_slow(DTYPES[precision], torch.device(device))
    slow = not supported and (precision, device) == ("bf16", "cpu")
    assert [str(w.message).startswith("this CPU has no 16-bit arithmetic") for w in told] == [True] * slow


def test_a_checkpoint_that_is_loaded_in_16_bits_says_so(monkeypatch, tiny_checkpoint, fast_text):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with pytest.warns(UserWarning, match="this CPU has no 16-bit arithmetic"):
        MeanAudio.from_pretrained(tiny_checkpoint, device="cpu", dtype="bf16")
