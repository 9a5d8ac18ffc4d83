"""Who runs the shards: processes on this machine, or a cluster's workers. Each hands on what is finished at once.

A worker that dies takes its shard with it, which is run again.
"""

from __future__ import annotations

import importlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from threading import Thread
from time import sleep
from typing import Any, Literal

from joblib import Parallel, delayed, parallel_config

from isa.errors import CStepError
from runtime.evaluate.shard import Shard, Task, run_task

Backend = Literal["loky", "dask", "ray"]
Finished = Iterator[tuple[int, Shard]]
ATTEMPTS = 4
"""So many workers may die on one shard."""
ANSWER_SECONDS = 20
WATCH_SECONDS = 0.5
EACH_AT_ONCE: dict[str, Any] = {"return_as": "generator_unordered", "batch_size": 1}


def finished(
    tasks: Sequence[Task], backend: Backend, address: str | None, workers: int, again: Callable[[int], None]
) -> Finished:
    """Run the tasks: number and result of each as it is finished, in any order.

    `workers` counts processes here; a cluster has its own. `again` hears how many shards a dead process takes along.
    Raises CStepError where a shard's workers die again and again, and where a cluster does not answer.
    """
    if address is None:
        return _processes(tasks, workers, again)
    return _dask(tasks, address) if backend == "dask" else _ray(tasks, address)


def require_backend(backend: Backend, address: str | None) -> None:
    """Refuse a backend that is not installed, one without the address that it needs, or with one that it has not."""
    if backend == "loky" and address is not None:
        raise CStepError(f"--address {address}: for --backend dask or ray; processes here have none")
    if backend != "loky":
        _extra(backend)
        if address is None:
            raise CStepError(f"--backend {backend}: give the --address of its scheduler")


def _processes(tasks: Sequence[Task], workers: int, again: Callable[[int], None]) -> Finished:
    left = {task.number: task for task in tasks}
    attempts = Counter[int]()
    while left:
        begun: list[int] = []
        pool: Any = Parallel(
            min(workers, len(left)), backend="loky", pre_dispatch="n_jobs", max_nbytes=None, **EACH_AT_ONCE
        )
        try:
            for number, shard in pool(_child_calls(left.values(), begun)):
                del left[number]
                yield number, shard
        except BrokenProcessPool as error:
            lost = [number for number in begun if number in left]
            attempts.update(lost)
            again(len(lost))
            worst = max(lost, key=attempts.__getitem__, default=None)
            if worst is None or attempts[worst] >= ATTEMPTS:
                raise CStepError(_given_up(lost, left, error)) from None


def _child_calls(tasks: Iterable[Task], begun: list[int]) -> Iterator[Any]:
    for task in tuple(tasks):
        begun.append(task.number)
        yield delayed(_run_in_child)(task, os.getpid())


def _run_in_child(task: Task, parent: int) -> tuple[int, Shard]:
    if os.getpid() != parent:
        _end_with(parent)
    return run_task(task)


@cache
def _end_with(parent: int) -> None:
    """Without its parent, which was killed, a process would wait for work for minutes, and hold its memory."""

    def watch() -> None:
        while os.getppid() == parent:
            sleep(WATCH_SECONDS)
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _given_up(lost: Sequence[int], left: dict[int, Task], error: BrokenProcessPool) -> str:
    inputs = ", ".join(f"{left[number].start}..{left[number].stop - 1}" for number in lost)
    reason = str(error).partition("\n")[0].partition(". ")[0]
    return (
        f"inputs {inputs or 'none'}: processes that run them died {ATTEMPTS} times ({reason}); "
        f"where memory is short, try fewer --workers or a smaller --shard"
    )


def _dask(tasks: Sequence[Task], address: str) -> Finished:
    distributed = _extra("dask")
    try:
        client = distributed.Client(address, timeout=ANSWER_SECONDS)
    except (OSError, TimeoutError, ValueError) as error:
        raise CStepError(f"--address {address}: no Dask scheduler answers there ({error})") from None
    with client:
        with parallel_config(backend="dask"):
            pool: Any = Parallel(pre_dispatch="all", **EACH_AT_ONCE)
        try:
            yield from pool(delayed(run_task)(task) for task in tasks)
        except distributed.KilledWorker as error:
            raise CStepError(f"--backend dask: workers died again and again ({error})") from None


def _ray(tasks: Sequence[Task], address: str) -> Finished:
    ray = _extra("ray")
    try:
        ray.init(address=address, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise CStepError(f"--address {address}: no Ray cluster answers there ({error})") from None
    try:
        run = ray.remote(run_task).options(max_retries=ATTEMPTS - 1)
        waiting = [run.remote(task) for task in tasks]
        while waiting:
            done, waiting = ray.wait(waiting)
            yield from ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.WorkerCrashedError as error:
        raise CStepError(f"--backend ray: workers died again and again ({error})") from None
    finally:
        ray.shutdown()


def _extra(backend: Backend) -> Any:
    module = {"dask": "distributed"}.get(backend, backend)
    try:
        return importlib.import_module(module)
    except ImportError:
        raise CStepError(f"--backend {backend}: {module} is not installed; pip install 'cstep[{backend}]'") from None
