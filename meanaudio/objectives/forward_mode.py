"""Forward-mode differentiation of a network, without a graph and without waste.

PyTorch's own rules are right but dear for a transformer: a convolution's derivative convolves once more with the (zero) tangent of its
weights, and attention has a rule in its slowest kernel only. `LeanRules` holds shorter ones for the products, where nearly all the time
goes; everything else keeps PyTorch's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.forward_ad import make_dual, unpack_dual
from torch.overrides import TorchFunctionMode

PRODUCTS = (F.linear, F.conv1d)


def with_tangent(x: Tensor) -> tuple[Tensor, Tensor]:
    """Value and tangent; the tangent of what stands still is zero."""
    value, tangent = unpack_dual(x)
    return value, torch.zeros_like(value) if tangent is None else tangent


class LeanRules(TorchFunctionMode):
    """Inside it, linear maps whose weights have no tangent and softmax attention are differentiated by the rules below.

    Values are computed in the precision they have. tangents: the autocast under which the products of tangents are; with bf16 they are
    rounded to 8 bits and summed in float32, while the point at which the derivative is taken is not moved.
    """

    def __init__(self, tangents: Callable[[], torch.autocast]) -> None:
        super().__init__()
        self.tangents = tangents

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in PRODUCTS:
            return self._linear_map(function, *args, **kwargs)
        if function is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        return function(*args, **kwargs)

    def _linear_map(self, function, x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest) -> Tensor:
        """d(W x + b) = W dx."""
        x, dx = unpack_dual(x)
        y = function(x, weight, bias, *rest)
        if dx is None:
            return y
        with self.tangents():
            dy = function(dx, weight, None, *rest)
        return make_dual(y, dy.to(y.dtype))

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """P = softmax(Q K^T / sqrt(d)), dP = P (dS - sum P dS), d(P V) = dP V + P dV. attn_mask is True where a key may be seen."""
        (q, dq), (k, dk), (v, dv) = (with_tangent(x) for x in (query, key, value))
        scale = q.shape[-1] ** -0.5
        q, dq = q * scale, dq * scale
        scores = q @ k.mT
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        p = scores.softmax(-1)
        y = p @ v
        with self.tangents():
            weighted = p * (dq @ k.mT + q @ dk.mT).to(p.dtype)
            dp = weighted - p * weighted.sum(-1, keepdim=True)
            dy = dp @ v + p @ dv
        return make_dual(y, dy.to(y.dtype))


@torch.no_grad()
def jacobian_vector_product(function: Callable[..., Tensor], points: Sequence[Tensor], tangents: Sequence[Tensor]) -> Tensor:
    """The derivative of `function` at `points` along `tangents`, in float32 (see LeanRules for bf16 autocast), without a graph.

    Compiled parts of a network run as they are written: torch can't differentiate through them, and once it has tried it never runs them
    compiled again.
    """
    device = points[0].device.type
    reduced = torch.is_autocast_enabled(device)
    rules = LeanRules(lambda: torch.autocast(device, torch.get_autocast_dtype(device), enabled=reduced))
    with torch.autocast(device, enabled=False), torch.compiler.set_stance("force_eager"), rules:
        return torch.func.jvp(function, tuple(points), tuple(tangents))[1]
