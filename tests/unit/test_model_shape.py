"""A model's shape: finding a weight by its name, also in a changed copy, and among very many."""

import pytest
from planning_fleet import tiny_model

from fedpipe_profiles.model import ModelShape, WeightShape


class CountedName(str):
    """A name that counts how often it is compared with another."""

    __slots__ = ()
    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        type(self).compared += 1
        return str.__eq__(self, other)


def wide(model: ModelShape, count: int) -> ModelShape:
    weights = tuple(
        WeightShape.model_construct(name=CountedName(f"w{index}"), d_out=2, d_in=3) for index in range(count)
    )
    return model.model_copy(update={"weights": weights})


def test_finding_every_weight_takes_about_one_comparison_each() -> None:
    model = wide(tiny_model(), 5000)
    CountedName.compared = 0
    for index in range(5000):
        assert model.weight(f"w{index}").d_in == 3
    assert CountedName.compared < 4 * 5000


def test_a_changed_copy_knows_its_own_weights_only() -> None:
    model = tiny_model()
    first = model.weights[0]
    assert model.weight(first.name) is first
    other = model.model_copy(update={"weights": (first.model_copy(update={"name": "new"}),)})
    assert other.weight("new").d_in == first.d_in
    with pytest.raises(KeyError, match=first.name):
        other.weight(first.name)
    assert model.weight(first.name) is first
    assert ModelShape.model_validate_json(model.model_dump_json()) == model
