import pytest

from normact.search.anchors import KanConvNet, KanNet
from normact.search.evaluate import Evaluator
from normact.search.gates import Pass, Probe, ScreenContext, Size
from normact.search.outcome import Rejection
from normact.search.pool import Job
from normact.spaces import Cost, GraphSpace, InputError, parse
from tests.tasks import ModuleSpace, small_task
from tests.toy import Choice, ToySpace

BATCH = 16


class Priced(ToySpace):
    """A toy space that knows what its layers take: a weight per function and edge, and a value per function kept."""

    def __init__(self):
        super().__init__(most=10**12)
        self.asked = []

    def cost(self, candidate, site, batch):
        self.asked.append((site.index, site.positions, batch))
        parameters = candidate.count * site.in_features * site.features_out
        return Cost(parameters, 16 * parameters + 4 * batch * site.positions * site.in_features * candidate.count)

    def build(self, candidate, site):
        assert candidate.count < 10**6, "an oversized candidate was built"
        return super().build(candidate, site)


def nets():
    """Anchors on images of 72 numbers: 72 * 5 + 5 * 3 and 72 * 3 weights for a layer of one function."""
    return {"deep": KanNet(72, (5,), 3), "flat": KanNet(72, (), 3)}


PARAMETERS = 72 * 5 + 5 * 3 + 72 * 3
KEPT = 4 * BATCH * (72 + 5 + 72)


def verdict(gate, count, space=None, anchors=None):
    task = small_task(anchors=anchors or nets(), batch_size=BATCH)
    return gate.check(ScreenContext(space or Priced(), Choice("sine", count), 0, task))


@pytest.mark.parametrize("count", [1, 7])
def test_costs_of_all_sites_of_all_anchors_add_up(count):
    found = verdict(Size(memory_gib=None), count)
    assert found == Pass(
        {"parameters": count * PARAMETERS, "memory_gib": count * (16 * PARAMETERS + KEPT) / 2**30},
    )


def test_positions_and_the_recipes_batch_size_are_what_the_space_is_asked_with():
    space = Priced()
    verdict(Size(), 1, space, {"conv": KanConvNet(2, 3, widths=(4, 4), strides=(2, 1))})
    assert set(space.asked[1:]) == {(0, 36, BATCH), (1, 9, BATCH)}  # images of 6x6; the first asks whether it knows


@pytest.mark.parametrize(
    ("limits", "count", "reason"),
    [
        ({"memory_gib": 1e-3}, 100, "GiB at the recipe's batch size, above memory_gib=0.001"),
        ({"memory_gib": 2.0}, 10**6, "above memory_gib=2"),
        ({"memory_gib": None, "parameters": 1000}, 2, f"{2 * PARAMETERS} parameters, above parameters=1000"),
    ],
)
def test_what_is_beyond_a_limit_is_rejected_with_both_values(limits, count, reason):
    found = verdict(Size(**limits), count)
    assert isinstance(found, Rejection) and found.gate == "size"
    assert reason in found.reason
    assert found.figures["parameters"] == count * PARAMETERS


def test_memory_is_named_in_gib():
    gib = 1000 * (16 * PARAMETERS + KEPT) / 2**30
    assert f"needs about {gib:.3g} GiB" in verdict(Size(memory_gib=gib / 2), 1000).reason
    assert isinstance(verdict(Size(memory_gib=gib * 1.001), 1000), Pass)
    assert isinstance(verdict(Size(memory_gib=gib * 0.999), 1000), Rejection)


def test_an_oversized_candidate_is_never_built():
    task = small_task(anchors=nets(), batch_size=BATCH)
    judge = Evaluator(Priced(), task, [Size(), Probe()])
    job = Job(0, "screen", ((0, {"basis": "sine", "count": 10**12}), (1, {"basis": "sine", "count": 2})), 0)
    assert [outcome.gate for outcome in judge(job)] == ["size", ""]


def test_a_space_without_estimates_passes_and_no_example_goes_through_its_anchors():
    space = GraphSpace(["add"], nodes=2)
    task = small_task()
    task.sites_on_data = None
    assert space.cost(parse("add(x, x)"), task.sites["net"][0], 8) is None
    assert Size(1e-9, 1).check(ScreenContext(space, parse("add(x, x)"), 0, task)) == Pass()
    assert Size(1e-9, 1).check(ScreenContext(ModuleSpace(), "bn_relu", 0)) == Pass()


@pytest.mark.parametrize("limits", [{"memory_gib": 0.0}, {"memory_gib": -1.0}, {"parameters": 0}], ids=str)
def test_limits_that_let_nothing_pass_are_refused(limits):
    with pytest.raises(InputError, match="above 0, or null for no limit"):
        Size(**limits)
