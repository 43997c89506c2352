import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path

import pytest
import ray

import tests.conformance.pool as suite
from normact.launch.ray_pool import RayPool
from normact.launch.ray_session import close_ray, open_ray
from normact.search.outcome import Outcome
from normact.search.pool import Done, Failed, Job, Lost
from normact.spaces.errors import InputError
from tests.benchmarks.pool import seconds_per_job
from tests.conformance.pool import WAIT, KillSuite, PoolSuite, job, kinds, make_evaluate, reports, warm_up
from tests.fake_ray import fake_ray

CPUS = 4


@pytest.fixture(scope="session")
def ray_here():
    """Ray, started once, as `RayPool` starts it. Workers cannot import the suite: it travels by value."""
    ray.cloudpickle.register_pickle_by_value(suite)
    assert open_ray("local", {"CPU": CPUS, "GPU": 0})
    yield
    close_ray()


def made_pools():
    """Gives a function that makes pools, and closes them."""
    made = []

    def make(*args, **options):
        made.append(RayPool(*args, **options))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


@pytest.fixture
def make_pool(ray_here):
    yield from made_pools()


@pytest.fixture(scope="class")
def make_pool_for_class(ray_here):
    yield from made_pools()


class TestRayPool(PoolSuite, KillSuite):
    @pytest.fixture(scope="class")
    @classmethod
    def new_pool(cls, make_pool_for_class):
        return partial(make_pool_for_class, make_evaluate, workers=2)

    def test_ray_that_was_there_stays(self, new_pool, pool):
        new_pool().close()
        pool.submit(job(0))
        assert kinds(reports(pool, 1)) == {0: Done}


def test_whatever_queues_on_a_worker_only_what_ends_it_is_lost(make_pool):
    KillSuite().test_only_what_ends_workers_is_lost(make_pool(make_evaluate, workers=2, prefetch=4))


def test_without_prefetch_a_job_that_ends_its_worker_is_lost_at_once(make_pool):
    pool = make_pool(make_evaluate, workers=2, prefetch=0)
    warm_up(pool)
    pool.submit(job(0, "exit"))
    assert pool.free("train") == 1
    assert reports(pool, 1)[0].deaths == 1


def test_what_ends_its_worker_among_others_and_alone_was_sent_twice(make_pool, tmp_path):
    def make():
        def evaluate(job):
            for number, candidate in job.candidates:
                if candidate == "exit":
                    with open(tmp_path / "sent", "a") as file:
                        file.write(f"{number}\n")
                    os._exit(1)
            return [Outcome(number) for number, _ in job.candidates]

        return evaluate

    pool = make_pool(make, workers=2)
    for n in range(8):
        pool.submit(Job(n, "screen", ((n, ""),), 0))
    reports(pool, 8)
    pool.submit(Job(8, "screen", ((10, ""), (11, "exit"), (12, "")), 0))
    [lost] = reports(pool, 1).values()
    assert isinstance(lost, Lost)
    for n in (10, 11, 12):
        pool.submit(Job(n, "screen", ((n, {10: "", 11: "exit", 12: ""}[n]),), 0))
    found = reports(pool, 3)
    assert kinds(found) == {10: Done, 11: Lost, 12: Done}
    assert found[11].deaths == 2
    assert (tmp_path / "sent").read_text() == "11\n11\n"


def test_behind_long_jobs_nothing_queues(make_pool, tmp_path):
    """There it would wait while another worker is free."""
    pool = make_pool(make_evaluate, workers=1)
    assert pool.free("train") == 1
    pool.submit(job(0, "meet", path=str(tmp_path / "0")))
    assert pool.free("train") == pool.free("screen") == 0
    assert pool.next(1.0) is None
    (tmp_path / "0.go").touch()
    reports(pool, 1)
    assert pool.free("train") == 1
    for n in range(1, 20):
        pool.submit(job(n))
    reports(pool, 19)
    assert pool.free("train") == 2


def test_a_job_that_is_not_plain_data_is_refused(make_pool):
    pool = make_pool(make_evaluate, workers=1)
    with pytest.raises(TypeError):
        pool.submit(job(0, value=object()))
    pool.submit(job(1))
    assert list(reports(pool, 1)) == [1]
    pool.close()
    with pytest.raises(RuntimeError):
        pool.submit(job(2))


def test_a_jobs_cost_does_not_grow_with_the_number_of_workers():
    """A pool's own time, without Ray; one that looks at every worker for each job takes a hundred times as long."""
    few, many = (min(seconds_per_job(workers, jobs=500) for _ in range(3)) for workers in (20, 2000))
    assert many < 8 * few


def test_thousands_of_busy_workers_each_get_and_report_their_job():
    with fake_ray() as fake:
        pool = RayPool(make_evaluate, workers=3000)
        for n in range(3500):
            pool.submit(job(n, limit=WAIT))
            pool.next(0.0)
        assert len(fake.pending) == 3000
        assert pool.free("train") == 0
        dropped = range(0, 3500, 7)  # some of them in hand, some in line
        for n in dropped:
            pool.cancel(1000 + n)
        found = []
        while fake.pending:
            fake.answer_one()
            while report := pool.next(0.0):
                found.append(report.job.id)
        assert sorted(found) == [1000 + n for n in range(3500) if n not in dropped]
        assert pool.free("train") >= 3000


