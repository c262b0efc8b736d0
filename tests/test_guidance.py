"""Guidance: scale 1 is nothing, the rest is linear, and evaluations are counted."""

import pytest
import torch
from fakes import normals

from meanaudio.errors import InputError
from meanaudio.flow import expand
from meanaudio.guidance import BASE, ClassifierGuidance, check_limits, choose, classifier_guided, guided


class Constant:
    """A field with one answer, that counts its evaluations and remembers its arguments."""

    def __init__(self, answer) -> None:
        self.answer, self.calls = answer, []

    def __call__(self, z, t, r):
        self.calls.append((z, t, r))
        return self.answer


def fields():
    return Constant(normals(2, 3, 4)), Constant(normals(2, 3, 4, seed=1))


def test_scale_one_is_the_field_itself_and_costs_nothing():
    main, reference = fields()
    assert guided(main, reference, 1) is main
    assert guided(main, reference, 1.0) is main
    assert reference.calls == []


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.5, 3.0, 7.5])
def test_guidance_moves_on_the_line_through_both_fields(scale):
    main, reference = fields()
    z, t, r = normals(2, 3, 4, seed=2), torch.ones(2), torch.zeros(2)
    found = guided(main, reference, scale)(z, t, r)
    torch.testing.assert_close(found, reference.answer + scale * (main.answer - reference.answer))
    for field in (main, reference):
        ((z_seen, t_seen, r_seen),) = field.calls
        assert z_seen is z
        assert t_seen is t
        assert r_seen is r


def test_guidance_of_a_field_by_itself_is_that_field():
    main, _ = fields()
    torch.testing.assert_close(guided(main, main, 5.0)(normals(2, 3, 4), torch.ones(2), torch.zeros(2)), main.answer)


def test_guided_fields_can_be_guided_again():
    main, reference = fields()
    twice = guided(guided(main, reference, 2.0), reference, 3.0)
    torch.testing.assert_close(
        twice(normals(2, 3, 4), torch.ones(2), torch.zeros(2)),
        reference.answer + 6 * (main.answer - reference.answer),
        atol=1e-5,
        rtol=1e-5,
    )
    assert len(reference.calls) == 2


# ---------------------------------------------------------------- limits


@pytest.mark.parametrize(("limits", "share"), [((0.0, 1.0), 3), ((0.4, 0.6), 1), ((0.5, 0.5001), 1), ((0.6, 0.7), 0), ((0.0, 0.5), 2)])
def test_guidance_acts_within_its_limits_and_costs_nothing_outside(limits, share):
    """Three steps, at t = 1, 0.5 and 0.25."""
    main, reference = fields()
    field = guided(main, reference, 3.0, limits)
    for t in (1.0, 0.5, 0.25):
        found = field(normals(2, 3, 4), torch.full((2,), t), torch.zeros(2))
        inside = limits[0] <= t <= limits[1]
        torch.testing.assert_close(found, reference.answer + 3 * (main.answer - reference.answer) if inside else main.answer)
    assert len(reference.calls) == share
    assert len(main.calls) == 3


def test_rows_on_both_sides_of_a_limit_are_told_apart():
    main, reference = fields()
    found = guided(main, reference, 2.0, (0.5, 1.0))(normals(2, 3, 4), torch.tensor([0.9, 0.1]), torch.zeros(2))
    torch.testing.assert_close(found[0], 2 * main.answer[0] - reference.answer[0])
    assert torch.equal(found[1], main.answer[1])


@pytest.mark.parametrize("limits", [(0.5, 0.5), (0.6, 0.4), (-0.1, 1.0), (0.0, 1.1), (float("nan"), 1.0)])
def test_limits_that_hold_no_time_are_refused(limits):
    with pytest.raises(InputError, match="0 <= low < high <= 1"):
        check_limits(limits)


# ---------------------------------------------------------------- a classifier that only looks


class Judge:
    """A classifier with one answer for each row, that remembers what it was shown."""

    classes = ("dog", "rain", "bell", "door")

    def __init__(self, probabilities) -> None:
        self.logits, self.seen = torch.tensor(probabilities).log(), []

    def __call__(self, latents):
        self.seen.append(latents)
        return self.logits


class References:
    """Fields to move away from: the class's number everywhere, -1 for the base."""

    def __init__(self) -> None:
        self.calls = []

    def __call__(self, z, t, r, rows, choice):
        assert len(z) == len(t) == len(r) == len(rows) == len(choice)
        self.calls.append((rows.tolist(), choice.tolist()))
        return choice[:, None, None].float().expand_as(z)


WANTED = torch.tensor([[True, False, False, False], [False, True, False, True]])
CONFIDENT = [[0.97, 0.01, 0.01, 0.01], [0.01, 0.58, 0.01, 0.4]]
CONFUSED = [[0.2, 0.1, 0.6, 0.1], [0.01, 0.58, 0.01, 0.4]]
AT = (torch.full((2,), 0.8), torch.full((2,), 0.4))


def test_a_confident_classifier_is_the_identity_and_costs_no_second_pass():
    main, references, judge = fields()[0], References(), Judge(CONFIDENT)
    z = normals(2, 3, 4, seed=5)
    found = classifier_guided(main, references, judge, WANTED, ClassifierGuidance())(z, *AT)
    assert torch.equal(found, main.answer)
    assert references.calls == []
    assert len(main.calls) == 1
    torch.testing.assert_close(judge.seen[0], z - 0.8 * main.answer)


