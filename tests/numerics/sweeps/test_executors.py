"""Tasks on threads, processes and clusters: bounded, in any order, begun again where a worker died."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from numerics.models import ParameterError
from numerics.sweeps import executors


class Dies:
    """A task that kills its process the first time it is run."""

    def __init__(self, marker: Path, value: int) -> None:
        self.marker, self.value = marker, value

    def __call__(self) -> int:
        if not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.value


class Always(Dies):
    def __call__(self) -> int:
        os.kill(os.getpid(), signal.SIGKILL)


class Constant:
    def __init__(self, value: int) -> None:
        self.value = value

    def __call__(self) -> int:
        return self.value


def test_tasks_of_dead_processes_are_begun_again(tmp_path) -> None:
    tasks = [(k, Dies(tmp_path / str(k), k) if k == 3 else Constant(k)) for k in range(20)]
    assert sorted(executors.run_tasks(tasks, "processes", 2)) == [(k, k) for k in range(20)]


def test_processes_that_always_die_are_reported(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(executors, "ATTEMPTS", 1)
    with pytest.raises(executors.WorkersLostError, match="2 times"):
        list(executors.run_tasks([(0, Always(tmp_path, 0))], "processes", 1))
    good = [(k, Constant(k)) for k in range(1, 30)]
    with pytest.raises(executors.WorkersLostError, match="2 times"):  # however many others end in between
        list(executors.run_tasks([(0, Always(tmp_path, 0)), *good], "processes", 2))
    # A pool of somebody else cannot be replaced.
    with ProcessPoolExecutor(1, get_context("spawn")) as pool, pytest.raises(executors.WorkersLostError):
        list(executors.run_tasks([(0, Always(tmp_path, 0))], pool))


def test_tasks_are_handed_over_a_few_at_a_time() -> None:
    drawn = []

    def tasks():
        for k in range(1000):
            drawn.append(k)
            yield k, Constant(k)

    found = executors.run_tasks(tasks(), "threads", 2)
    next(found)
    assert len(drawn) <= executors.WINDOW * 2
    assert len(list(found)) == 999


def test_errors_of_tasks_reach_the_caller() -> None:
    def fail():
        raise ParameterError("no such thing")

    for name in ("serial", "threads"):
        with pytest.raises(ParameterError, match="no such thing"):
            list(executors.run_tasks([(0, fail)], name))


# Clusters.


class Slow:
    """A task that takes long enough to be killed, and says in which process it was run."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __call__(self) -> tuple[int, int]:
        time.sleep(0.05)
        return self.value, os.getpid()


@pytest.fixture(scope="module")
def client():
    """A local cluster of two workers."""
    with executors.cluster("local", 2) as found:
        yield found


def test_cluster_runs_tasks_and_survives_a_killed_worker(client) -> None:
    victims = list(client.run(os.getpid).values())
    assert len(victims) == 2
    found, killed = {}, False
    for key, (value, process) in executors.run_tasks([(k, Slow(k)) for k in range(120)], client):
        found[key] = value, process
        if len(found) == 15:
            os.kill(victims[0], signal.SIGKILL)
            killed = True
    assert killed
    assert {key: value for key, (value, _) in found.items()} == {k: k for k in range(120)}
    assert victims[1] in {process for _, process in found.values()}


@pytest.mark.slow
def test_sweep_on_a_cluster_with_a_killed_worker(client, tmp_path) -> None:
    """The same bits as on one core, with a worker killed in the middle."""
    import numpy as np
    import xarray

    from numerics import GaussianMixture, sweep
    from numerics.models import Chain, Estimator
    from theory.losses import CrossEntropy, Distillation

    data = GaussianMixture(alpha=0.8, rho=0.2, delta=1.0)
    chain = Chain.of([Estimator(CrossEntropy(), ridge=0.1), Estimator(Distillation(), ridge=1e-5, eta=0.5)])
    over = {"teacher.ridge": np.geomspace(1e-3, 1, 5), "alpha": np.linspace(0.2, 3.0, 100)}
    observables = ("test_error", "loss_gap")
    path = tmp_path / "grid.nc"
    victim = next(iter(client.run(os.getpid).values()))
    done = threading.Event()

    def kill() -> None:
        journal = tmp_path / "grid.nc.partial"
        while not done.is_set():
            if journal.exists() and journal.stat().st_size > 18_000:
                os.kill(victim, signal.SIGKILL)
                return
            time.sleep(0.005)

    killer = threading.Thread(target=kill)
    killer.start()
    found = sweep(data, chain, over, observables, output=path, executor=client).load()
    done.set()
    killer.join()
    assert victim not in client.run(os.getpid).values()  # a new worker has taken its place
    expected = sweep(data, chain, over, observables)
    del found.attrs["description"]
    xarray.testing.assert_identical(found, expected)


def test_cluster_that_is_not_there(monkeypatch) -> None:
    monkeypatch.setattr(executors, "_CONNECTION", 0.5)
    with pytest.raises(ParameterError, match="cannot be reached"), executors.cluster("tcp://127.0.0.1:1"):
        pass
    with pytest.raises(ParameterError, match="cannot be reached"), executors.cluster("no address"):
        pass
