import copy
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from normact.search.anchors import PreActResNet
from normact.search.data import Digits, Split
from normact.search.task import Accuracy, Task
from normact.search.training import Recipe, Training, loss_of, outputs_of, restimate_statistics, shuffled_batches
from normact.spaces import GraphLayer, InputError, parse
from tests.tasks import blobs, layer, small_task

BN = "add(mul(v1, div(add(x, neg(batch_mean(x))), batch_std(x))), v0)"


class Drawing(nn.Module):
    """Draws random numbers when it is made and whenever it runs, training or not."""

    def __init__(self, site, count=7):
        super().__init__()
        self.first = nn.Parameter(torch.randn(count)[:1])

    def forward(self, x):
        return torch.relu(x + 0.1 * self.first * torch.randn_like(x))


def own_weights(model):
    """The anchor's own parameters: none of a site's module."""
    kinds = nn.Conv2d | nn.Linear
    return [p for module in model.modules() if isinstance(module, kinds) for p in module.parameters()]


def all_equal(a, b):
    return len(a) == len(b) > 0 and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# -- common random numbers -------------------------------------------------------------------------------------


def test_what_a_layer_draws_when_made_shifts_no_weight_of_the_anchor():
    task = small_task()
    quiet, drawing = (task.start("net", make, seed=3).model for make in (layer("bn_relu"), Drawing))
    assert all_equal(own_weights(quiet), own_weights(drawing))
    assert not all_equal(own_weights(quiet), own_weights(task.start("net", Drawing, seed=4).model))


def test_what_one_site_draws_shifts_no_other_site():
    def firsts(count):
        made = []

        def make(site):
            made.append(Drawing(site, count if site.index == 0 else 7))
            return made[-1]

        small_task().start("net", make, seed=3)
        return [float(module.first.detach()) for module in made]

    one, hundred = firsts(1), firsts(100)
    assert one[1:] == hundred[1:]
    assert len(set(one)) == len(one) == 3  # each site draws from a stream of its own


def batches_seen(make, steps=9):
    training = small_task().start("net", make, seed=3)
    seen = []
    training.model.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    training.run_to(steps)
    return seen


def test_what_a_layer_draws_shifts_no_example():
    quiet, drawing = batches_seen(layer("gn_relu")), batches_seen(Drawing)
    assert all_equal(quiet, drawing)
    assert not torch.equal(quiet[0], quiet[1])


def test_what_is_drawn_in_a_step_does_not_depend_on_stops():
    through, stopping = (small_task().start("net", Drawing, seed=3) for _ in range(2))
    through.run_to(8)
    for step in (1, 4, 8):
        stopping.run_to(step)
        small_task().measure(stopping)
    assert through.losses == stopping.losses


def test_the_global_generator_is_left_as_it_was():
    before = torch.get_rng_state()
    task = small_task()
    training = task.start("net", Drawing, seed=3)
    training.run_to(2)
    task.measure(training)
    assert torch.equal(torch.get_rng_state(), before)


# -- the same again --------------------------------------------------------------------------------------------

AGAIN = """
import torch
from tests.tasks import layer, small_task
torch.set_num_threads(1)
training = small_task().start("net", layer("evonorm_b0"), seed=5)
training.run_to(8)
print(training.losses)
"""


def test_a_seed_gives_the_same_losses_twice_and_in_another_process():
    def losses(seed):
        training = small_task().start("net", layer("evonorm_b0"), seed)
        assert training.run_to(8)
        return training.losses

    root = Path(__file__).parents[2]
    other = subprocess.run([sys.executable, "-c", AGAIN], cwd=root, capture_output=True, text=True)
    assert other.returncode == 0, other.stderr
    assert losses(5) == losses(5)
    assert str(losses(5)) == other.stdout.strip()
    assert losses(5) != losses(6)


# -- optimiser and schedule ------------------------------------------------------------------------------------