def test_a_confused_row_moves_away_from_its_rival_by_its_confusion_and_the_other_rows_stay():
    main, references = fields()[0], References()
    settings = ClassifierGuidance(scale=5.0, power=2.0, reference="rival")
    found = classifier_guided(main, references, Judge(CONFUSED), WANTED, settings)(normals(2, 3, 4), *AT)
    assert references.calls == [([0], [2])]
    scale = 1 + 4 * (0.6 / 0.8) ** 2
    torch.testing.assert_close(found[0], 2 + scale * (main.answer[0] - 2))
    assert torch.equal(found[1], main.answer[1])


def test_with_a_base_reference_every_row_costs_two_passes_and_the_rival_takes_the_place_of_the_base():
    """Classifier-free guidance or autoguidance at scale 2; the confused row's own scale is no lower."""
    for limit, scale in ((5.0, 2 + 3 * 0.75), (1.5, 2.0)):
        main, references = fields()[0], References()
        settings = ClassifierGuidance(scale=limit, reference="rival")
        field = classifier_guided(main, references, Judge(CONFUSED), WANTED, settings, base_scale=2.0)
        found = field(normals(2, 3, 4), *AT)
        assert references.calls == [([0, 1], [2, BASE])]
        torch.testing.assert_close(found[0], 2 + scale * (main.answer[0] - 2))
        torch.testing.assert_close(found[1], BASE + 2.0 * (main.answer[1] - BASE))


@pytest.mark.parametrize("base_scale", [1.0, 2.0])
def test_without_a_rival_the_base_stays_the_reference_and_the_confused_row_moves_further(base_scale):
    main, references = fields()[0], References()
    field = classifier_guided(main, references, Judge(CONFUSED), WANTED, ClassifierGuidance(scale=5.0), base_scale=base_scale)
    found = field(normals(2, 3, 4), *AT)
    assert references.calls == [([0], [BASE]) if base_scale == 1 else ([0, 1], [BASE, BASE])]
    torch.testing.assert_close(found[0], BASE + (base_scale + (5 - base_scale) * 0.75) * (main.answer[0] - BASE))
    torch.testing.assert_close(found[1], BASE + base_scale * (main.answer[1] - BASE))


def test_with_a_confident_classifier_and_a_base_it_is_guidance_by_the_base():
    main, references = fields()[0], References()
    field = classifier_guided(main, references, Judge(CONFIDENT), WANTED, ClassifierGuidance(), base_scale=4.0)
    z = normals(2, 3, 4)
    base = guided(main, lambda z, t, r: torch.full_like(z, BASE), 4.0)
    torch.testing.assert_close(field(z, *AT), base(z, *AT))


def test_scale_one_is_no_classifier_guidance_and_asks_nobody():
    main, references, judge = fields()[0], References(), Judge(CONFUSED)
    assert classifier_guided(main, references, judge, WANTED, ClassifierGuidance(scale=1.0)) is main
    field = classifier_guided(main, references, judge, WANTED, ClassifierGuidance(scale=1.0), base_scale=2.0)
    field(normals(2, 3, 4), *AT)
    assert references.calls == [([0, 1], [BASE, BASE])]


def test_outside_the_limits_the_classifier_is_not_asked():
    main, references, judge = fields()[0], References(), Judge(CONFUSED)
    field = classifier_guided(main, references, judge, WANTED, ClassifierGuidance(), base_scale=2.0, limits=(0.0, 0.5))
    assert torch.equal(field(normals(2, 3, 4), *AT), main.answer)
    assert judge.seen == references.calls == []


def test_a_jump_of_its_own_costs_one_evaluation_unless_the_step_already_arrives():
    z = normals(2, 3, 4, seed=5)
    for r, evaluations in ((0.4, 2), (0.0, 1)):
        judge, calls = Judge(CONFIDENT), []

        def main(z, t, r, calls=calls):
            calls.append(r)
            return expand(r, z).expand_as(z) + 1

        field = classifier_guided(main, References(), judge, WANTED, ClassifierGuidance(jump=True))
        field(z, torch.full((2,), 0.8), torch.full((2,), r))
        assert len(calls) == evaluations
        torch.testing.assert_close(judge.seen[0], z - 0.8)  # the jump ends at r = 0


def test_scales_and_rivals_follow_the_confusion():
    wanted = torch.tensor([[True, False, False]]).expand(4, 3)
    logits = torch.tensor([[9.0, 0.0, 0.0], [1.0, 0.0, 1.0], [0.0, 9.0, 0.0], [0.0, 3.0, 9.0]])
    chosen, share = choose(logits, wanted, ClassifierGuidance(scale=3.0))
    assert chosen.tolist() == [BASE, 2, 1, 2]
    torch.testing.assert_close(share, torch.tensor([0.0, 0.5, 1.0, 1.0]), atol=1e-3, rtol=0)
    softer = choose(logits, wanted, ClassifierGuidance(scale=3.0, temperature=10.0))[1]
    assert (softer[2:] < share[2:]).all()
    assert choose(logits, wanted, ClassifierGuidance(threshold=0.6))[0].tolist() == [BASE, BASE, 1, 2]


@pytest.mark.parametrize("change", [{"scale": 0.5}, {"scale": float("nan")}, {"temperature": 0}, {"threshold": 2}, {"power": -1}])
def test_impossible_classifier_guidance_is_refused_with_name_value_and_range(change):
    (name, value), told = next(iter(change.items())), "must be from"
    with pytest.raises(InputError, match=f"classifier {name} = {value}: {told}"):
        ClassifierGuidance(**change)
    with pytest.raises(InputError, match="classifier reference = 'other': must be one of base, rival"):
        ClassifierGuidance(reference="other")
