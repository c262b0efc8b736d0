"""Distribution matching: its gradient is that of the divergence, what is compared, and what is not forgotten."""

import math

import pytest
import torch
from fakes import LATENT_DIM, random_text
from test_objectives import LENGTH, NULL, TEXT, Analytic, Counting, draws, network
from torch import nn

from meanaudio.config import MatchingConfig, ObjectiveConfig, TimeConfig
from meanaudio.flow import expand
from meanaudio.objectives import Objective
from meanaudio.objectives.distribution_matching import laid_on, outputs

SCALE_ONE = {"omega": 0.5, "kappa": 0.5}


def config(rehearsal: float = 0.0, critic_steps: int = 1, **changes) -> ObjectiveConfig:
    matching = MatchingConfig(critic_steps=critic_steps, rehearsal=rehearsal)
    return ObjectiveConfig(kind="distribution_matching", teacher="given", matching=matching, **(SCALE_ONE | changes))


def drawn(objective, batch: int = 4, seed: int = 0):
    return objective.draw((batch, LENGTH, LATENT_DIM), progress=0.0, generator=torch.Generator().manual_seed(seed))


def normal(mean, std) -> Analytic:
    """The velocity of latents that are normal with `mean` and `std`."""

    def v(z, t, r):
        assert torch.equal(t, r)
        t = expand(t, z)
        variance = (1 - t) ** 2 * std**2 + t**2
        rest = (z - (1 - t) * mean) / variance
        return t * rest - (mean + (1 - t) * std**2 * rest)

    return Analytic(v)


class Affine(nn.Module):
    """A student that makes mean + std * noise of noise in its whole jump."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = nn.Parameter(torch.tensor(mean)), nn.Parameter(torch.tensor(std))

    def condition(self, text):
        return text

    def forward(self, z, t, r, condition):
        assert (t == 1).all()
        assert (r == 0).all()
        return z - (self.mean + self.std * z)


def test_the_student_takes_the_teachers_distribution_for_its_own():
    """Mean and deviation are found from far away, with a critic that knows the student's as they are."""
    objective, student = config(time=TimeConfig(mean=0.0)), Affine(-1.0, 1.5)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
    text, null = random_text([1] * 64), NULL
    for step in range(400):
        critic = normal(student.mean.detach(), student.std.detach())
        made = Objective(objective, normal(0.5, 0.4), critic, student)
        loss = made.loss(student, torch.zeros(64, LENGTH, LATENT_DIM), text, null, drawn(made, 64, step), progress=0.0)
        optimizer.zero_grad()
        loss.per_sample.mean().backward()
        optimizer.step()
    assert abs(student.mean.item() - 0.5) < 0.05
    assert abs(student.std.item() - 0.4) < 0.05


def test_the_gradient_is_that_of_the_kullback_leibler_divergence():
    """Of two normal distributions of one deviation, it is their means' difference, whatever the noise; the loss divides by a distance."""
    student = Affine(0.7, 0.4)
    objective = Objective(config(), normal(0.2, 0.4), normal(0.7, 0.4), student)
    d = drawn(objective)
    made = outputs(student, TEXT, d)
    loss = objective.loss(student, torch.zeros_like(made), TEXT, NULL, d, progress=0.0)
    # x's estimates differ by (1 - weight) times the means' difference, weight being that of z in the estimate.
    t = laid_on(d, -1).t
    share = t**2 / ((1 - t) ** 2 * 0.4**2 + t**2)
    z = (1 - expand(t, made)) * made + expand(t, made) * laid_on(d, -1).noise
    theirs = z - expand(t, z) * normal(0.2, 0.4)(z, t, t, TEXT)
    distance = (made - theirs).abs().flatten(1).mean(1)
    torch.testing.assert_close(loss.per_sample, 0.5 * (0.5 * share / distance) ** 2, rtol=1e-3, atol=1e-6)
    (gradient,) = torch.autograd.grad(loss.per_sample.sum(), student.mean)
    torch.testing.assert_close(gradient, (0.5 * share / distance).sum(), rtol=1e-3, atol=1e-6)


