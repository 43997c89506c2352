import math

import pytest

from normact.search.objective import Objective
from normact.spaces import InputError

ACCURACY = Objective("accuracy", "", "maximize", 0.1, 1.0)
LOSS = Objective("loss", "", "minimize", math.log(10), 0.0)


@pytest.mark.parametrize(
    ("objective", "value", "skill"),
    [
        (ACCURACY, 0.1, 0.0),
        (ACCURACY, 1.0, 1.0),
        (ACCURACY, 0.55, 0.5),
        (ACCURACY, 0.01, -0.1),
        (LOSS, math.log(10), 0.0),
        (LOSS, 0.0, 1.0),
        (LOSS, math.log(10) / 4, 0.75),
        (LOSS, 2 * math.log(10), -1.0),
    ],
)
def test_skill_goes_from_trivial_to_perfect(objective, value, skill):
    assert objective.skill(value) == pytest.approx(skill, abs=1e-12)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("objective", [ACCURACY, LOSS])
def test_a_value_that_is_not_finite_is_worse_than_any(objective, value):
    assert objective.skill(value) == -math.inf
    assert objective.better(1e9, value) and objective.better(-1e9, value)
    assert not objective.better(value, value)


def test_better_follows_the_direction():
    assert ACCURACY.better(0.6, 0.5) and not ACCURACY.better(0.5, 0.6)
    assert LOSS.better(0.5, 0.6) and not LOSS.better(0.6, 0.5)
    assert not LOSS.better(0.5, 0.5)


@pytest.mark.parametrize(
    ("direction", "trivial", "perfect"),
    [
        ("maximize", 1.0, 1.0),  # one class alone
        ("minimize", 0.0, 0.0),  # targets that are all the same
        ("maximize", 1.0, 0.0),
        ("minimize", 0.0, 1.0),
        ("maximize", math.nan, 1.0),
        ("maximize", 0.0, math.inf),
    ],
)
def test_an_objective_needs_room_in_its_direction(direction, trivial, perfect):
    with pytest.raises(InputError, match=r"'mine' leaves nothing to gain"):
        Objective("mine", "", direction, trivial, perfect)
