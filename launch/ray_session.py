"""Starting Ray on this machine, quietly and on loopback alone, or joining a cluster that runs."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import ray

from normact.launch.ray_worker import described
from normact.spaces.errors import InputError

CONNECT_SECONDS = 10.0
OBJECT_STORE_BYTES = 100 * 2**20  # jobs and outcomes are small and travel beside it

# Ray's switch for machines where a firewall asks about every open port: it then listens on loopback alone.
# A loopback `_node_ip_address` is not enough, as Ray replaces it by the machine's outer address.
_START_ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # Ray warns where it is not set; what workers do is theirs
}

Resources = Mapping[str, float]


def open_ray(address: str, needs: Resources, namespace: str | None = None) -> bool:
    """Start or join Ray, unless this process already has.

    Args:
        address: `local`; or a running cluster: `auto`, `host:port`, `ray://host:port`.
        needs: CPUs and GPUs that a local start must have in all.
        namespace: the cluster's namespace to be in; None for one of our own.

    Returns:
        Whether it was done here, and is to be undone with `close_ray`.

    Raises:
        InputError: Ray does not start, or nothing answers at the address, or a local start lacks GPUs.
    """
    if ray.is_initialized():
        return False
    try:
        if address == "local":
            _start(needs, namespace)
        else:
            _join(address, namespace)
    except (OSError, ValueError, RuntimeError, ImportError) as problem:
        close_ray()
        if isinstance(problem, InputError):
            raise
        raise InputError(f"Ray does not start with pool.address={address}: {described(problem)}") from problem
    return True


def close_ray() -> None:
    """Leave Ray; what was started here ends."""
    ray.shutdown()
    _show_deaths(True)


def _start(needs: Resources, namespace: str | None) -> None:
    with _loopback():
        ray.init(
            address="local",
            num_cpus=max(1, math.ceil(needs["CPU"])),
            num_gpus=None if needs["GPU"] else 0,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1",
            **_quiet(namespace),
        )
    _show_deaths(False)
    if not all(node["NodeManagerAddress"].startswith("127.") for node in ray.nodes()):
        logging.getLogger(__name__).warning("this version of Ray listens on more than loopback")
    if ray.cluster_resources().get("GPU", 0) < needs["GPU"]:
        raise InputError(f"the workers need {amounts(needs)}; this machine has {there_is()}")


def _join(address: str, namespace: str | None) -> None:
    if address != "auto":
        _knock(address)
    ray.init(address=address, **_quiet(namespace))
    _show_deaths(False)


def _quiet(namespace: str | None) -> dict[str, Any]:
    return {"log_to_driver": False, "logging_level": logging.ERROR, "namespace": namespace}


def _knock(address: str) -> None:
    """Ray itself tries for minutes where nobody listens."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"pool.address={address} is none of local, auto, HOST:PORT, ray://HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as problem:
        raise InputError(f"no Ray cluster answers at pool.address={address}: {problem}") from problem


@contextlib.contextmanager
def _loopback() -> Iterator[None]:
    """Start Ray within this. Its processes inherit the environment; this one read it when it imported Ray."""
    constants = ray._private.ray_constants
    here = getattr(constants, "ENABLE_RAY_CLUSTER", None)  # private: other versions may lack it
    constants.ENABLE_RAY_CLUSTER = False
    before = {name: os.environ.get(name) for name in _START_ENVIRONMENT}
    os.environ.update(_START_ENVIRONMENT)
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = here
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _show_deaths(show: bool) -> None:
    """Ray prints a paragraph for each worker's death, whatever `log_to_driver` says; the pool reports it."""
    if hasattr(ray._private.worker, "_worker_logs_enabled"):
        ray._private.worker._worker_logs_enabled = show


def amounts(resources: Resources) -> str:
    """Such as `2 CPU, 0.5 GPU`."""
    return ", ".join(f"{resources.get(name, 0):g} {name}" for name in ("CPU", "GPU"))


def there_is() -> str:
    """What the cluster has, and what of it is free."""
    nodes = sum(node["Alive"] for node in ray.nodes())
    return f"{amounts(ray.cluster_resources())} (free: {amounts(ray.available_resources())}; nodes: {nodes})"