def in_worker(look):
    """A factory of an evaluator that fails with what `look` finds in the worker."""

    def evaluate(job):
        raise LookupError(look())

    return lambda: evaluate


def looked(pool):
    pool.submit(job(0))
    report = reports(pool, 1)[0]
    assert isinstance(report, Failed)
    return report.reason.removeprefix("LookupError: ")


def fills_memory():
    """An evaluator of jobs that ask torch or Python for ever more memory."""

    def evaluate(job):
        import torch

        kept = []
        while job.candidates[0][1] == "torch":
            kept.append(torch.ones(2**24))
        while job.candidates[0][1] == "python":
            kept.append(bytearray(2**26))
        return [Outcome(number) for number, _ in job.candidates]

    return evaluate


@pytest.mark.parametrize(("whose", "words"), [("torch", "can't allocate memory"), ("python", "MemoryError")])
def test_a_job_that_takes_all_memory_fails_and_its_worker_goes_on(make_pool, whose, words):
    pool = make_pool(fills_memory, workers=1, memory_gib=2)
    pool.submit(Job(0, "train", ((0, whose),), 0))
    pool.submit(Job(1, "train", ((1, ""),), 0))
    found = reports(pool, 2)
    assert kinds(found) == {0: Failed, 1: Done}
    assert words in found[0].reason


def test_workers_have_one_thread_and_see_no_gpu(make_pool):
    def look():
        import torch

        names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "THEIRS")
        return torch.get_num_threads(), [os.environ.get(name) for name in names]

    pool = make_pool(in_worker(look), workers=1, runtime_env={"env_vars": {"THEIRS": "yes"}})
    assert looked(pool) == "(1, ['1', '', 'yes'])"


def test_a_persons_module_is_found_by_its_folder(make_pool, tmp_path, monkeypatch):
    (tmp_path / "their_folder").mkdir()
    (tmp_path / "their_folder" / "their_module.py").write_text(
        "def make():\n    return evaluate\n\ndef evaluate(job):\n    raise LookupError('found: ' + __file__)\n"
    )
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(tmp_path / "their_folder"))
        import their_module
    monkeypatch.chdir(tmp_path)
    assert looked(make_pool(their_module.make, workers=1, module_paths=["their_folder"])).startswith("found: ")
    with pytest.raises(InputError, match="cannot start: ModuleNotFoundError: No module named 'their_module'"):
        make_pool(their_module.make, workers=1)


# -- starting ----------------------------------------------------------------------------------------------


def broken():
    raise LookupError("the data are nowhere")


def dies():
    os._exit(1)


def sleeps():
    time.sleep(3600)


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (broken, {}, "a worker cannot start: LookupError: the data are nowhere"),
        (dies, {}, "3 workers in a row died"),
        (sleeps, {"start_seconds": 1.0}, "no worker for screen and train came up in 1 s"),
        (make_evaluate, {"cpus_per_worker": 99, "start_seconds": 0.5}, "99 CPU, 0 GPU each, and Ray has 4 CPU"),
        (make_evaluate, {"gpus_per_worker": 1, "start_seconds": 0.5}, "1 CPU, 1 GPU each, and Ray has 4 CPU"),
        (make_evaluate, {"workers": 0}, "pool.workers must be above zero, got 0"),
        (make_evaluate, {"gpus_per_worker": -1}, "pool.gpus_per_worker must be zero or more, got -1"),
        (make_evaluate, {"memory_gib": 0}, "pool.memory_gib must be above zero, got 0"),
        (make_evaluate, {"memory_gib": "much"}, "pool.memory_gib must be above zero, got much"),
        (make_evaluate, {"memory_gib": 0.01}, "pool.memory_gib=0.01 is not above the "),
    ],
)
def test_workers_that_cannot_start_are_one_clear_error(make_pool, make, options, words):
    began = time.monotonic()
    with pytest.raises(InputError, match=re.escape(words)) as error:
        make_pool(make, **options)
    assert "\n" not in str(error.value)
    assert time.monotonic() - began < WAIT


def test_workers_that_cannot_start_again_are_one_clear_error(make_pool, tmp_path):
    def once():
        (tmp_path / "made").touch(exist_ok=False)
        return make_evaluate()

    pool = make_pool(once, workers=1)
    pool.submit(job(0, "exit"))
    with pytest.raises(InputError, match="a worker cannot start: FileExistsError"):
        while pool.next(WAIT):
            pass


def script(text):
    """Python to run in a process of its own."""
    prelude = """
        import sys
        from normact.launch.ray_pool import RayPool
        from normact.search.outcome import Outcome
        from normact.search.pool import Job
        from normact.spaces.errors import InputError
    """
    return [sys.executable, "-W", "error", "-c", textwrap.dedent(prelude) + textwrap.dedent(text)]


