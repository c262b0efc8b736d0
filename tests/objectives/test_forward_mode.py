"""The lean rules of forward-mode differentiation against PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F
from fakes import LATENT_DIM, fill, normals, random_text, tiny_network
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from meanaudio.models.transformer import make_network
from meanaudio.objectives.forward_mode import jacobian_vector_product


def by_pytorch(function, points, tangents):
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        return torch.func.jvp(function, points, tangents)[1]


def relative(found, expected) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def close(function, points, seed=7):
    """Both ways agree to 1e-5 of the derivative's size, which is not zero. Returns the derivative."""
    tangents = tuple(normals(*x.shape, seed=seed + i) for i, x in enumerate(points))
    found, expected = (way(function, points, tangents) for way in (jacobian_vector_product, by_pytorch))
    assert expected.norm() > 0
    assert relative(found, expected) < 1e-5
    return found


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "make",
    [lambda bias: nn.Linear(6, 5, bias=bias), lambda bias: nn.Conv1d(6, 5, 3, padding=1, stride=2, bias=bias)],
    ids=["linear", "conv"],
)
def test_linear_maps(make, bias):
    layer = fill(make(bias), std=0.5)
    close(lambda x: layer(x).square(), (normals(2, 6, 6),))


@pytest.mark.parametrize("masked", [False, True])
def test_attention(masked):
    mask = torch.tensor([[True, False, True, True, False], [True] * 5])[:, None, None] if masked else None
    points = tuple(normals(2, 3, 5, 4, seed=i) for i in range(3))
    close(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask), points)


def test_attention_to_values_that_stand_still():
    """Queries, keys or values may have no tangent at all."""
    still = tuple(normals(2, 3, 5, 4, seed=i) for i in range(3))
    for moving in range(3):
        close(lambda x, moving=moving: F.scaled_dot_product_attention(*still[:moving], x, *still[moving + 1 :]), (still[moving],))


@pytest.mark.parametrize("interval", ["absolute", "relative"])
@pytest.mark.parametrize("lengths", [[3, 5, 2], [4, 4, 4]])
def test_the_transformer(interval, lengths):
    net, text = fill(make_network(tiny_network(interval=interval)), std=0.2), random_text(lengths)
    points = (normals(3, 6, LATENT_DIM), torch.tensor([0.9, 0.5, 0.3]), torch.tensor([0.1, 0.5, 0.2]))
    close(lambda z, t, r: net(z, t, r, net.condition(text)), points)


def test_under_bf16_only_products_of_tangents_are_rounded():
    """A derivative of values rounded to 8 bits would be many times further off."""
    net, text = fill(make_network(tiny_network()), std=0.2), random_text([3, 5, 2])
    points = (normals(3, 6, LATENT_DIM), torch.tensor([0.9, 0.5, 0.3]), torch.tensor([0.1, 0.4, 0.2]))
    tangents = tuple(normals(*x.shape, seed=i) for i, x in enumerate(points))

    def u(z, t, r):
        return net(z, t, r, net.condition(text))

    exact = by_pytorch(u, points, tangents)
    with torch.autocast("cpu", torch.bfloat16):
        found, rounded = jacobian_vector_product(u, points, tangents), by_pytorch(u, points, tangents)
    assert found.dtype == torch.float32
    assert 0 < relative(found, exact) < 0.5 * relative(rounded.float(), exact)
