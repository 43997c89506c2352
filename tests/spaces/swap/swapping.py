"""Models to swap in, and what is asked of each after a swap."""

import contextlib
import copy
import functools
import pickle
import sys
import types
import warnings

import torch
from torch import nn

from normact.spaces import ChannelAffine, GraphLayer, emit, named
from normact.spaces.swap import PostActivationWarning


class Attributes(nn.Module):
    """A module whose attributes are used as `forward` says."""

    def __init__(self, forward, **modules):
        super().__init__()
        self._forward = forward
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self._forward(self, x)


class Block(nn.Module):
    """torchvision's basic block: the one `relu` also follows the addition."""

    def __init__(self, features=4):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(features, features, 3, padding=1), nn.BatchNorm2d(features)
        self.conv2, self.bn2 = nn.Conv2d(features, features, 3, padding=1), nn.BatchNorm2d(features)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu(out)


class Functional(nn.Module):
    """A function behind each norm, and a keyword argument, a dropout and a parameter of its own."""

    def __init__(self, features=4):
        super().__init__()
        self.conv, self.bn1, self.bn2 = (
            nn.Conv2d(features, features, 1),
            nn.BatchNorm2d(features),
            nn.BatchNorm2d(features),
        )
        self.scale = nn.Parameter(torch.full((1,), 0.5))
        self.p = 0.5

    def forward(self, x, mask=None):
        x = nn.functional.relu(self.bn1(x))
        x = nn.functional.dropout(x, self.p, self.training)
        if mask is not None:
            x = x * mask
        return torch.relu(self.bn2(self.conv(x))) * self.scale


def make(site):
    """BN-ReLU, and an affine where no activation is."""
    if not site.activation:
        return ChannelAffine(site.in_features, site.layout)
    return GraphLayer(named("bn_relu").graph, site.in_features, site.layout)


@functools.cache
def exported(name):
    """The factory function of an emitted file, imported as `emitted_{name}`: what pickle asks for."""
    module = sys.modules[f"emitted_{name}"] = types.ModuleType(f"emitted_{name}")
    exec(emit(named(name).graph, f"my_{name}"), module.__dict__)
    return getattr(module, f"my_{name}")


def lived_in(model):
    """The model with random statistics and affines, so that what is lost shows."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            norm = isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm)
            if norm and tensor.is_floating_point():
                low = 0.5 if name in ("weight", "running_var") else -0.5
                with torch.no_grad():
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + low)
    return model


@contextlib.contextmanager
def unchanged(model, x=None):
    """Within, something fails; after it the model is what it was: modules, classes, modes, tensors, outputs."""
    model.eval() if x is not None else None
    before = [(name, id(m), type(m), m.training, set(vars(m))) for name, m in model.named_modules()]
    tensors = {name: (id(t), t.clone()) for name, t in [*model.named_parameters(), *model.named_buffers()]}
    expected = model(x) if x is not None else None
    state = torch.get_rng_state()
    yield
    assert [(name, id(m), type(m), m.training, set(vars(m))) for name, m in model.named_modules()] == before
    after = dict([*model.named_parameters(), *model.named_buffers()])
    assert {name: id(t) for name, t in after.items()} == {name: key for name, (key, _) in tensors.items()}
    assert all(torch.equal(after[name], value) for name, (_, value) in tensors.items())
    assert torch.equal(torch.get_rng_state(), state)
    if x is not None:
        assert torch.equal(model(x), expected)


def check_swapped(model, x, twin=None):
    """A swapped model trains, copies, pickles and takes its own state back."""
    model.eval()
    expected = model(x)
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))] if twin is None else [twin]
    for other in twins:
        other.load_state_dict(model.state_dict())
        other.eval()
        assert torch.equal(other(x), expected)
        assert not {id(m) for m in other.modules()} & {id(m) for m in model.modules()}
    model.train()
    model(x).square().sum().backward()
    lost = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not lost, lost


@contextlib.contextmanager
def post_activation_allowed():
    """Without the warning for post-activation models."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PostActivationWarning)
        yield
