"""The loss on one process or many: DDP keeps the network whole on each, FSDP2 keeps a shard on each between steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch._dynamo
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from meanaudio import distributed
from meanaudio.models.transformer import Transformer
from meanaudio.objectives import Objective
from meanaudio.types import Draws, TextFeatures

RECOMPILE_LIMIT = 64


class LossModule(nn.Module):
    """Network and objective as one forward: a Jacobian-vector product passes through neither DDP's nor FSDP's wrapper from outside."""

    def __init__(self, network: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.network, self.objective = network, objective

    def forward(
        self, x: Tensor, text: TextFeatures, null: TextFeatures, draws: Draws, progress: float
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        """The fields of a `Loss` as a plain tuple, in which the wrappers find the tensors."""
        loss = self.objective.loss(self.network, x, text, null, draws, progress=progress)  # type: ignore[arg-type]
        return loss.per_sample, loss.t, loss.logs


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The members of all its lists: the like parts that a network repeats."""
    return [block for blocks in module.modules() if isinstance(blocks, nn.ModuleList) for block in blocks]


def compile_blocks(network: Transformer) -> None:
    """Compile each block, and the layers before them, when it is first called. Like blocks share their code, which makes it far quicker
    than to compile the whole. Kinds of blocks, shapes and modes of all networks count against one limit, beyond which torch goes eager.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    for block in (*blocks_of(network), network.audio_in):
        block.compile()


def spread(module: LossModule, parallel: str) -> nn.Module:
    """`module` made ready for the processes that have joined: "ddp" or "fsdp". Alone, it is left as it is.

    FSDP shards parameters in place: build optimisers and averages afterwards.
    """
    if not distributed.joined() or parallel == "none":
        return module
    if parallel == "ddp":
        return DistributedDataParallel(module, gradient_as_bucket_view=True, broadcast_buffers=False)
    mesh = init_device_mesh(next(module.parameters()).device.type, (distributed.size(),))
    for block in blocks_of(module):
        fully_shard(block, mesh=mesh, reshard_after_forward=False)
    fully_shard(module, mesh=mesh, reshard_after_forward=False)
    return module


@contextmanager
def forward_pass(module: nn.Module, *, last: bool) -> Iterator[None]:
    """Around one forward of `module`; gradients are summed over the processes in the backward of the `last` one of a step."""
    if isinstance(module, DistributedDataParallel) and not last:
        with module.no_sync():
            yield
        return
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
        # Gather all weights now. An objective may call the network more or less often on each rank, as the rows fall; gathering within
        # these calls would then wait for a partner that never comes.
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.unshard()
    yield


def local(tensor: Tensor) -> Tensor:
    """This process's shard, sharing its memory; the tensor itself if it is whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor. All processes call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