def output(text):
    done = subprocess.run(script(text), capture_output=True, text=True, timeout=2 * WAIT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_addresses_where_no_ray_is():
    printed = output("""
        import ray
        for options in ({"address": "nonsense"}, {"address": "127.0.0.1:1"}, {"address": "ray://127.0.0.1:1"},
                        {"gpus_per_worker": 1, "workers": 99}):
            try:
                RayPool(dict, **options)
            except InputError as problem:
                print(problem)
            assert not ray.is_initialized()
    """).splitlines()
    assert len(printed) == 4
    assert printed[0].startswith("pool.address=nonsense is none of local, auto, HOST:PORT")
    assert printed[1].startswith("no Ray cluster answers at pool.address=127.0.0.1:1: ")
    assert printed[2].startswith("no Ray cluster answers at pool.address=ray://127.0.0.1:1: ")
    assert printed[3].startswith("the workers need 198 CPU, 99 GPU; this machine has 198 CPU, ")


def test_training_has_gpus_and_screening_has_not():
    """On a cluster that this process joins, with GPUs that Ray is told of and torch is not."""
    printed = output("""
        import os
        from ray.cluster_utils import Cluster

        def make():
            import ray
            def evaluate(job):
                device = f"{ray.get_gpu_ids()} {os.environ['CUDA_VISIBLE_DEVICES']!r}"
                return [Outcome(number, device=device, worker=str(os.getpid())) for number, _ in job.candidates]
            return evaluate

        cluster = Cluster(True, head_node_args={"num_cpus": 3, "num_gpus": 2, "include_dashboard": False})
        pool = RayPool(make, workers=2, address=cluster.address, gpus_per_worker=1, screen_workers=1)
        print(dict(pool.capacity))
        while pool.free("train") < 2:
            pool.next(1.0)
        for number in range(40):
            pool.submit(Job(number, "screen" if number % 4 else "train", ((number, None),), 0))
        devices = {"screen": set(), "train": set()}
        while report := pool.next(60.0):
            devices[report.job.kind].add(report.outcomes[0].device)
        print(sorted(devices["screen"]), sorted(devices["train"]))
        pool.close()
        cluster.shutdown()
    """).splitlines()
    assert printed == ["{'train': 2, 'screen': 1}", """["[] ''"] ["[0] '0'", "[1] '1'"]"""]


def test_ctrl_c_ends_the_driver_and_not_its_workers(tmp_path):
    """As in a terminal, every process of the group gets the signal."""
    text = f"""
        import os, signal, time

        signal.signal(signal.SIGINT, signal.default_int_handler)  # it may have been ignored where the tests started

        def make():
            def evaluate(job):
                number, path = job.candidates[0]
                open(path, "w").close()
                while not os.path.exists(path + ".go"):
                    time.sleep(0.001)
                return [Outcome(number, worker=str(os.getpid()))]
            return evaluate

        pool = RayPool(make, workers=1)
        pool.submit(Job(0, "train", ((0, {str(tmp_path / "here")!r}),), 0))
        try:
            while True:
                pool.next(60.0)
        except KeyboardInterrupt:
            open({str(tmp_path / "here.go")!r}, "w").close()
            print("interrupted", flush=True)
        print(pool.next(60.0).outcomes[0].worker)
        pool.close()
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(script(text), **pipes, start_new_session=True) as driver:
        try:
            end = time.monotonic() + WAIT
            while not (tmp_path / "here").exists() and driver.poll() is None:
                assert time.monotonic() < end
                time.sleep(0.01)
            os.killpg(driver.pid, signal.SIGINT)
            printed, _ = driver.communicate(timeout=WAIT)
        finally:
            driver.kill()
    assert driver.returncode == 0, printed
    words = printed.split()
    assert words[0] == "interrupted" and len(words) == 2, printed
    assert not Path("/proc", words[1]).exists()


def test_nothing_listens_beyond_loopback(make_pool):
    pool = make_pool(make_evaluate, workers=1)
    pool.submit(job(0))
    reports(pool, 1)
    inodes = {link for process in descendants(os.getpid()) for link in sockets(process)}
    found = [address for inode, address in listening() if inode in inodes]
    assert len(found) >= 4, "driver, worker, node and store have a server each"
    assert [address for address in found if not is_loopback(address)] == []


def descendants(root):
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it ended meanwhile
            continue
    family = {root}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return family


def sockets(process):
    try:
        links = [os.readlink(entry) for entry in Path(f"/proc/{process}/fd").iterdir()]
    except OSError:
        return set()
    return {link[8:-1] for link in links if link.startswith("socket:[")}


def listening():
    """(inode, address in the kernel's hexadecimal) of each listening TCP socket."""
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                yield fields[9], fields[1].partition(":")[0]


def is_loopback(address):
    """127.0.0.1, alone or mapped into IPv6, or ::1."""
    return address[-8:] == "0100007F" or address == "00000000000000000000000001000000"
