"""The network: sizes, the official outputs, and the laws its flags promise."""

import json
from pathlib import Path

import pytest
import torch
from fakes import LATENT_DIM, fill, floats, normals, random_text, tiny_network
from torch.nn.functional import pad

from meanaudio.checkpoint import load_into
from meanaudio.config import NetworkConfig, ObjectiveConfig
from meanaudio.convert import release_network_state
from meanaudio.errors import InputError
from meanaudio.flow import expand, interpolate, normal_velocity, path_deviation, velocity
from meanaudio.guidance import guided
from meanaudio.models.layers import SequenceConv, attend
from meanaudio.models.transformer import Transformer, make_network
from meanaudio.objectives.mean_flow import mean_flow_at, total_derivative
from meanaudio.sampling import integrate, uniform_times
from meanaudio.types import TextFeatures, read_together

GOLDEN = Path(__file__).parent.parent / "golden"
HEADS = 2


@pytest.mark.parametrize(("preset", "count"), [("s", 120_422_676), ("l", 479_451_668)])
def test_parameter_counts_are_the_papers(preset, count):
    config = NetworkConfig.model_validate(
        {"preset": preset, "latent_dim": 20, "sequence_dim": 1024, "pooled_dim": 512, "interval": "absolute"}
    )
    with torch.device("meta"):
        network = make_network(config)
    assert sum(p.numel() for p in network.parameters()) == count


# ---------------------------------------------------------------- the official outputs


class Golden:
    """The official small network under our names, with its inputs and outputs."""

    def __init__(self) -> None:
        self.state = floats(GOLDEN / "net_state.safetensors")
        self.io = floats(GOLDEN / "net_io.safetensors")
        self.text = self.features(self.io["text_f"], self.io["text_f_c"])
        self.null = self.features(self.state["empty_string_feat"][None], self.state["empty_string_feat_c"][None])

    @staticmethod
    def features(sequence, pooled) -> TextFeatures:
        return TextFeatures(sequence, pooled, torch.ones(sequence.shape[:2], dtype=torch.bool))

    def network(self, interval: str = "absolute") -> Transformer:
        network = Transformer(
            latent_dim=20, sequence_dim=48, pooled_dim=32, width=64, num_heads=HEADS, joint_depth=2, single_depth=2,
            interval=interval, mask_text=False,
        )  # fmt: skip
        state = {k: v for k, v in self.state.items() if interval != "none" or not k.startswith("r_embed")}
        load_into(network, release_network_state(state, HEADS), "golden")
        return network


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden()


def close(found, expected, tolerance=1e-4):
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    ("latents", "r", "output"),
    [("latent", "r", "out_meanaudio"), ("latent", "t", "out_meanaudio_r_eq_t"), ("latent_long", "r", "out_meanaudio_long")],
)
@torch.no_grad()
def test_outputs_are_the_official_networks(golden, latents, r, output):
    io, network = golden.io, golden.network()
    close(network(io[latents], io["t"], io[r], network.condition(golden.text)), io[output])


@torch.no_grad()
def test_flow_matching_outputs_are_the_official_networks(golden):
    io, network = golden.io, golden.network("none")
    close(network(io["latent"], io["t"], io["r"], network.condition(golden.text)), io["out_fluxaudio"])


@pytest.mark.parametrize("guidance", [1.0, 0.0])
def test_the_mean_flow_loss_and_its_gradients_are_the_official_ones(golden, guidance):
    expected, network = floats(GOLDEN / "meanflow_loss_io.safetensors"), golden.network()
    keep = ~expected["null_text_mask"]
    assert 0 < keep.sum() < len(keep)
    times = expected["t"], expected["r"]
    config = ObjectiveConfig(dropped_rows="release")
    loss = mean_flow_at(
        network, expected["x0_data"], expected["e"], *times, keep, golden.text, golden.null, guidance=guidance, config=config
    )
    close(loss.per_sample, expected["loss"] if guidance else expected["loss_w_None"])
    if not guidance:
        return
    plain = mean_flow_at(
        network, expected["x0_data"], expected["e"], *times, keep, golden.text, golden.null, guidance=guidance,
        config=ObjectiveConfig(dropped_rows="release", adaptive_power=0.0),
    )  # fmt: skip
    close(plain.per_sample, expected["err_sq_mean"])
    loss.per_sample.mean().backward()
    norms = json.loads((GOLDEN / "meanflow_loss_gradnorms.json").read_text())
    official = {name: next(iter(release_network_state({name: golden.state[name]}, HEADS))) for name in norms}
    found = dict(network.named_parameters())
    assert set(official.values()) == set(found)
    for name, ours in official.items():
        assert found[ours].grad.norm().item() == pytest.approx(norms[name], rel=1e-3, abs=1e-5), name
    stored = {k.removeprefix("grad."): v for k, v in expected.items() if k.startswith("grad.")}
    for ours, gradient in release_network_state(stored, HEADS).items():
        close(found[ours].grad, gradient)


