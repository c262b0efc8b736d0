"""A convolution by spectra is the convolution."""

import pytest
import torch
import torch.nn.functional as F
from fakes import normals
from hypothesis import given, settings
from hypothesis import strategies as st

from meanaudio.codec import spectral_conv as module
from meanaudio.codec.spectral_conv import TILE, SpectralConv1d, spectral_conv


@settings(max_examples=60)
@given(
    batch=st.integers(1, 3), channels=st.integers(1, 9), outputs=st.integers(1, 9), length=st.integers(1, 150),
    half=st.integers(0, TILE // 2 - 1), dilation=st.integers(1, 7),
)  # fmt: skip
def test_it_is_the_zero_padded_convolution(batch, channels, outputs, length, half, dilation):
    x, weight, bias = normals(batch, channels, length), normals(outputs, channels, 2 * half + 1, seed=1), normals(outputs, seed=2)
    expected = F.conv1d(x, weight, bias, padding=dilation * half, dilation=dilation)
    torch.testing.assert_close(spectral_conv(x, weight, bias, dilation), expected, atol=1e-4, rtol=1e-4)


def test_however_many_rows_are_made_at_once(monkeypatch):
    x, weight, bias = normals(2, 6, 100), normals(70, 6, 7, seed=1), normals(70, seed=2)
    whole = spectral_conv(x, weight, bias)
    monkeypatch.setattr(module, "CACHE", 1)
    torch.testing.assert_close(spectral_conv(x, weight, bias), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kernel", "dilation"), [(7, 1), (11, 5), (3, 3)])
def test_the_layer_is_a_conv1d_with_and_without_gradients(kernel, dilation, monkeypatch):
    """Same weights under the same names; only the way they are applied differs, and only where it pays."""
    calls = []
    monkeypatch.setattr(module, "spectral_conv", lambda *args: calls.append(args) or spectral_conv(*args))
    monkeypatch.setattr(module, "LEAST_TERMS", 4)
    plain = torch.nn.Conv1d(4, 4, kernel, dilation=dilation, padding=dilation * (kernel // 2))
    layer = SpectralConv1d(4, 4, kernel, dilation)
    layer.load_state_dict(plain.state_dict())
    x = normals(2, 4, 61)
    expected = plain(x)
    torch.testing.assert_close(layer(x), expected, atol=0, rtol=0)
    assert layer(x).requires_grad and not calls
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)
    assert len(calls) == (kernel >= module.LEAST_KERNEL)


def test_under_autocast_it_rounds_as_a_convolution_does(monkeypatch):
    """bfloat16 in and out; the error against float32 stays within three times that of the direct convolution."""
    monkeypatch.setattr(module, "LEAST_TERMS", 64)
    layer = SpectralConv1d(64, 64, 11, 3).requires_grad_(False)
    x = normals(1, 64, 500)
    exact = F.conv1d(x, layer.weight, layer.bias, padding=15, dilation=3)
    with torch.autocast("cpu", torch.bfloat16):
        made, direct = layer(x), F.conv1d(x, layer.weight, layer.bias, padding=15, dilation=3)
    assert made.dtype == direct.dtype == torch.bfloat16
    assert (made - exact).norm() < 3 * (direct - exact).norm()
