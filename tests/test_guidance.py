"""Guidance: scale 1 is nothing, the rest is linear, and evaluations are counted."""

import pytest
import torch
from fakes import normals

from meanaudio.guidance import guided


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