def test_the_derivative_along_the_path_is_the_official_one(golden):
    expected, network = floats(GOLDEN / "meanflow_loss_io.safetensors"), golden.network()
    z = interpolate(expected["x0_data"], expected["e"], expected["t"])
    kept = golden.text.where(~expected["null_text_mask"], golden.null)
    close(total_derivative(network, z, expected["t"], expected["r"], expected["v_hat"], kept), expected["dudt"], 3e-4)


def test_the_flow_matching_loss_is_the_official_one(golden):
    expected, shared = floats(GOLDEN / "fm_loss_io.safetensors"), floats(GOLDEN / "meanflow_loss_io.safetensors")
    network, x, noise, t = golden.network("none"), shared["x0_data"], shared["e"], expected["t"]
    kept = golden.text.where(~shared["null_text_mask"], golden.null)
    close(interpolate(x, noise, t), expected["xt"], 1e-6)
    predicted = network(interpolate(x, noise, t), t, t, network.condition(kept))
    close(predicted, expected["pred_v"])
    loss = (predicted - velocity(x, noise)).square().flatten(1).mean(1)
    close(loss, expected["loss"])
    loss.mean().backward()
    close(network.out.weight.grad, expected["grad_final_conv"])


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("scale", [1, 3])
def test_mean_velocity_jumps_are_the_official_ones(golden, steps, scale):
    expected, network = floats(GOLDEN / "sampler_io.safetensors"), golden.network().requires_grad_(False)
    away = network.field(network.condition(golden.null.expand(4)))
    field = guided(network.field(network.condition(golden.text)), away, scale)
    # the official sampler calls no guidance 0
    close(integrate(field, expected["x0"], uniform_times(steps), mean=True), expected[f"mf_steps{steps}_cfg{scale if scale > 1 else 0}"])


@pytest.mark.parametrize(
    ("interval", "steps", "scale", "mean", "output"),
    [
        ("absolute", 2, 3.0, True, "mf_steps2_cfg3_neg"),
        ("none", 5, 4.5, False, "fm_euler5_cfg4.5_rev_neg"),
    ],
)
def test_negative_prompts_are_the_official_ones(golden, interval, steps, scale, mean, output):
    expected, network = floats(GOLDEN / "sampler_io.safetensors"), golden.network(interval).requires_grad_(False)
    negative = golden.features(expected["neg_text_f"], expected["neg_text_f_c"])
    field = guided(network.field(network.condition(golden.text)), network.field(network.condition(negative)), scale)
    close(integrate(field, expected["x0"], uniform_times(steps), mean=mean), expected[output])


@pytest.mark.parametrize(
    ("steps", "scale", "output"), [(5, 1, "fm_euler5_cfg0_rev"), (5, 4.5, "fm_euler5_cfg4.5_rev"), (25, 4.5, "fm_euler25_cfg4.5_rev")]
)
def test_euler_steps_are_the_official_ones(golden, steps, scale, output):
    expected, network = floats(GOLDEN / "sampler_io.safetensors"), golden.network("none").requires_grad_(False)
    field = guided(network.field(network.condition(golden.text)), network.field(network.condition(golden.null.expand(4))), scale)
    close(integrate(field, expected["x0"], uniform_times(steps), mean=False), expected[output], 3e-4)


def test_conversion_leaves_out_what_is_no_weight_and_refuses_what_it_does_not_know(golden):
    extras = {"latent_rot": torch.zeros(1), "text_rot": torch.zeros(1), "t_embed.freqs": torch.zeros(1)}
    ours = release_network_state({**golden.state, **extras}, HEADS)
    assert set(ours) == set(golden.network().state_dict())
    for stranger in ("audio_input_proj.0.gain", "joint_blocks.0.video_block.ffn.w1.weight", "audio_in.0.weight", "optimizer"):
        with pytest.raises(InputError, match="unknown key"):
            release_network_state({stranger: torch.zeros(1)}, HEADS)


# ---------------------------------------------------------------- laws


