"""Low-rank adapters: what they leave alone, what they add, and to whom they may be added."""

import json

import pytest
import torch
from fakes import LATENT_DIM, fill, normals, random_text, tiny_network

from meanaudio.checkpoint import load_weights, save_weights
from meanaudio.config import LoRAConfig, NetworkConfig
from meanaudio.errors import InputError
from meanaudio.models.lora import LORA_FILE, adapter_state, add_adapters, load_with_adapters, parse_lora, save_adapters
from meanaudio.models.transformer import NETWORK_FILE, load_network, make_network
from meanaudio.objectives.mean_flow import total_derivative

BASE = tiny_network(joint_depth=2, single_depth=2)
TEXT = random_text([3, 5])


@pytest.fixture
def base(tmp_path):
    """A folder with a network's weights."""
    save_weights(tmp_path / "base" / NETWORK_FILE, fill(make_network(BASE), std=0.2).state_dict())
    return tmp_path / "base"


def adapted(base, config, *, seed: int | None = None, network: NetworkConfig = BASE):
    """The network of `base` with adapters: blank, or drawn from `seed`."""
    net = make_network(network)
    add_adapters(net, config)
    net.load_state_dict(load_weights(base / NETWORK_FILE), strict=False)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        for p in adapter_parameters(net):
            p.data = torch.randn(p.shape, generator=generator) * 0.2
    return net


def adapter_parameters(net):
    return [p for p in net.parameters() if p.requires_grad]


def outputs(net):
    z, t, r = normals(2, 6, LATENT_DIM), torch.tensor([0.9, 0.4]), torch.tensor([0.1, 0.4])
    return net(z, t, r, net.condition(TEXT))


# ---------------------------------------------------------------- in training


@pytest.mark.parametrize("amp", [False, True])
@torch.no_grad()
def test_at_first_the_network_is_the_base_bit_for_bit(base, amp):
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        assert torch.equal(outputs(adapted(base, LoRAConfig(rank=3))), outputs(load_network(base, BASE)))


def test_a_zero_start_still_moves(base):
    """`up` is zero, so the first gradient is its alone; after one step both move."""
    net = adapted(base, LoRAConfig(rank=3))
    outputs(net).square().mean().backward()
    for name, p in net.named_parameters():
        assert (p.grad is not None) == name.endswith((".up.weight", ".down.weight")), name
        if name.endswith(".up.weight"):
            assert p.grad.abs().max() > 0, name
        if name.endswith(".down.weight"):
            assert p.grad.abs().max() == 0, name


@pytest.mark.parametrize(
    ("targets", "ends"),
    [
        (("attention",), {"attention.qkv", "out"}),
        (("mlp",), {"mlp.w1", "mlp.w2", "mlp.w3"}),
        (("attention", "mlp"), {"attention.qkv", "out", "mlp.w1", "mlp.w2", "mlp.w3"}),
    ],
)
def test_only_the_named_matrices_of_the_blocks_are_adapted(targets, ends):
    net = make_network(BASE)
    before = dict(net.named_parameters())
    add_adapters(net, LoRAConfig(rank=2, targets=targets))
    found = {name.removesuffix(".up.weight") for name in adapter_state(net) if name.endswith(".up.weight")}
    # joint blocks have an audio and a text stream, the last text stream has q, k, v alone
    streams = [*(f"joint_blocks.{i}.{s}" for i in range(2) for s in ("audio", "text")), *(f"single_blocks.{i}" for i in range(2))]
    expected = {f"{s}.{e}" for s in streams for e in ends if s != "joint_blocks.1.text" or e == "attention.qkv"}
    assert found == expected
    after = dict(net.named_parameters())
    assert all(after[name] is p and not p.requires_grad for name, p in before.items())
    for name in found:
        weight, up, down = (after[f"{name}.{part}weight"] for part in ("", "up.", "down."))
        assert up.shape == (weight.shape[0], 2)
        assert down.shape == (2, *weight.shape[1:])


def test_the_derivative_along_the_path_sees_the_adapters(base):
    net = adapted(base, LoRAConfig(rank=3), seed=1)
    z, v, t, r = normals(2, 6, LATENT_DIM), normals(2, 6, LATENT_DIM, seed=1), torch.tensor([0.9, 0.4]), torch.tensor([0.1, 0.2])
    found = total_derivative(net, z, t, r, v, TEXT)
    net.double()
    wide = type(TEXT)(TEXT.sequence.double(), TEXT.pooled.double(), TEXT.mask)
    z, v, t, r = z.double(), v.double(), t.double(), r.double()
    with torch.no_grad():
        ahead, behind = (net(z + s * v, t + s, r, net.condition(wide)) for s in (1e-5, -1e-5))
    torch.testing.assert_close(found.double(), (ahead - behind) / 2e-5, atol=1e-4, rtol=1e-3)
    assert (found - total_derivative(load_network(base, BASE), z.float(), t.float(), r.float(), v.float(), TEXT)).abs().max() > 1e-3