@given(st.integers(2, 60), st.integers(0, 59), st.floats(1e-4, 1.0))
def test_the_learning_rate_follows_the_formula(steps, warmup, lr):
    warmup %= steps
    recipe = Recipe(steps=steps, warmup=warmup, lr=lr)
    constant = Recipe(steps=steps, warmup=warmup, lr=lr, schedule="constant")
    for t in range(steps):
        ramp = lr * (t + 1) / warmup if t < warmup else None
        cosine = lr * math.cos(math.pi / 2 * (t - warmup) / (steps - warmup)) ** 2  # (1 + cos 2a) / 2 = cos^2 a
        assert recipe.lr_at(t) == pytest.approx(cosine if ramp is None else ramp, rel=1e-9, abs=1e-12)
        assert constant.lr_at(t) == pytest.approx(lr if ramp is None else ramp, rel=1e-12)


@given(st.integers(2, 60), st.integers(0, 59), st.floats(1e-4, 1.0), st.floats(1e-6, 1.0))
def test_an_exponential_schedule_falls_by_one_factor_a_step_to_its_share(steps, warmup, lr, final):
    warmup %= steps
    recipe = Recipe(steps=steps, warmup=warmup, lr=lr, schedule="exponential", final=final)
    for t in range(warmup, steps):
        log = math.log(lr) + math.log(final) * (t - warmup) / (steps - warmup)
        assert recipe.lr_at(t) == pytest.approx(math.exp(log), rel=1e-9)
    assert recipe.lr_at(steps) == pytest.approx(lr * final, rel=1e-9)


def test_a_published_factor_per_epoch_is_a_share_at_the_end():
    """torch's ExponentialLR with a factor of 0.8, at the end of each of 35 epochs of 100 steps."""
    recipe = Recipe(steps=3500, lr=1e-3, schedule="exponential", final=0.8**35)
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1e-3)
    published = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
    for epoch in range(1, 36):
        optimizer.step()
        published.step()
        assert recipe.lr_at(100 * epoch) == pytest.approx(published.get_last_lr()[0], rel=1e-9)


def test_sgd_steps_are_nesterov_steps_with_decay_on_matrices_alone():
    recipe = Recipe(steps=5, batch_size=4, lr=0.1, momentum=0.9, weight_decay=0.01, warmup=2)
    x, y = torch.randn(12, 3, dtype=torch.float64), torch.randn(12, 1, dtype=torch.float64)
    model = nn.Linear(3, 1).double()
    w, b = model.weight.detach().numpy().copy(), model.bias.detach().numpy().copy()
    training = Training(model, Split(x, y), recipe, "mse", seed=8)
    assert training.run_to(5)
    vw, vb = np.zeros_like(w), np.zeros_like(b)
    batches = shuffled_batches(12, 4, 8)
    for t in range(5):
        picks = next(batches).numpy()
        xb, yb = x.numpy()[picks], y.numpy()[picks]
        error = xb @ w.T + b - yb
        assert training.losses[t] == pytest.approx(float((error**2).mean()), rel=1e-12)
        gw = 2 * error.T @ xb / 4 + 0.01 * w
        gb = 2 * error.mean(0)
        lr = 0.1 * (t + 1) / 2 if t < 2 else 0.1 * (1 + math.cos(math.pi * (t - 2) / 3)) / 2
        vw, vb = 0.9 * vw + gw, 0.9 * vb + gb
        w, b = w - lr * (gw + 0.9 * vw), b - lr * (gb + 0.9 * vb)
    np.testing.assert_allclose(model.weight.detach().numpy(), w, rtol=1e-10)
    np.testing.assert_allclose(model.bias.detach().numpy(), b, rtol=1e-10)


