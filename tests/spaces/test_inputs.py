import pytest

from normact.spaces import InputError
from normact.spaces.inputs import another, check_input, is_input, trainable


@pytest.mark.parametrize(
    ("name", "per_channel", "init", "attribute"),
    [
        ("v0", True, 0.0, "v0"),
        ("v1", True, 1.0, "v1"),
        ("v0_2", True, 0.0, "v0_2"),
        ("s0.01", False, 0.01, "s0p01"),
        ("s0.25_3", False, 0.25, "s0p25_3"),
        ("v10", True, 10.0, "v10"),
    ],
)
def test_a_trainable_carries_its_initial_value(name, per_channel, init, attribute):
    item = trainable(name)
    assert (item.per_channel, item.init, item.attribute) == (per_channel, init, attribute)
    assert item.attribute.isidentifier()
    assert is_input(name)
    assert check_input(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "v",
        "s",
        "v_2",
        "v0_",
        "v-1",
        "v1e5",
        "v0.",
        "v.5",
        "w0",
        "X",
        "Zero",
        "v0 ",
        "v0\n",
        "v٣",
        "v" + "9" * 400,
    ],
)
def test_other_names_are_no_inputs(name):
    assert trainable(name) is None
    assert not is_input(name)
    with pytest.raises(InputError, match="is not an input: use x, zero, v0 or v1") as error:
        check_input(name, " at node 2")
    assert " at node 2" in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("name", ["x", "zero"])
def test_x_and_zero_are_inputs_without_a_parameter(name):
    assert is_input(name)
    assert trainable(name) is None


def test_another_trainable_has_the_same_start_and_a_free_name():
    assert another("v1", {"v1"}) == "v1_2"
    assert another("v1", {"v1", "v1_2", "v1_3"}) == "v1_4"
    assert another("v1_2", {"v1", "v1_2"}) == "v1_3"
    assert another("s0.01", {"s0.01"}) == "s0.01_2"
