"""BigVGAN: the official outputs, in both forms of its weights, and the filters' law."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from fakes import floats, normals, torch_threads

from meanaudio.checkpoint import load_into
from meanaudio.codec.bigvgan import BigVGAN, SmoothSnake, low_pass
from meanaudio.codec.snake_kernel import BLOCK
from meanaudio.config import MelConfig
from meanaudio.convert.codec import convert_vocoder, fold_weight_norm
from meanaudio.errors import InputError

GOLDEN = Path(__file__).parent.parent / "golden"
PAIR = ".parametrizations.weight.original"


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return floats(GOLDEN / "bigvgan_io.safetensors")


def stored(form: str) -> dict[str, torch.Tensor]:
    """The official weights with weight norm in torch's new naming, in its old one, or folded."""
    state = floats(GOLDEN / "bigvgan_state.safetensors")
    if form == "legacy":
        return {k.replace(f"{PAIR}0", ".weight_g").replace(f"{PAIR}1", ".weight_v"): v for k, v in state.items()}
    return fold_weight_norm(state) if form == "folded" else state


def relative(found, expected) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("form", ["parametrized", "legacy", "folded"])
def test_the_sound_is_the_official_one(golden, form):
    config, state = convert_vocoder(stored(form), MelConfig(), "golden")
    assert (config.width, config.rates, config.block_kernels) == (64, (4, 4, 2, 2, 2, 2), (3, 7, 11))
    vocoder = BigVGAN(80, config.width, config.rates, config.kernels, config.block_kernels, config.dilations).requires_grad_(False)
    load_into(vocoder, state, "golden")
    audio = vocoder(golden["mel"])
    assert audio.shape == (2, 7 * 256)
    assert relative(audio, golden["wav"][:, 0]) < 2e-5


def test_the_activation_is_the_official_one(golden):
    torch.testing.assert_close(low_pass(), golden["act_filter"].flatten(), atol=1e-7, rtol=0)
    snake = SmoothSnake(32).requires_grad_(False)
    snake.log_alpha.copy_(golden["act_alpha"])
    snake.log_beta.copy_(golden["act_beta"])
    assert relative(snake(golden["act_in"]), golden["act_out"]) < 1e-6


def random_snake(channels: int) -> SmoothSnake:
    snake = SmoothSnake(channels)
    with torch.no_grad():
        snake.log_alpha.copy_(normals(channels, seed=1))
        snake.log_beta.copy_(normals(channels, seed=2))
    return snake


@pytest.mark.parametrize("length", [1, 2, 5, 64, BLOCK - 1, BLOCK, BLOCK + 1, BLOCK + 2, 3 * BLOCK + 7])
@pytest.mark.parametrize("fused", [True, False])
def test_the_activation_is_its_definition(length, fused):
    """Against zero-stuffing, a transposed convolution and a strided one, the textbook way. Without gradients it is one kernel."""
    x, taps = normals(2, 3, length), low_pass()[None, None].expand(3, 1, -1)
    pad, snake = torch.nn.functional.pad, random_snake(3).requires_grad_(not fused)
    doubled = 2 * torch.nn.functional.conv_transpose1d(pad(x, (5, 5), mode="replicate"), taps, stride=2, groups=3)[..., 15:-15]
    expected = torch.nn.functional.conv1d(pad(snake.snake(doubled), (5, 6), mode="replicate"), taps, stride=2, groups=3)
    made = snake(x)
    assert made.requires_grad != fused
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)


def test_the_fused_activation_reads_and_writes_halves():
    x, snake = normals(2, 5, BLOCK + 100), random_snake(5).requires_grad_(False)
    exact = snake(x.bfloat16().float())
    torch.testing.assert_close(snake(x.bfloat16()), exact.bfloat16(), atol=0, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(snake(x), snake(x).bfloat16(), atol=0, rtol=0)
    torch.testing.assert_close(snake(x.mT.contiguous().mT), snake(x), atol=0, rtol=0)  # whatever lies where in memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cut", [0, 9])
def test_the_fused_activation_of_a_sum(dtype, cut):
    """The sum beside its activation, of rows that may have been cut from longer ones; what was cut off is not heard."""
    x, added, snake = normals(2, 5, BLOCK + 100), normals(2, 5, BLOCK + 100 + cut, seed=3).to(dtype), random_snake(5).requires_grad_(False)
    added = added[..., : added.shape[2] - cut]
    total, active = snake.of_sum(x, added)
    torch.testing.assert_close(total, x + added, atol=0, rtol=0)
    torch.testing.assert_close(active, snake(x + added), atol=0, rtol=0)
    torch.testing.assert_close(snake(added), snake(added.contiguous()), atol=0, rtol=0)
    slow = random_snake(5).of_sum(x, added)
    torch.testing.assert_close((total, active), slow, atol=1e-5, rtol=1e-5, check_dtype=False)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_however_many_threads_share_the_rows(threads):
    x, snake = normals(2, 5, 300), random_snake(5).requires_grad_(False)
    expected = snake(x)
    with torch_threads(threads):
        torch.testing.assert_close(snake(x), expected, atol=0, rtol=0)


ONE_THREAD = """
import torch
from meanaudio.codec.fused_snake import fused_snake
torch.set_num_threads(1)
fused_snake(torch.zeros(2, 5, 300), torch.ones(5), torch.ones(5), torch.ones(12), torch.float32)
print(torch.get_num_threads())
"""


def test_torch_uses_as_many_threads_after_it_as_before():
    """Numba's first use in a process would set torch's number to its own."""
    env = {**os.environ, "NUMBA_NUM_THREADS": "3"}
    made = subprocess.run([sys.executable, "-c", ONE_THREAD], capture_output=True, text=True, check=True, env=env)
    assert made.stdout.strip() == "1"


def test_callers_in_several_threads_get_their_own():
    snake, inputs = random_snake(5).requires_grad_(False), [normals(1, 5, 3000, seed=k) for k in range(8)]
    expected = [snake(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for made, right in zip(pool.map(snake, inputs), expected, strict=True):
            torch.testing.assert_close(made, right, atol=0, rtol=0)


def test_in_bfloat16_the_sound_stays_near(golden):
    """Only the residual blocks round to 8 bits. This network has 1 to 32 channels, over which errors hardly average."""
    config, state = convert_vocoder(stored("folded"), MelConfig(), "golden")
    vocoder = BigVGAN(80, config.width, config.rates, config.kernels, config.block_kernels, config.dilations).requires_grad_(False)
    load_into(vocoder, state, "golden")
    with torch.autocast("cpu", torch.bfloat16):
        assert relative(vocoder(golden["mel"]), golden["wav"][:, 0]) < 0.04


def test_other_filters_and_other_mels_are_refused():
    state = stored("folded")
    with pytest.raises(InputError, match="low-pass"):
        convert_vocoder({**state, "activation_post.upsample.filter": torch.ones(1, 1, 12)}, MelConfig(), "here")
    with pytest.raises(InputError, match="80 mel bands"):
        convert_vocoder(state, MelConfig(n_mels=100), "here")
    with pytest.raises(InputError, match="320 samples"):
        convert_vocoder(state, MelConfig(hop_length=320), "here")