def test_a_student_whom_critic_and_teacher_see_alike_stays():
    net, same = network(), network()
    objective = Objective(config(rehearsal=0.5), same, same, net)
    loss = objective.loss(net, draws()[0], TEXT, NULL, drawn(objective), progress=0.0)
    assert loss.per_sample.abs().max() < 1e-9
    loss.per_sample.mean().backward()
    assert max(p.grad.abs().max() for p in net.parameters() if p.grad is not None) < 1e-4


def test_rehearsing_rows_add_their_distance_from_the_student_at_first():
    """On grids of 2, 4 and 8 steps or at r = t, and the other rows are as they are without rehearsal."""
    objective = Objective(config(rehearsal=0.25), network(), network(interval="relative"), network())
    seen = set[float]()
    for seed in range(30):
        d = drawn(objective, 8, seed)
        steps = 1 / (d.t - d.r)
        assert all(math.isinf(s) or s in (2.0, 4.0, 8.0) for s in steps.tolist())
        moving = d.r < d.t
        assert torch.equal((d.r * steps)[moving], (d.r * steps)[moving].round())
        seen |= set(steps.tolist())
    assert seen == {2.0, 4.0, 8.0, math.inf}
    student, before, other = network(), network(), network(interval="relative")
    with torch.no_grad():
        for p in student.parameters():
            p.add_(0.05)
    some, none = (Objective(config(rehearsal=share), other, network(), before) for share in (0.25, 0.0))
    d, x = drawn(some), draws()[0]
    both = some.loss(student, x, TEXT, NULL, d, progress=0.0)
    alone = none.loss(student, x, TEXT, NULL, drawn(none), progress=0.0)
    one = d.rehearsing
    assert one.sum() == 1
    torch.testing.assert_close(both.per_sample[~one], alone.per_sample[~one], rtol=1e-4, atol=1e-6)
    assert both.logs["forgotten"] > 0
    added = (both.per_sample - alone.per_sample)[one][0]
    torch.testing.assert_close(added, torch.tensor(both.logs["forgotten"]), rtol=1e-3, atol=1e-5)
    assert "forgotten" not in alone.logs


def test_guidance_reaches_the_teacher_alone():
    """One pass of student and critic, two of the teacher in one; only the student's has a graph."""
    nets = [Counting(network()) for _ in range(4)]
    student, teacher, critic, before = nets
    objective = Objective(config(rehearsal=0.25, omega=1.0, kappa=0.5), teacher, critic, before)
    objective.loss(student, draws()[0], TEXT, NULL, drawn(objective), progress=0.0)
    assert [net.batches for net in nets] == [[(5, True)], [(8, False)], [(4, False)], [(1, False)]]


@pytest.mark.parametrize("critic_steps", [1, 3])
def test_every_comparison_has_noise_and_times_of_its_own(critic_steps):
    objective = Objective(config(critic_steps=critic_steps))
    d = drawn(objective)
    several = [laid_on(d, number) for number in range(critic_steps)] + [laid_on(d, -1)]
    for i, a in enumerate(several):
        assert torch.equal(a.t, a.r)
        assert a.keep.all()
        assert not torch.equal(a.noise, d.noise)
        assert not any(torch.equal(a.noise, b.noise) or torch.equal(a.t, b.t) for b in several[i + 1 :])


@pytest.mark.parametrize("share", [0.1, 0.125, 0.2, 0.25, 0.5])
@pytest.mark.parametrize("parts", [1, 2, 3, 4, 6, 8, 16])
def test_every_part_of_a_batch_rehearses_alike(share, parts):
    rehearsing = Objective(config(rehearsal=share)).draw((480, 1, 1), progress=0.0, generator=torch.Generator()).rehearsing
    expected = share * 480 / parts
    assert all(abs(int(rehearsing[part::parts].sum()) - expected) <= 3 for part in range(parts))
