"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685): a small file that changes a large network.

A matrix W of a block becomes W + alpha / rank up down, with up [out, rank] zero at first and W frozen. For a convolution `down` is one too,
with the same kernel, and `up` looks at one place. In training they are computed beside W; for generation they are added to it.
A folder of adapters holds lora.safetensors and lora.json, which names the checkpoint they were trained on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from meanaudio.checkpoint import file_hash, load_weights, read_json, save_weights, some, write_json
from meanaudio.config import LoRAConfig, LoRAFileConfig, NetworkConfig, parse
from meanaudio.errors import InputError
from meanaudio.models.layers import SequenceConv, projection
from meanaudio.models.transformer import NETWORK_FILE, Transformer, load_network
from meanaudio.precision import hold_in_bfloat16

LORA_FILE, DESCRIPTION_FILE = "lora.safetensors", "lora.json"
# The ends of the names of a block's matrices, by what a config calls them.
TARGETS = {"attention": ("attention.qkv", "out"), "mlp": ("mlp.w1", "mlp.w2", "mlp.w3")}
BLOCKS = ("joint_blocks.", "single_blocks.")
PARTS = (".down.weight", ".up.weight")


def adapted_layers(network: nn.Module, config: LoRAConfig) -> Iterator[tuple[str, nn.Linear | SequenceConv]]:
    """The matrices that `config` means, by name."""
    ends = tuple(f".{end}" for target in config.targets for end in TARGETS[target])
    for name, layer in network.named_modules():
        if name.startswith(BLOCKS) and name.endswith(ends) and isinstance(layer, nn.Linear | SequenceConv):
            yield name, layer


def add_adapters(network: nn.Module, config: LoRAConfig) -> None:
    """Give the matrices adapters, in place, and freeze everything else. The network's outputs stay as they are, and so do its names."""
    network.requires_grad_(False)
    for _, layer in list(adapted_layers(network, config)):
        outputs, inputs, *kernel = layer.weight.shape
        up = nn.Linear(config.rank, outputs, bias=False)
        nn.init.zeros_(up.weight)
        layer.add_module("down", projection(inputs, config.rank, *(kernel or [1]), bias=False))
        layer.add_module("up", up)
        layer.register_forward_hook(_Beside(config.alpha / config.rank))


@dataclass(frozen=True)
class _Beside:
    """Forward hook of an adapted layer."""

    scale: float

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return output + self.scale * layer.get_submodule("up")(layer.get_submodule("down")(inputs[0]))


def adapter_state(network: nn.Module) -> dict[str, Tensor]:
    """The adapters' weights alone."""
    return {name: value for name, value in network.state_dict().items() if name.endswith(PARTS)}


def save_adapters(folder: Path, network: nn.Module, config: LoRAConfig, base: Path) -> None:
    """Write the adapters of `network`, which were trained on the checkpoint `base`."""
    described = LoRAFileConfig(base=base.resolve().name, base_hash=file_hash(base / NETWORK_FILE), lora=config)
    save_weights(folder / LORA_FILE, adapter_state(network))
    write_json(folder / DESCRIPTION_FILE, described.model_dump(mode="json"))


def load_with_adapters(
    base: Path, config: NetworkConfig, lora: str | Path, *, dtype: torch.dtype = torch.float32, finite: bool = True
) -> Transformer:
    """The network of the checkpoint `base` with adapters added to its weights: as `load_network`.

    lora: their folder, or "folder:scale" to take more or less of them than was trained. Raises InputError if they were trained on another
    checkpoint, or don't fit this one.
    """
    folder, scale = parse_lora(lora)
    path = folder / DESCRIPTION_FILE
    if not path.is_file():
        raise InputError(f"{folder}: no {DESCRIPTION_FILE} in it; --lora wants the folder of an adapter, such as a LoRA run's export/")
    described = parse(LoRAFileConfig, read_json(path), str(path))
    if file_hash(base / NETWORK_FILE) != described.base_hash:
        raise InputError(f"{folder}: trained on another network ({described.base}, {described.base_hash[:12]}) than that of {base}")
    network = load_network(base, config, finite=finite)
    merge(network, load_weights(folder / LORA_FILE), described.lora, scale, folder / LORA_FILE)
    if dtype == torch.bfloat16:
        hold_in_bfloat16(network)
    return network


def merge(network: nn.Module, state: Mapping[str, Tensor], config: LoRAConfig, scale: float, source: Path) -> None:
    """Add `scale` times the adapters `state` to the network's weights, in place. Raises InputError if they are another network's."""
    layers = dict(adapted_layers(network, config))
    wanted: dict[str, tuple[int, ...]] = {}
    for name, layer in layers.items():
        outputs, inputs, *kernel = layer.weight.shape
        wanted |= {f"{name}{PARTS[0]}": (config.rank, inputs, *kernel), f"{name}{PARTS[1]}": (outputs, config.rank)}
    if wrong := [key for key in wanted.keys() | state.keys() if key not in wanted or key not in state or state[key].shape != wanted[key]]:
        raise InputError(f"{source}: adapters of another network; missing, not expected or misshaped: {some(sorted(wrong))}")
    for name, layer in layers.items():
        down, up = (state[f"{name}{part}"].float() for part in PARTS)
        change = torch.einsum("or,r...->o...", up, down) * (scale * config.alpha / config.rank)
        layer.weight = nn.Parameter((layer.weight.float() + change).to(layer.weight.dtype), requires_grad=False)


def parse_lora(lora: str | Path) -> tuple[Path, float]:
    """folder, or folder:scale."""
    name, colon, number = str(lora).rpartition(":")
    if Path(lora).is_dir() or not colon:
        return Path(lora), 1.0
    try:
        scale = float(number)
    except ValueError:
        return Path(lora), 1.0
    if not math.isfinite(scale):
        raise InputError(f"lora {str(lora)!r}: the scale after the colon must be a finite number")
    return Path(name), scale