def inputs(batch: int, length: int = 12):
    t = torch.linspace(0.9, 0.4, batch)
    return normals(batch, length, LATENT_DIM), t, t * torch.linspace(0, 1, batch)


@pytest.mark.parametrize("length", [1, 2, 7, 40, 333])
@torch.no_grad()
def test_any_length_goes_in_and_comes_out(length):
    network = fill(make_network(tiny_network()))
    z, t, r = inputs(2, length)
    out = network(z, t, r, network.condition(random_text([3, 4])))
    assert out.shape == z.shape
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_a_convolution_as_a_product_is_the_convolution(kernel, bias):
    layer, x = fill(SequenceConv(4, 5, kernel, bias=bias)), normals(2, 9, 4)
    close(layer.as_product(x), layer(x))


@torch.no_grad()
def test_padding_is_not_heard_unless_the_network_attends_to_it():
    z, t, r = inputs(2)
    text = random_text([5, 5])
    noisy = text.pad_to(9)
    noisy = TextFeatures(noisy.sequence + 3.0 * ~noisy.mask[..., None], noisy.pooled, noisy.mask)
    for mask_text in (True, False):
        network = fill(make_network(tiny_network(mask_text=mask_text)), std=0.3)
        alone, padded, spoilt = (network(z, t, r, network.condition(x)) for x in (text, text.pad_to(9), noisy))
        # of outputs up to 200; padding that is heard moves them by 20
        assert torch.allclose(alone, padded, atol=1e-3) == mask_text
        assert torch.allclose(alone, spoilt, atol=1e-3) == mask_text


@torch.no_grad()
def test_a_row_is_the_same_alone_and_in_a_batch():
    network = fill(make_network(tiny_network()), std=0.3)
    z, t, r = inputs(3)
    text = random_text([2, 6, 4])
    together = network(z, t, r, network.condition(text))
    for i, length in enumerate([2, 6, 4]):
        row = text[i : i + 1]
        row = TextFeatures(row.sequence[:, :length], row.pooled, row.mask[:, :length])
        close(network(z[i : i + 1], t[i : i + 1], r[i : i + 1], network.condition(row)), together[i : i + 1])


@torch.no_grad()
def test_time_interval_text_and_order_all_matter():
    network = fill(make_network(tiny_network()), std=0.3)
    z, t, r = inputs(2)
    text = random_text([4, 4])
    condition = network.condition(text)
    base = network(z, t, r, condition)
    turned = TextFeatures(text.sequence.flip(1), text.pooled, text.mask)
    for other in (
        network(z, t * 0.9, r * 0.9, condition),
        network(z, t, t, condition),
        network(z.flip(1), t, r, condition).flip(1),
        network(z, t, r, network.condition(turned)),
        network(z, t, r, network.condition(TextFeatures(text.sequence, text.pooled.flip(0), text.mask))),
    ):
        assert (other - base).abs().max() > 1e-3


@torch.no_grad()
def test_a_preconditioned_network_begins_as_the_velocity_of_normal_latents_and_learns_the_rest_in_its_deviation():
    network = make_network(tiny_network(preconditioned=True))
    network.data_std.copy_(torch.linspace(0.1, 2.0, LATENT_DIM))
    text, std, t = random_text([4]).expand(2000), network.data_std, torch.linspace(0.02, 1, 2000)
    x, noise = normals(2000, 6, LATENT_DIM) * std, normals(2000, 6, LATENT_DIM, seed=1)
    z, v = interpolate(x, noise, t), velocity(x, noise)
    begun = network(z, t, t, network.condition(text))
    torch.testing.assert_close(begun, normal_velocity(z, expand(t, z), expand(t, z), std))
    rest = (v - begun) / (std / path_deviation(expand(t, z), std))  # what its layers are asked for
    torch.testing.assert_close(rest.square().mean((0, 1)), torch.ones(LATENT_DIM), atol=0.06, rtol=0)
    assert rest[t < 0.2].square().mean() == pytest.approx(1, abs=0.03)
    fill(network, std=0.3)
    near = network(z[:2], t[:2], t[:2] - 1e-3, network.condition(text[:2])), network(z[:2], t[:2], t[:2], network.condition(text[:2]))
    torch.testing.assert_close(*near, atol=0.02, rtol=0.02)  # nothing breaks where the interval closes