def test_clipping_bounds_the_whole_gradient():
    x, y = 100 * torch.randn(8, 3), torch.randn(8, 1)
    model = nn.Linear(3, 1)
    before = [p.detach().clone() for p in model.parameters()]
    recipe = Recipe(steps=1, batch_size=8, lr=0.5, momentum=0.0, weight_decay=0.0, clip=0.25)
    Training(model, Split(x, y), recipe, "mse", seed=0).run_to(1)
    moved = sum(float((p.detach() - q).square().sum()) for p, q in zip(model.parameters(), before, strict=True)) ** 0.5
    assert moved == pytest.approx(0.5 * 0.25, rel=1e-4)


def test_adamw_first_step_is_the_learning_rate_in_the_gradients_direction():
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -1.0]]))
    x, y = torch.tensor([[1.0, 2.0]] * 4), torch.full((4, 1), 5.0)
    recipe = Recipe(steps=1, batch_size=4, lr=0.01, optimizer="adamw", weight_decay=0.1)
    Training(model, Split(x, y), recipe, "mse", seed=0).run_to(1)
    expected = torch.tensor([[1.0, -1.0]]) * (1 - 0.01 * 0.1) + 0.01  # the gradient is negative in both
    torch.testing.assert_close(model.weight.detach(), expected, rtol=0, atol=1e-6)


class Changing(nn.Module):
    """A linear model with a part that some calls leave out, one that none uses, and one that is replaced once."""

    def __init__(self, left_out=(), replaced=None):
        super().__init__()
        torch.manual_seed(0)
        self.main, self.part, self.unused = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(2, 2)
        self.out = nn.Linear(4, 1)
        self.calls, self.left_out, self.replaced = 0, left_out, replaced

    def forward(self, x):
        if self.calls == self.replaced:
            self.out.weight.data = self.out.weight.data * 0.5
        h = self.main(x).tanh()
        h = h if self.calls in self.left_out else h + self.part(h)
        self.calls += 1
        return self.out(h)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("kw", [{}, {"left_out": (0, 1)}, {"left_out": (4, 6)}, {"replaced": 5}], ids=str)
def test_steps_are_those_of_torchs_own_optimizer_over_single_parameters(kw, optimizer):
    recipe = Recipe(steps=10, batch_size=8, lr=0.05, optimizer=optimizer, weight_decay=0.1, clip=0.3, warmup=2)
    x, y = torch.randn(40, 3), torch.randn(40, 1)
    ours, theirs = Changing(**kw), Changing(**kw)
    training = Training(ours, Split(x, y), recipe, "mse", seed=8)
    assert training.run_to(10)
    decay = [
        {"params": [p for p in theirs.parameters() if p.dim() == n], "weight_decay": w} for n, w in ((2, 0.1), (1, 0))
    ]
    kinds = {"adamw": torch.optim.AdamW, "sgd": lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, nesterov=True)}
    stepper, batches = kinds[optimizer](decay, lr=0.05), shuffled_batches(40, 8, 8)
    for t in range(10):
        for group in stepper.param_groups:
            group["lr"] = recipe.lr_at(t)
        picks = next(batches)
        stepper.zero_grad()
        nn.functional.mse_loss(theirs(x[picks]), y[picks]).backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), 0.3)
        stepper.step()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
    assert not torch.equal(ours.main.weight, Changing().main.weight)


def test_a_copy_of_a_model_in_training_shares_nothing_with_it():
    training = small_task().start("net", layer("bn_relu"), seed=0)
    training.run_to(3)
    twin = copy.deepcopy(training.model)
    before = [p.detach().clone() for p in twin.parameters()]
    training.run_to(5)
    assert all_equal(list(twin.parameters()), before)
    with torch.no_grad():
        next(twin.parameters()).add_(1.0)
    assert all_equal(list(twin.parameters())[1:], before[1:])


