"""One of several processes that train an exported layer together: `python ranks.py FOLDER RANK RANKS`."""

import sys
from pathlib import Path

import torch


def main(folder, rank, ranks):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    case = torch.load(folder / "case.pt")
    namespace = {"__name__": "layer"}
    exec(compile(case["source"], "layer.py", "exec"), namespace)
    layer = namespace["layer"](**case["arguments"])
    layer.load_state_dict(case["state"])
    first, last = (0, 5) if rank == 0 else (5, None)  # shares of different sizes
    x = case["x"][first:last].clone().requires_grad_()
    y = layer(x)
    y.backward(case["cotangent"][first:last])
    grads = {name: p.grad for name, p in layer.named_parameters()}
    torch.save({"y": y.detach(), "x": x.grad, "grads": grads, "state": layer.state_dict()}, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
