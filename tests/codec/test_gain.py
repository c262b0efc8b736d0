import pytest
import torch
from fakes import fill, normals, torch_threads

from meanaudio.codec.gain import latent_gain
from meanaudio.codec.vae import MelVAE


@pytest.fixture
def vae():
    return fill(MelVAE(n_mels=20, latent_dim=4, width=16, blocks=1, strides=(2,), linear=True))


def relative(gain):
    return gain / gain.square().mean().sqrt()


def test_of_a_linear_decoder_it_is_the_columns_norm(vae):
    """Mels in other units count as such, and so do wider channels."""
    for parameter in vae.decoder[-1].parameters():
        parameter.data.zero_()
    vae.mel_std.copy_(torch.linspace(0.5, 2, 20))
    std = torch.tensor([1.0, 2.0, 0.5, 1.0])
    columns = vae.linear_decoder.weight.reshape(2, 20, 4) * vae.mel_std[:, None]
    wanted = relative(columns.square().sum((0, 1)).sqrt() * std)
    torch.testing.assert_close(latent_gain(vae, normals(8, 12, 4), std, probes=200), wanted, rtol=0.05, atol=0)


def test_of_a_deep_decoder_it_is_what_small_changes_do(vae):
    latents, std = normals(4, 6, 4), torch.ones(4)
    jacobian = torch.autograd.functional.jacobian(lambda z: vae.decode(z[None])[0], latents[0])
    exact = relative(jacobian.square().sum((0, 1, 2)).sqrt())
    torch.testing.assert_close(latent_gain(vae, latents[:1], std, probes=1000), exact, rtol=0.1, atol=0)


def test_it_is_the_same_in_every_process_and_leaves_the_vae_alone(vae):
    latents, std = normals(40, 6, 4), torch.ones(4)
    gain = latent_gain(vae, latents, std)
    with torch_threads(1 if torch.get_num_threads() > 1 else 2):
        assert torch.equal(latent_gain(vae, latents, std), gain)
    assert gain.square().mean() == pytest.approx(1, abs=1e-3)
    assert all(p.dtype == torch.float32 and p.requires_grad and p.grad is None for p in vae.parameters())