def test_tied_double_and_frozen_parameters_train():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1))
    model[1].weight.data = model[0].weight.data
    model[2].weight.requires_grad_(False)
    x = torch.randn(16, 3)
    recipe = Recipe(steps=3, batch_size=4, lr=0.1)
    assert Training(model, Split(x, x[:, :1]), recipe, "mse", 0).run_to(3)
    assert model[1].weight.data_ptr() == model[0].weight.data_ptr()
    assert Training(model.double(), Split(x.double(), x[:, :1].double()), recipe, "mse", 0).run_to(3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"batch_size": 1},
        {"lr": 0.0},
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"weight_decay": -1e-4},
        {"clip": -1.0},
        {"optimizer": "adam"},
        {"schedule": "linear"},
        {"final": 0.0},
        {"final": 1.1},
        {"warmup": 120},
        {"warmup": -1},
    ],
    ids=str,
)
def test_a_recipe_out_of_range_is_refused(wrong):
    (name,) = wrong
    with pytest.raises(InputError, match=name):
        Recipe(**wrong)


def test_losses_are_cross_entropy_and_mean_square():
    logits, y = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 3.0]]), torch.tensor([1, 0])
    rows = [
        math.log(sum(math.exp(v) for v in row)) - row[k] for row, k in zip(logits.tolist(), y.tolist(), strict=True)
    ]
    assert float(loss_of("cross_entropy", logits, y)) == pytest.approx(sum(rows) / 2, rel=1e-6)
    assert float(loss_of("mse", torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 1.0]))) == pytest.approx(2.5)


