"""A reward: its gradient goes through one step, and the anchor holds."""

import pytest
import torch
from fakes import LATENT_DIM, random_text
from test_distribution_matching import Affine
from test_objectives import LENGTH, NULL, TEXT, network

from meanaudio.config import LoopConfig, ObjectiveConfig, TrainConfig
from meanaudio.objectives import Objective
from meanaudio.types import Asked


def config(anchor: float = 0.0) -> ObjectiveConfig:
    return ObjectiveConfig(kind="reward", judge="given", anchor=anchor)


class Wants:
    """A judge to whose taste every latent is `value`, and who asks in sentence vectors that hold the seed."""

    def __init__(self, value: float) -> None:
        self.value, self.heard = value, []

    def ask(self, seeds):
        text, own = random_text([2] * len(seeds)), seeds[:, 0]
        text.pooled[:, 0] = own.float() / 2**31
        return text, Asked(own[:, None] % 7, own % 2 == 0)

    def __call__(self, latents, asked, seeds):
        self.heard.append((latents.detach(), asked, seeds))
        return (latents - self.value).square().flatten(1).mean(1)


def drawn(objective, batch: int = 4, seed: int = 0):
    return objective.draw((batch, LENGTH, LATENT_DIM), progress=0.0, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("anchor", [0.0, 1.0, 3.0])
def test_outputs_come_to_lie_between_the_judges_taste_and_what_they_were(anchor):
    """The judge's and the anchor's squares share the mean out as their weights say; the deviation is the anchor's share of the first."""
    student, before = Affine(-1.0, 0.8), Affine(-1.0, 0.8)
    objective = Objective(config(anchor), before=before, judge=Wants(1.0))
    optimizer = torch.optim.Adam(student.parameters(), lr=0.03)
    text = random_text([1] * 32)
    for step in range(300):
        loss = objective.loss(student, torch.zeros(32, LENGTH, LATENT_DIM), text, NULL, drawn(objective, 32, step), progress=0.0)
        optimizer.zero_grad()
        loss.per_sample.mean().backward()
        optimizer.step()
    assert student.mean.item() == pytest.approx((1 - anchor) / (1 + anchor), abs=0.03)
    assert student.std.item() == pytest.approx(0.8 * anchor / (1 + anchor), abs=0.03)


def test_every_weight_gets_a_gradient_and_the_others_none():
    net, before = network(), network().requires_grad_(False)
    objective = Objective(config(0.5), before=before, judge=Wants(1.0))
    loss = objective.loss(net, torch.zeros(len(TEXT), LENGTH, LATENT_DIM), TEXT, NULL, drawn(objective, len(TEXT)), progress=0.0)
    loss.per_sample.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert loss.logs["moved"] == 0.0
    assert loss.logs["loss"] == pytest.approx(loss.logs["error"])
    assert (loss.t == 1).all()


def test_the_judge_hears_what_the_network_makes_of_its_own_requests():
    """The captions of the batch are not looked at; each row's request and its hearing have one seed."""
    net, before, judge = network(), network(), Wants(0.0)
    d = drawn(objective := Objective(config(), before=before, judge=judge), len(TEXT))
    loss = objective.loss(net, torch.zeros_like(d.noise), TEXT, NULL, d, progress=0.0)
    ((latents, asked, seeds),) = judge.heard
    wanted, again = judge.ask(d.seeds)
    torch.testing.assert_close(latents, (d.noise - net(d.noise, d.t, d.r, net.condition(wanted))).detach())
    assert seeds is d.seeds
    assert torch.equal(asked.parts, again.parts)
    assert len(d.seeds[:, 0].unique()) == len(d) and len(d.seeds[:, 1].unique()) == 1
    torch.testing.assert_close(loss.per_sample, latents.square().flatten(1).mean(1))
    other = objective.loss(net, torch.zeros_like(d.noise), NULL.expand(len(d)), NULL, d, progress=0.0)
    assert torch.equal(other.per_sample, loss.per_sample)


def test_a_reward_needs_a_judge_a_student_and_a_decoder():
    with pytest.raises(ValueError, match="reward needs judge"):
        ObjectiveConfig(kind="reward")
    with pytest.raises(ValueError, match="goes on with a network that makes a step already: it needs init_from"):
        TrainConfig(objective=config(), loop=LoopConfig(), codec_from="codec")
    with pytest.raises(ValueError, match="it needs codec_from, a folder with a VAE"):
        TrainConfig(objective=config(), init_from="run")