@torch.no_grad()
def test_a_relative_interval_continues_from_a_flow_matching_network():
    before = fill(make_network(tiny_network(interval="none")), std=0.3)
    after = make_network(tiny_network(interval="relative"))
    fresh = {k: v for k, v in after.state_dict().items() if k.startswith("interval_embedding")}
    load_into(after, before.state_dict() | fresh, "test")
    z, t, r = inputs(3)
    text = random_text([3, 4, 5])
    expected = before(z, t, r, before.condition(text))
    for end in (t, r, torch.zeros(3)):
        assert torch.equal(after(z, t, end, after.condition(text)), expected)


@pytest.mark.parametrize(("joint", "single"), [(1, 1), (2, 4), (3, 0), (1, 0)])
@pytest.mark.parametrize("guided", [False, True])
@torch.no_grad()
def test_a_decoupled_interval_is_the_flow_matching_network_where_r_is_t(joint, single, guided):
    """The same weights, bit for bit the same function at r = t, another one below it."""
    shape = {"joint_depth": joint, "single_depth": single, "guidance_embedding": guided}
    before = fill(make_network(tiny_network(interval="none", **shape)), std=0.3)
    after = make_network(tiny_network(interval="decoupled", **shape))
    load_into(after, before.state_dict(), "test")
    z, t, r = inputs(3)
    text, scale = random_text([3, 4, 5]), torch.tensor([1.0, 2.0, 7.0]) if guided else None
    expected = before(z, t, r, before.condition(text), scale)
    assert torch.equal(after(z, t, t, after.condition(text), scale), expected)
    assert (after(z, t, r, after.condition(text), scale) - expected).abs().max() > 1e-3


@torch.no_grad()
def test_two_thirds_of_the_blocks_see_t_and_the_rest_see_r():
    network = fill(make_network(tiny_network(interval="decoupled", joint_depth=2, single_depth=4)), std=0.3)
    blocks, seen = [*network.joint_blocks, *network.single_blocks], []
    for block in blocks:
        stream = block.audio if block in list(network.joint_blocks) else block
        stream.modulation.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    z, t, r = inputs(2)
    condition = network.condition(random_text([3, 4]))
    network(z, t, r, condition)
    early, late = (network.time_embedding(s) + condition.pooled for s in (t, r))
    expected = [early] * 4 + [late] * 2
    assert len(seen) == len(expected)
    for found, wanted in zip(seen, expected, strict=True):
        torch.testing.assert_close(found[:, 0], wanted)


@torch.no_grad()
def test_guidance_limits_start_as_nothing_and_must_be_given():
    plain = fill(make_network(tiny_network(guidance_embedding=True)), std=0.3)
    limited = make_network(tiny_network(guidance_embedding=True, guidance_limits=True))
    fresh = {k: v for k, v in limited.state_dict().items() if k.startswith("guidance_limits")}
    load_into(limited, plain.state_dict() | fresh, "test")
    z, t, r = inputs(2)
    text, scale = random_text([3, 4]), torch.tensor([[2.0, 0.1, 0.9], [5.0, 0.0, 0.6]])
    condition = limited.condition(text)
    expected = plain(z, t, r, plain.condition(text), scale[:, 0])
    assert torch.equal(limited(z, t, r, condition, scale), expected)
    fill(limited, std=0.3)
    base = limited(z, t, r, condition, scale)
    for column in (1, 2):
        moved = scale.clone()
        moved[:, column] += 0.05
        assert (limited(z, t, r, condition, moved) - base).abs().max() > 1e-4
    with pytest.raises(InputError, match="takes 3 guidance inputs and got 1"):
        limited(z, t, r, condition, scale[:, 0])
    with pytest.raises(InputError, match="takes 1 guidance inputs and got 3"):
        plain(z, t, r, plain.condition(text), scale)


@torch.no_grad()
def test_the_guidance_embedding_starts_as_nothing_and_must_be_given():
    without = fill(make_network(tiny_network()), std=0.3)
    with_scale = make_network(tiny_network(guidance_embedding=True))
    fresh = {k: v for k, v in with_scale.state_dict().items() if k.startswith("guidance_embedding")}
    load_into(with_scale, without.state_dict() | fresh, "test")
    z, t, r = inputs(2)
    text = random_text([3, 4])
    expected = without(z, t, r, without.condition(text))
    for scale in (1.0, 4.5):
        assert torch.equal(with_scale(z, t, r, with_scale.condition(text), torch.full((2,), scale)), expected)
    fill(with_scale, std=0.3)
    one, many = (with_scale(z, t, r, with_scale.condition(text), torch.full((2,), s)) for s in (1.0, 4.5))
    assert (one - many).abs().max() > 1e-3
    with pytest.raises(InputError, match="guidance scale"):
        with_scale(z, t, r, with_scale.condition(text))
    with pytest.raises(InputError, match="guidance scale"):
        without(z, t, r, without.condition(text), torch.ones(2))


