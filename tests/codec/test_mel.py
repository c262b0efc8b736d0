from pathlib import Path

import pytest
import torch
from fakes import normals
from safetensors.torch import load_file

from meanaudio.codec.mel import LogMel
from meanaudio.config import MelConfig
from meanaudio.errors import InputError


@pytest.fixture(scope="module")
def mel() -> LogMel:
    return LogMel(MelConfig())


def test_equals_the_release(mel):
    stored = load_file(Path(__file__).parents[1] / "golden" / "mel_io.safetensors")
    # rtol: another kind of CPU adds up in another order
    torch.testing.assert_close(mel(stored["wav"].float()), stored["mel"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mel.filters.T, stored["mel_basis"], atol=1e-7, rtol=0)
    silence = stored["mel_silence"].float()
    torch.testing.assert_close(mel(torch.zeros(1, silence.shape[2] * 256)), silence)


@pytest.mark.parametrize("samples", [512, 1000, 1024, 16000])
def test_frames_are_whole_hops(mel, samples):
    assert mel(0.1 * normals(2, samples)).shape == (2, 80, samples // 256)


def test_has_no_stored_weights_and_passes_gradients(mel):
    assert not mel.state_dict()
    audio = (0.1 * normals(1, 2048)).requires_grad_()
    mel(audio).mean().backward()
    assert audio.grad.abs().max() > 0


def test_too_short_is_an_error(mel):
    with pytest.raises(InputError, match="384"):
        mel(torch.zeros(1, 384))
