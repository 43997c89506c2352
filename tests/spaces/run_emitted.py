"""Run printed layers in a process where normact cannot be imported: `python -I run_emitted.py CASES RESULTS`.

Also imported by the tests, so that `GraphLayer` gets the same treatment on the other side.
"""

import sys
import types

import torch


def respond(module, batches):
    """Outputs and gradients over two training batches and one evaluation; then the state."""
    phases = []
    for train, (x, cotangent) in zip((True, True, False), batches, strict=True):
        module.train(train)
        x = x.clone().requires_grad_()
        y = module(x)
        names, inputs = ["x"], [x]
        for name, parameter in module.named_parameters():
            names.append(name)
            inputs.append(parameter)
        grads = [None] * len(inputs)
        if y.requires_grad:
            grads = torch.autograd.grad(y, inputs, cotangent, allow_unused=True)
        phases.append({"y": y.detach(), **dict(zip(names, grads, strict=True))})
    return {"phases": phases, "state": dict(module.state_dict())}


def make(case):
    """The module that a case's source makes, with the case's state in it."""
    made = sys.modules[case["name"]] = types.ModuleType(case["name"])  # dataclasses look their module up
    exec(compile(case["source"], case["name"] + ".py", "exec"), made.__dict__)
    module = getattr(made, case["name"])(**case["arguments"])
    if "dtype" in case:
        module = module.to(case["dtype"])
    if case["state"] is not None:
        module.load_state_dict(case["state"])
    return module


class Refuse:
    """An import hook that has no normact."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "normact":
            raise ImportError("normact is not installed here")


def main(cases, results):
    sys.meta_path.insert(0, Refuse())
    try:
        import normact.spaces  # noqa: F401
    except ImportError:
        pass
    else:
        raise SystemExit("normact could be imported: the test would prove nothing")
    torch.set_num_threads(1)
    torch.save([respond(make(case), case["batches"]) for case in torch.load(cases)], results)


if __name__ == "__main__":
    main(*sys.argv[1:])
