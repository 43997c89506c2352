"""Random models: what is swapped for the same function leaves the outputs, however its ReLUs are called."""

import copy
import pickle

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from normact.spaces import InputError
from normact.spaces.swap import replace_layers
from tests.spaces.swap.swapping import lived_in, post_activation_allowed

X = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))

STEPS = {
    "norm": lambda m, i, a, b: m.norms[i](a),
    "shared norm": lambda m, i, a, b: m.norm(a),
    "linear": lambda m, i, a, b: m.linears[i](a),
    "own": lambda m, i, a, b: m.acts[i](a),
    "own in place": lambda m, i, a, b: m.acts_in_place[i](a),
    "shared": lambda m, i, a, b: m.relu(a),
    "shared in place": lambda m, i, a, b: m.relu_in_place(a),
    "function": lambda m, i, a, b: F.relu(a),
    "function in place": lambda m, i, a, b: F.relu(a, inplace=True),
    "method": lambda m, i, a, b: a.relu(),
    "method in place": lambda m, i, a, b: a.relu_(),
    "nothing": lambda m, i, a, b: m.nothing(a),
    "add": lambda m, i, a, b: a + b,
    "add in place": lambda m, i, a, b: a.add_(b),
    "gate": lambda m, i, a, b: a * torch.sigmoid(b),
    "shape": lambda m, i, a, b: a.reshape(a.shape[0], 4, 3, 3),
}


class Program(nn.Module):
    """Each step reads one of the last values, or two, and makes the next. `own` steps have modules of their own."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in steps)
        self.linears = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in steps)
        self.acts = nn.ModuleList(nn.ReLU() for _ in steps)
        self.acts_in_place = nn.ModuleList(nn.ReLU(inplace=True) for _ in steps)
        self.norm, self.relu, self.relu_in_place = nn.BatchNorm2d(4), nn.ReLU(), nn.ReLU(inplace=True)
        self.nothing = nn.Identity()

    def forward(self, x):
        values = [x * 1.0]
        for i, (step, a, b) in enumerate(self.steps):
            values.append(STEPS[step](self, i, values[-1 - a % len(values)], values[-1 - b % len(values)]))
        return values[-1]


def programs(steps=tuple(STEPS)):
    near = st.sampled_from([0, 0, 0, 0, 1, 2])
    return st.lists(st.tuples(st.sampled_from(steps), near, near), min_size=2, max_size=9)


@settings(max_examples=60)
@given(programs([step for step in STEPS if step != "gate"]), st.booleans(), st.sampled_from(["keep", "affine"]))
def test_the_same_layer_in_a_random_model_leaves_its_outputs(steps, run, lone):
    torch.manual_seed(0)
    model = lived_in(Program(steps)).double().eval()
    x = X.double()
    expected = model(x)
    try:
        with post_activation_allowed():
            replace_layers(model, "bn_relu", lone=lone, example_inputs=x if run else None)
    except InputError as problem:
        assert "nothing to replace" in str(problem)
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(pickle.loads(pickle.dumps(model))(x), expected)


@settings(max_examples=60)
@given(programs())
def test_a_trace_and_a_run_find_the_same(steps):
    reports = []
    for example in (None, X):
        model = Program(steps)
        try:
            with post_activation_allowed():
                report = replace_layers(copy.deepcopy(model), "evonorm_s0", example_inputs=example)
        except InputError as problem:
            reports.append(str(problem))
        else:
            reports.append((report.pairs, report.norms, report.left, report.rewritten))
    assert reports[0] == reports[1]


def test_programs_have_pairs_of_every_kind():
    for act in STEPS:
        model = Program([("norm", 0, 0), (act, 0, 0), ("linear", 0, 0), (act, 0, 0)])
        is_one = act.startswith(("own", "shared", "function", "method")) and act != "shared norm"
        with post_activation_allowed():
            try:
                found = len(replace_layers(model, "bn_relu").pairs)
            except InputError:
                found = 0
        assert found == (1 if is_one or act == "gate" else 0), act
