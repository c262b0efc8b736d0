"""The release's VAE: its own outputs, and its laws."""

from pathlib import Path

import pytest
import torch
from fakes import floats, normals

from meanaudio.checkpoint import load_into
from meanaudio.codec.release_vae import ReleaseVAE
from meanaudio.config import MelConfig
from meanaudio.convert.codec import convert_vae, fold_magnitude
from meanaudio.errors import InputError

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return floats(GOLDEN / "vae_io.safetensors")


@pytest.fixture(scope="module")
def vae() -> ReleaseVAE:
    config, state = convert_vae(floats(GOLDEN / "vae_state.safetensors"), MelConfig(), "golden")
    assert (config.latent_dim, config.width, config.multipliers, config.blocks) == (20, 12, (1, 2, 4), 2)
    vae = ReleaseVAE(80, config.latent_dim, config.width, config.multipliers, config.blocks)
    load_into(vae, state, "golden")
    return vae.eval().requires_grad_(False)


def relative(found, expected) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def test_the_posterior_is_the_official_one(vae, golden):
    posterior = vae.encode(golden["mel"])
    assert relative(posterior.mean, golden["enc_mean"].mT) < 1e-5
    assert relative(posterior.std, golden["enc_std"].mT) < 1e-5
    assert relative(vae.encoder(golden["mel"])[:, :20], golden["enc_mean_no_normalize"]) < 1e-5


def test_the_mel_is_the_official_one(vae, golden):
    assert relative(vae.decode(golden["z"].mT), golden["dec"]) < 1e-5
    assert relative(vae.decoder(golden["z"]), golden["dec_no_unnormalize"]) < 1e-5


@pytest.mark.parametrize(("name", "folded"), [("conv_in", "folded_conv_in_weight"), ("up.0.block.1.conv1", "folded_up0_conv1")])
def test_kernels_are_folded_as_the_official_ones(golden, name, folded):
    state = floats(GOLDEN / "vae_state.safetensors")
    assert relative(fold_magnitude(state[f"decoder.{name}.weight"]), golden[folded]) < 1e-6


def test_rows_and_lengths(vae):
    mel = normals(3, 80, 10)
    latents = vae.encode(mel).mean
    assert latents.shape == (3, 5, 20)
    assert vae.decode(latents).shape == mel.shape
    torch.testing.assert_close(vae.encode(mel[1:2]).mean[0], latents[1], atol=1e-5, rtol=1e-4)
    for frames in (0, 7):
        with pytest.raises(InputError, match="multiple of 2"):
            vae.encode(torch.zeros(1, 80, frames))