# ---------------------------------------------------------------- added to the weights


@pytest.fixture
def trained(base, tmp_path):
    """(a network with drawn adapters, their folder)."""
    config = LoRAConfig(rank=3, alpha=1.5)
    net = adapted(base, config, seed=1)
    save_adapters(tmp_path / "lora", net, config, base)
    return net, tmp_path / "lora"


@torch.no_grad()
def test_added_to_the_weights_they_do_what_they_did_beside_them(base, trained):
    net, folder = trained
    merged = load_with_adapters(base, BASE, folder)
    assert not any(p.requires_grad for p in merged.parameters())
    assert merged.state_dict().keys() == load_network(base, BASE).state_dict().keys()
    torch.testing.assert_close(outputs(merged), outputs(net), atol=1e-5, rtol=1e-5)
    assert (outputs(merged) - outputs(load_network(base, BASE))).abs().max() > 1e-2
    assert sorted(p.name for p in folder.iterdir()) == ["lora.json", LORA_FILE]
    assert (folder / LORA_FILE).stat().st_size < 0.5 * (base / NETWORK_FILE).stat().st_size


@torch.no_grad()
def test_the_scale_says_how_much_of_them(base, trained):
    _, folder = trained
    none, half, whole = (load_with_adapters(base, BASE, f"{folder}:{scale}").state_dict() for scale in ("0", "0.5", "1.0"))
    before = load_weights(base / NETWORK_FILE)
    for key, value in before.items():
        assert torch.equal(none[key], value)
        torch.testing.assert_close(half[key], (value + whole[key]) / 2)
    twice = load_with_adapters(base, BASE, f"{folder}:2.0").state_dict()
    assert any(not torch.equal(twice[key], whole[key]) for key in before)


def test_in_bf16_the_sum_is_rounded_not_its_terms(base, trained):
    _, folder = trained
    exact = load_with_adapters(base, BASE, folder).state_dict()
    for key, value in load_with_adapters(base, BASE, folder, dtype=torch.bfloat16).state_dict().items():
        assert torch.equal(value, exact[key].to(value.dtype))


def test_a_folder_and_its_scale(tmp_path):
    (tmp_path / "a:2").mkdir()
    assert parse_lora(str(tmp_path / "a:2")) == (tmp_path / "a:2", 1.0)
    assert parse_lora("x/y") == (type(tmp_path)("x/y"), 1.0)
    assert parse_lora("x/y:-0.5") == (type(tmp_path)("x/y"), -0.5)
    assert parse_lora("C:/x") == (type(tmp_path)("C:/x"), 1.0)
    for number in ("nan", "inf"):
        with pytest.raises(InputError, match="finite"):
            parse_lora(f"x:{number}")


# ---------------------------------------------------------------- refusals


def test_another_base_is_refused_by_name(base, trained):
    _, folder = trained
    state = load_weights(base / NETWORK_FILE)
    save_weights(base / NETWORK_FILE, {k: v + 1e-3 for k, v in state.items()})
    with pytest.raises(InputError, match=r"lora: trained on another network \(base, [0-9a-f]{12}\) than that of .*base"):
        load_with_adapters(base, BASE, folder)


def change_shape(state, described):
    key = next(iter(state))
    state[key] = state[key][:1].contiguous()
    return key


def drop_one(state, described):
    key = next(iter(state))
    del state[key]
    return key


def add_one(state, described):
    state["elsewhere.up.weight"] = torch.zeros(1)
    return "elsewhere.up.weight"


def state_another_rank(state, described):
    described["lora"]["rank"] = 4
    return "down.weight"


def spoil(state, described):
    key = next(iter(state))
    state[key] = state[key] * float("nan")
    return "NaN"


def state_nonsense(state, described):
    described["lora"]["rnak"] = 4
    return "did you mean 'rank'"


@pytest.mark.parametrize("damage", [change_shape, drop_one, add_one, state_another_rank, spoil, state_nonsense])
def test_adapters_that_do_not_fit_are_refused_with_the_reason(base, trained, damage):
    _, folder = trained
    state, described = load_weights(folder / LORA_FILE), json.loads((folder / "lora.json").read_text())
    told = damage(state, described)
    save_weights(folder / LORA_FILE, state)
    (folder / "lora.json").write_text(json.dumps(described))
    with pytest.raises(InputError) as error:
        load_with_adapters(base, BASE, folder)
    assert told in str(error.value)
    assert str(folder) in str(error.value)


def test_a_folder_without_adapters_is_refused(base, tmp_path):
    with pytest.raises(InputError, match=r"no lora\.json"):
        load_with_adapters(base, BASE, tmp_path / "nowhere")