@torch.no_grad()
def test_a_fresh_network_is_silent():
    network = make_network(tiny_network())
    z, t, r = inputs(2)
    assert torch.equal(network(z, t, r, network.condition(random_text([3, 4]))), torch.zeros_like(z))


@pytest.mark.parametrize("change", ["sequence", "pooled"])
def test_a_condition_of_other_widths_is_refused(change):
    network = make_network(tiny_network())
    text = random_text([3])
    wide = {"sequence": text.sequence, "pooled": text.pooled, "mask": text.mask}
    wide[change] = pad(wide[change], (0, 4))
    with pytest.raises(InputError, match="20"):
        network.condition(TextFeatures(**wide))


@torch.no_grad()
def test_bf16_autocast_is_within_two_percent():
    network = fill(make_network(tiny_network()), std=0.15)
    z, t, r = inputs(4, 40)
    text = random_text([3, 4, 9, 2])
    exact = network(z, t, r, network.condition(text))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(z, t, r, network.condition(text)).float()
    assert 0 < (exact - rounded).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_16_bits_is_that_of_32_and_so_is_its_gradient(masked):
    torch.manual_seed(0)
    mask = torch.rand(3, 1, 1, 37) > 0.4 if masked else None
    exact = [torch.randn(3, 2, 37, 16, requires_grad=True) for _ in range(3)]
    rounded = [x.detach().bfloat16().requires_grad_() for x in exact]
    wanted, found = attend(*exact, mask), attend(*rounded, mask)
    assert found.dtype == torch.bfloat16
    assert (found.float() - wanted).norm() < 0.01 * wanted.norm()
    for out, inputs in ((wanted, exact), (found, rounded)):
        (out.float() * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        assert all(x.grad is not None for x in inputs)
    for x, y in zip(exact, rounded, strict=True):
        assert (y.grad.float() - x.grad).norm() < 0.02 * x.grad.norm()
    if mask is not None:
        changed = exact[1].detach().masked_fill(~mask.transpose(2, 3), 50.0).bfloat16()
        assert torch.equal(attend(rounded[0], changed, rounded[2], mask), found)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_texts_read_together_are_that_text_and_others_are_heard_in_any_order(dtype):
    network = fill(make_network(tiny_network()))
    z, t, r = inputs(1, 24)
    texts = random_text([5, 3, 7])
    alone, same, one, other = (
        network.condition(text) for text in (texts[:1], *(read_together(texts[rows]) for rows in ([0, 0, 0], [0, 1, 2], [0, 2, 1])))
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        made = [network(z, t, r, condition).float() for condition in (alone, same, one, other)]
    close = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.03 * made[0].abs().max().item(), "rtol": 0.0}
    torch.testing.assert_close(made[1], made[0], **close)
    torch.testing.assert_close(made[3], made[2], **close)
    if dtype == torch.float32:
        assert (made[2] - made[0]).norm() > 1e-3 * made[0].norm()


@torch.no_grad()
def test_texts_read_together_are_the_same_beside_a_longer_one():
    network = fill(make_network(tiny_network()))
    z, t, r = inputs(2, 24)
    texts = random_text([5, 3, 19])
    together = read_together(texts[:2])
    both = network(z, t, r, network.condition(TextFeatures.cat([together, texts[2:]])))
    torch.testing.assert_close(both[:1], network(z[:1], t[:1], r[:1], network.condition(together)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(both[1:], network(z[1:], t[1:], r[1:], network.condition(texts[2:])), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_text_features_are_not_changed():
    network = fill(make_network(tiny_network()))
    text = random_text([3, 4])
    copies = [x.clone() for x in (text.sequence, text.pooled, text.mask)]
    network(*inputs(2), network.condition(text))
    assert all(torch.equal(a, b) for a, b in zip((text.sequence, text.pooled, text.mask), copies, strict=True))


@torch.no_grad()
def test_text_that_is_all_padding_gives_finite_output():
    network = fill(make_network(tiny_network()))
    text = random_text([3, 4])
    empty = TextFeatures(text.sequence, text.pooled, torch.zeros_like(text.mask))
    assert torch.isfinite(network(*inputs(2), network.condition(empty))).all()
