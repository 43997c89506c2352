"""Ray clusters: made by hand, by the SLURM script with SLURM's commands played, by Ray's own test cluster with nodes
that go and come; and the presets and files for them."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
import yaml

from normact.launch.config import compose_config
from tests.launch.conftest import TINY
from tests.launch.processes import NORMACT, check_nothing_lost_or_doubled, run

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "launch/examples"
BIN = Path(sys.executable).parent
SMALL = [part for part in TINY if part != "pool=local"]


@pytest.mark.parametrize("name", ["ray", "cluster", "slurm", "kuberay"])
def test_a_preset_is_a_ray_pool(name, monkeypatch):
    monkeypatch.setenv("NORMACT_WORKERS", "31")
    pool = compose_config([f"pool={name}", "pool.workers=3"])["pool"]
    assert pool["_target_"] == "normact.launch.ray_pool.RayPool"
    assert pool["address"] == ("local" if name == "ray" else "auto")
    assert pool["workers"] == 3
    assert compose_config(["pool=slurm"])["pool"]["workers"] == 31


def test_the_slurm_script_is_bash():
    subprocess.run(["bash", "-n", EXAMPLES / "slurm.sh"], check=True)


def test_the_kuberay_manifest_runs_a_search_that_composes():
    job = yaml.safe_load((EXAMPLES / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    program, command, *overrides = job["spec"]["entrypoint"].split()
    assert (program, command) == ("normact", "search")
    config = compose_config(overrides)
    assert config["pool"]["address"] == "auto"
    groups = [job["spec"]["rayClusterSpec"]["headGroupSpec"], *job["spec"]["rayClusterSpec"]["workerGroupSpecs"]]
    pods = [group["template"]["spec"] for group in groups]
    [mount] = pods[0]["containers"][0]["volumeMounts"]
    assert config["run_dir"].startswith(mount["mountPath"] + "/")
    assert mount["name"] in [volume["name"] for volume in pods[0]["volumes"]]
    cpus = sum(int(pod["containers"][0]["resources"]["requests"]["cpu"]) * 4 for pod in pods[1:])
    assert config["pool"]["workers"] <= cpus


@pytest.fixture
def private():
    """The environment of Ray processes that find one another alone; what is left of them is ended afterwards."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # short: sockets lie in it
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    yield {
        **os.environ,
        "PATH": path,
        "RAY_TMPDIR": folder,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    for pid in with_environment(f"RAY_TMPDIR={folder}"):
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def with_environment(setting):
    """Processes that were started with a setting in their environment."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if setting.encode() in (folder / "environ").read_bytes().split(b"\0"):
                yield int(folder.name)
        except OSError:  # it ended, or is another user's
            continue


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_cluster_made_by_hand_is_joined_with_its_token_and_outlives_the_search(tmp_path, private):
    port = free_port()
    start = ["ray", "start", "--head", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=2"]
    start += ["--include-dashboard=false"]
    subprocess.run(start, env=private, check=True, capture_output=True, timeout=120)
    search = ["search", "pool=cluster", "pool.workers=2", *SMALL]
    run(*search, "run_dir=auto", cwd=tmp_path, env=private)
    check_nothing_lost_or_doubled(tmp_path / "auto", 40)
    run(*search, f"pool.address=127.0.0.1:{port}", "run_dir=named", cwd=tmp_path, env=private)
    check_nothing_lost_or_doubled(tmp_path / "named", 40)
    refused = subprocess.run(
        [*NORMACT, "resume", "named"], cwd=tmp_path, env=private, capture_output=True, text=True, timeout=120
    )
    assert (refused.returncode, f"--allow 127.0.0.1:{port}" in refused.stderr) == (2, True)
    stranger = {**private, "RAY_AUTH_TOKEN": "f" * 64}
    done = subprocess.run(
        [*NORMACT, *search, "run_dir=stranger"], cwd=tmp_path, env=stranger, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert not (tmp_path / "stranger").exists()


SLURM = {
    "scontrol": """
        #!/bin/bash
        [ "$1 $2" = "show hostnames" ] && printf 'here-1\\nhere-2\\n'
    """,
    "srun": """
        #!/bin/bash
        echo "srun $*" >> "$SLURM_LOG"
        while [[ "$1" == --* ]]; do shift; done
        exec "$@"
    """,
    "hostname": """
        #!/bin/bash
        echo 127.0.0.1
    """,
}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_slurm_script_makes_a_cluster_searches_and_ends_it(tmp_path, private):
    """With `srun`, `scontrol` and `hostname` played by scripts that run here: two nodes, one machine."""
    (tmp_path / "bin").mkdir()
    for name, text in SLURM.items():
        (tmp_path / "bin" / name).write_text(textwrap.dedent(text).lstrip())
        (tmp_path / "bin" / name).chmod(0o755)
    environment = {name: value for name, value in private.items() if not name.startswith("RAY_AUTH")} | {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{private['PATH']}",
        "SLURM_JOB_ID": str(free_port()),
        "SLURM_JOB_NODELIST": "here-[1-2]",
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_LOG": str(tmp_path / "log"),
    }
    command = ["bash", EXAMPLES / "slurm.sh", *SMALL, "run_dir=run"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    check_nothing_lost_or_doubled(tmp_path / "run", 40)
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert (config["pool"]["workers"], config["pool"]["address"]) == (1, "auto")
    log = (tmp_path / "log").read_text()
    assert "--nodelist=here-1 ray start --head" in log
    assert "--nodelist=here-2 ray start --address=127.0.0.1:" in log
    assert not list(with_environment(f"RAY_TMPDIR={private['RAY_TMPDIR']}")), "the job left processes behind"
    assert environment.get("RAY_AUTH_TOKEN", "none") not in log


NODES = """
    import collections, sys
    from pathlib import Path
    import ray
    from ray.cluster_utils import Cluster
    from normact.launch.ray_pool import RayPool
    from normact.search.controllers import RandomSearch
    from normact.search.engine import Budget, Engine, Limits
    from normact.search.ledger import Ledger
    from normact.spaces import EVONORM_MOMENTS, EVONORM_POINTWISE, GraphSpace
    from tests import judges

    SPACE = GraphSpace([*EVONORM_POINTWISE, *EVONORM_MOMENTS])
    trained = collections.Counter()  # by node

    class Slow(judges.Judge):
        def train(self, number, key, job):
            import dataclasses, os, ray, time
            time.sleep(0.05)
            worker = f"{ray.get_runtime_context().get_node_id()} {os.getpid()}"
            return dataclasses.replace(super().train(number, key, job), worker=worker)

    class Watching(RandomSearch):
        def tell(self, number, outcome):
            super().tell(number, outcome)
            trained[outcome.worker.split(" ")[0]] += 1

    def make():
        return Slow(SPACE)

    ray.cloudpickle.register_pickle_by_value(judges)
    cluster = Cluster(True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    pool = RayPool(make, workers=3, address=cluster.address, prefetch=0, start_seconds=60.0)
    assert dict(pool.capacity) == {"screen": 3, "train": 3} and pool.free("train") == 1, "more than there is room for"
    nodes = [cluster.head_node]

    def change(progress):
        if trained[nodes[-1].node_id] < 40:
            return
        if len(nodes) == 2:
            cluster.remove_node(nodes[1], allow_graceful=False)
        if len(nodes) < 3:
            nodes.append(cluster.add_node(num_cpus=2))
        else:
            engine.budget = Budget(proposals=progress.funnel.proposals)  # what is in flight is finished

    ledger = Ledger(Path(sys.argv[1]), create=True)
    controller = Watching(SPACE, [judges.LOSS], 0)
    engine = Engine(SPACE, controller, ledger, pool, Budget(minutes=4), judges.LOSS, limits=Limits(batch=4))
    assert engine.run(change)
    print(ledger.count("proposed"), ledger.count("lost"), *(node.node_id for node in nodes))
    ledger.close()
    pool.close()
    cluster.shutdown()
"""


@pytest.mark.timeout(400)
def test_nodes_come_and_go_while_a_search_runs(tmp_path):
    """Three workers where there is room for one; two more with a node, which then dies, and another takes its place."""
    command = [sys.executable, "-c", textwrap.dedent(NODES), str(tmp_path / "ledger.sqlite")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    proposals, lost, head, removed, added = done.stdout.split()[-5:]
    assert int(lost) > 0, "the node had nothing in hand: the test tests nothing"
    history = check_nothing_lost_or_doubled(tmp_path, int(proposals))
    workers = {}
    for outcome in history.outcomes.values():
        if outcome.worker:
            node, pid = outcome.worker.split()
            workers.setdefault(node, set()).add(pid)
    assert {node: len(pids) for node, pids in workers.items()} == {head: 1, removed: 2, added: 2}
    assert not any(outcome.gate == "worker" for outcome in history.outcomes.values())
