import pytest
import torch
from fakes import fill, normals

from meanaudio.codec.vae import MelVAE
from meanaudio.errors import InputError


@pytest.mark.parametrize("strides", [(2, 2), (2,), (3, 2)])
def test_shapes(strides):
    vae = MelVAE(n_mels=80, latent_dim=6, width=16, blocks=1, strides=strides)
    frames = 4 * vae.frames_per_latent
    posterior = vae.encode(normals(2, 80, frames))
    assert posterior.mean.shape == posterior.std.shape == (2, 4, 6)
    assert (posterior.std > 0).all()
    assert vae.decode(posterior.mean).shape == (2, 80, frames)


def test_every_parameter_gets_a_gradient():
    vae = fill(MelVAE(20, 4, 16, 1, (2, 2)))
    posterior = vae.encode(normals(2, 20, 16))
    vae.decode(posterior.sample(torch.Generator().manual_seed(0))).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in vae.parameters())


def test_mel_scale_is_inside():
    """Shifting and scaling the mel together with the stored statistics changes the output by just that."""
    vae = fill(MelVAE(20, 4, 16, 1, (2,)))
    mel = normals(1, 20, 8)
    latents = vae.encode(mel).mean
    before = vae.decode(latents)
    vae.mel_mean.fill_(3.0)
    vae.mel_std.fill_(2.0)
    torch.testing.assert_close(vae.encode(2 * mel + 3).mean, latents, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(vae.decode(latents), 2 * before + 3)


def test_rows_are_independent():
    vae = fill(MelVAE(20, 4, 16, 1, (2,)))
    mel = normals(3, 20, 8)
    torch.testing.assert_close(vae.encode(mel).mean[1:2], vae.encode(mel[1:2]).mean, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("frames", [0, 6])
def test_broken_frames_are_an_error(frames):
    with pytest.raises(InputError, match="multiple of 4"):
        MelVAE(20, 4, 16, 1, (2, 2)).encode(torch.zeros(1, 20, frames))


def test_linear_start_is_the_principal_components():
    """Before any training, mels of rank `latent_dim` come back exactly and their latents have unit variance."""
    vae = MelVAE(20, 4, 16, 1, (2,), linear=True)
    patches = normals(64, 16, 4) @ normals(4, 40, seed=1) + 2
    mel = patches.reshape(64, 32, 20).mT
    vae.start_linear(mel)
    posterior = vae.encode(mel)
    torch.testing.assert_close(vae.decode(posterior.mean), mel, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(posterior.mean.flatten(0, 1).std(0), torch.ones(4), atol=1e-2, rtol=0)