# -- batches ---------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(2, 12), st.integers(0, 99))
def test_every_epoch_is_a_new_order_without_repeats(count, size, seed):
    batches = shuffled_batches(count, size, seed)
    size = min(size, count)
    epochs = [[next(batches) for _ in range(count // size)] for _ in range(2)]
    for epoch in epochs:
        assert all(len(batch) == size for batch in epoch)
        picked = torch.cat(epoch).tolist()
        assert len(set(picked)) == len(picked) and set(picked) <= set(range(count))
    if count > 20:
        assert not all_equal(*epochs)


# -- divergence ------------------------------------------------------------------------------------------------


class BreaksAt(nn.Module):
    """The identity, and NaN from the k-th call on."""

    def __init__(self, call):
        super().__init__()
        self.calls, self.call = 0, call

    def forward(self, x):
        self.calls += 1
        return x * math.nan if self.calls > self.call else x


def test_a_loss_that_is_not_finite_ends_the_training_before_its_step():
    task = small_task()
    training = task.start("net", lambda site: BreaksAt(4) if site.index == 0 else nn.ReLU(), seed=0)
    assert training.run_to(4)
    weights = [p.detach().clone() for p in training.model.parameters()]
    assert not training.run_to(9)
    assert training.step == 4 and len(training.losses) == 5 and math.isnan(training.losses[-1])
    assert all_equal([p.detach() for p in training.model.parameters()], weights)


def test_the_second_halfs_loss_is_its_mean():
    training = small_task().start("net", layer("gn_relu"), seed=0)
    assert math.isnan(training.second_half_loss)
    training.run_to(7)
    assert training.second_half_loss == pytest.approx(np.mean(training.losses[3:]), rel=1e-12)
    assert np.mean(training.losses[3:]) != np.mean(training.losses)


# -- running statistics ----------------------------------------------------------------------------------------


def independent_statistics(x, conv, size):
    """Means and unbiased variances of a batch norm's input, and of a second one's behind it and a convolution."""
    rows = []
    for k in range(4):
        batch = x[k * size : (k + 1) * size].double().numpy()
        mean, std = batch.mean((0, 2, 3), keepdims=True), batch.std((0, 2, 3), keepdims=True)
        normal = (batch - mean) / np.sqrt(std**2 + 1e-5)
        behind = conv.double()(torch.from_numpy(normal)).detach().numpy()
        rows.append([f(v) for v in (batch, behind) for f in (moments_mean, moments_var)])
    return [np.mean([row[i] for row in rows], 0) for i in range(4)]


def moments_mean(v):
    return v.mean((0, 2, 3))


def moments_var(v):
    return v.var((0, 2, 3), ddof=1).copy() if v.ndim == 1 else np.array([c.var(ddof=1) for c in v.swapaxes(0, 1)])


@pytest.mark.parametrize("kind", ["torch", "graph"])
def test_statistics_are_averages_over_the_first_four_batches(kind):
    make = nn.BatchNorm2d if kind == "torch" else lambda features: GraphLayer(parse(BN), features)
    norms = [make(2), make(5)]
    conv = nn.Conv2d(2, 5, 3)
    model = nn.Sequential(norms[0], conv, norms[1])
    x = 3 * torch.randn(90, 2, 6, 6) + torch.tensor([1.0, -2.0]).view(2, 1, 1)
    model(x[40:])  # leaves something to be forgotten
    restimate_statistics(model, Split(x, x), 16)
    found = [b for norm in norms for b in (norm.running_mean, norm.running_var)]
    for value, expected in zip(found, independent_statistics(x, conv, 16), strict=True):
        np.testing.assert_allclose(value.numpy(), expected, rtol=2e-5, atol=2e-6)


def test_momentum_is_restored_even_after_an_error():
    model = nn.Sequential(nn.BatchNorm2d(2, momentum=0.25), nn.BatchNorm2d(2, momentum=None), GraphLayer(parse(BN), 2))
    x = torch.randn(40, 2, 4, 4)
    restimate_statistics(model, Split(x, x), 8)
    assert [m.momentum for m in model] == [0.25, None, 0.1]
    broken = nn.Sequential(*model, BreaksWithError())
    with pytest.raises(ZeroDivisionError):
        restimate_statistics(broken, Split(x, x), 8)
    assert [m.momentum for m in model] == [0.25, None, 0.1]


class BreaksWithError(nn.Module):
    def forward(self, x):
        return x / (1 // 0)


def test_estimating_again_leaves_weights_and_results_of_training_alone():
    task = small_task()
    once, often = (task.start("net", layer("bn_relu"), seed=1) for _ in range(2))
    once.run_to(6)
    for step in range(1, 7):
        often.run_to(step)
        task.measure(often)
    assert once.losses == often.losses
    assert all_equal(list(once.model.parameters()), list(often.model.parameters()))


def test_after_10_steps_estimated_statistics_beat_the_lagging_average_by_far():
    net = PreActResNet(1, 10, width=8, blocks=(1, 1))
    task = Task(Digits(), {"net": net}, Recipe(steps=10, schedule="constant"), [Accuracy()])
    validation = task.splits.validation
    gains = []
    for seed in range(5):
        training = task.start("net", layer("bn_relu"), seed)
        training.run_to(10)
        lagging = float((outputs_of(training.model, validation.x).argmax(1) == validation.y).float().mean())
        gains.append(task.measure(training)["accuracy"] - lagging)
    assert min(gains) > 0.05
    assert np.mean(gains) > 0.15


# -- evaluation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bn_relu", "evonorm_b0", "evonorm_b2", "gn_relu", "frn_tlu"])
def test_an_examples_output_does_not_depend_on_its_company(name):
    task = small_task(data=blobs(validation=300))  # more than one batch of evaluation
    training = task.start("net", layer(name), seed=2)
    training.run_to(5)
    restimate_statistics(training.model, task.splits.train, 16)
    x = task.splits.validation.x
    together = outputs_of(training.model, x)
    assert not training.model.training
    one_by_one = torch.cat([outputs_of(training.model, x[i : i + 1]) for i in range(0, 300, 7)])
    order = torch.randperm(300)
    torch.testing.assert_close(one_by_one, together[::7], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs_of(training.model, x[order]), together[order], rtol=1e-4, atol=1e-5)


def test_a_model_that_draws_in_evaluation_is_measured_the_same_twice():
    task = small_task()
    training = task.start("net", Drawing, seed=2)
    training.run_to(2)
    assert task.measure(training) == task.measure(training)
