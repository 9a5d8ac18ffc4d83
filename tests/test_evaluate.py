"""`cstep eval`: the figures of `cstep run`, from shards that outlive whoever runs them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest

import cstep
from command.evaluate import default_folder
from runtime.evaluate import pools
from runtime.evaluate.evaluation import Evaluation
from runtime.evaluate.pictures import write_histograms
from runtime.evaluate.shard import Task, read_shard, run_task
from runtime.interpreter import run
from runtime.quantise import quantise_input
from runtime.report.measure import inputs_for, measure
from runtime.report.report import Report
from runtime.stored import stored
from tests.models import DIGITS_CHECKPOINT

ROOT = Path(__file__).resolve().parent.parent
COUNT, SHARD, SHARDS = 42, 8, 6
LIMIT = {"limit": COUNT, "shard": SHARD}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits network, calibrated on the digits of the training part."""
    path = tmp_path_factory.mktemp("program") / "net.cstep"
    arguments = ("--checkpoint", DIGITS_CHECKPOINT, "--calibration", "digits", "--no-check", "-o", path)
    assert cstep.main(["compile", "spikformer-2-96", *map(str, arguments)]) == 0
    return path


@pytest.fixture(scope="module")
def whole(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """An evaluation that nothing disturbed."""
    return cstep.evaluate(program, "digits", tmp_path_factory.mktemp("whole"), workers=2, **LIMIT)


def same(found: Evaluation, whole: Evaluation) -> bool:
    return found.report == whole.report and np.array_equal(found.logits, whole.logits)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*"))


def test_every_figure_is_that_of_run(program: Path, whole: Evaluation) -> None:
    loaded = cstep.load(program)
    told = measure(loaded, "digits", COUNT, share=True, kernels="fast", workers=1, compare=False)
    assert whole.report == told
    assert told.accuracy is not None and told.accuracy.inputs == COUNT
    done = run(loaded, quantise_input(loaded, inputs_for(loaded, "digits", range(COUNT)).images))
    assert np.array_equal(whole.logits, done.logits)
    assert np.array_equal(whole.counters.inputs.values, done.counters.summed().inputs.values)
    assert np.array_equal(whole.steps, done.steps)
    assert whole.again == 0


def test_a_shard_is_a_file_of_integers(program: Path, tmp_path: Path, whole: Evaluation) -> None:
    cstep.evaluate(program, "digits", tmp_path, limit=3, shard=2, workers=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "evaluation.json", "shard-000000.safetensors", "shard-000001.safetensors",
    ]  # fmt: skip
    second = read_shard(shards(tmp_path)[1], cstep.load(program), 1)
    assert np.array_equal(second.logits, whole.logits[2:3])
    with pytest.raises(cstep.CStepError, match="not a shard of 2 inputs"):
        read_shard(shards(tmp_path)[1], cstep.load(program), 2)


def test_histograms_count_every_input(whole: Evaluation, tmp_path: Path) -> None:
    found = {each.name: each for each in whole.report.histograms}
    assert all(sum(each.counts) == COUNT and len(each.edges) == len(each.counts) + 1 for each in found.values())
    assert found["steps"].counts == (0, 0, 0, COUNT)
    cycles = whole.report.figure("cycles").per_input
    assert (found["cycles"].edges[-1], found["cycles"].unit) == (cycles.worst, "cycles")
    for name in ("a.svg", "b.svg"):
        write_histograms(whole.report, tmp_path / name, "lemaire")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    for words in ("sop_hw [", "cycles [", "energy lemaire [", "steps [", f"{COUNT} inputs of digits:test"):
        assert words in (tmp_path / "a.svg").read_text()


def test_the_exit_rate_is_of_inputs_that_stopped_early(whole: Evaluation) -> None:
    from runtime.report.report import make_report
    from tests.programs import small_program

    assert whole.report.exit_rate == 0
    program = small_program()
    x = np.random.default_rng(3).standard_normal((4, 2, 4, 4)).astype(np.float32)
    sums = run(program, quantise_input(program, x)).counters.summed()
    told = make_report(program, whole.report.inputs, sums, np.array([1, 2, 1, 1]), None, share=True)
    assert told.exit_rate == 0.75
    assert (told.figure("steps").per_input.mean, told.histograms[-1].counts) == (1.25, (3, 1))


def test_kill_9_loses_no_whole_shard(program: Path, whole: Evaluation, tmp_path: Path) -> None:
    code = f"""
import os, signal, cstep
def progress(done, total):
    if done >= {2 * SHARD}:
        os.kill(os.getpid(), signal.SIGKILL)
cstep.evaluate({str(program)!r}, "digits", {str(tmp_path)!r}, workers=2, progress=progress, **{LIMIT})
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False, timeout=60)
    # whoever still held its output would have kept us waiting: its workers ended, too
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in shards(tmp_path)}
    assert 2 <= len(before) < SHARDS
    (tmp_path / ".shard-000005.safetensors.torn").write_bytes(b"half")
    heard: list[int] = []
    found = cstep.evaluate(
        program, "digits", tmp_path, resume=True, limit=COUNT, workers=2, progress=lambda done, _: heard.append(done)
    )
    assert same(found, whole)
    assert heard[0] == len(before) * SHARD and heard[-1] == COUNT
    assert before.items() <= {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in shards(tmp_path)}.items()
    assert len(list(tmp_path.iterdir())) == 1 + SHARDS
    assert same(cstep.evaluate(program, "digits", tmp_path, resume=True, **LIMIT), whole)


def workers_of_this_process() -> Iterator[int]:
    """Processes that joblib started."""
    for children in Path("/proc/self/task").glob("*/children"):
        for child in children.read_text().split():
            try:
                if b"loky.backend.popen" in Path(f"/proc/{child}/cmdline").read_bytes():
                    yield int(child)
            except OSError:
                continue  # gone already


def kill_workers() -> int:
    killed = 0
    for worker in workers_of_this_process():
        try:
            os.kill(worker, signal.SIGKILL)
            killed += 1
        except ProcessLookupError:
            continue
    return killed


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers in /proc")


@needs_proc
def test_a_killed_worker_is_replaced(program: Path, whole: Evaluation, tmp_path: Path) -> None:
    killed: list[int] = []

    def progress(done: int, total: int) -> None:
        if done >= SHARD and not killed:
            killed.append(kill_workers())

    found = cstep.evaluate(program, "digits", tmp_path, workers=2, progress=progress, **LIMIT)
    assert killed[0] >= 1 and found.again >= 1
    assert same(found, whole)


@needs_proc
def test_a_shard_that_kills_its_workers_is_given_up(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "ATTEMPTS", 2)
    kill_workers()  # those of the tests before
    over = Event()

    def kill() -> None:
        while not over.wait(0.01):
            kill_workers()

    killing = Thread(target=kill)
    killing.start()
    try:
        with pytest.raises(cstep.CStepError, match=r"inputs 0\.\.7.*died 2 times.*fewer --workers"):
            cstep.evaluate(program, "digits", tmp_path, workers=2, **LIMIT)
    finally:
        over.set()
        killing.join()


def test_a_folder_of_something_else_is_refused(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.programs import small_program

    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).standard_normal((4, 2, 4, 4)).astype(np.float32)
    np.savez("small.npz", x=images, y=np.array([0, 1, 2, 0]))
    np.savez("other.npz", x=images[::-1], y=np.array([0, 1, 2, 0]))
    small_program().save("small.cstep")

    def told(*arguments: str) -> str:
        code = cstep.main(["eval", *arguments, "--workers", "1"])
        out, error = capsys.readouterr()
        assert (code == 0) == (error == "")
        assert error.count("\n") <= 1
        return out + error

    small = ("small.cstep", "small.npz")
    assert "results in small-small.eval" in told(*small, "--shard", "2", "--report", "report")
    assert sorted(path.name for path in Path("report").iterdir()) == [
        "histograms.svg", "per_layer.csv", "report.html", "report.json",
    ]  # fmt: skip
    assert Report.model_validate_json(Path("report/report.json").read_bytes()).inputs.count == 4
    assert "is not empty; --resume goes on" in told(*small)
    there = ("-o", "small-small.eval", "--resume")
    assert "4 inputs of small.npz" in told(*small, *there)
    assert "of another program (program " in told(str(program), "digits", *there)
    assert "of another data set (data " in told("small.cstep", "other.npz", *there)
    assert "of another number of inputs (inputs 4, now 3)" in told(*small, *there, "--limit", "3")
    assert "in shards of another size (shard 2, now 1)" in told(*small, *there, "--shard", "1")
    assert "with the other sharing (share True, now False)" in told(*small, *there, "--no-share")
    Path("small-small.eval/shard-000001.safetensors").write_bytes(b"damaged")
    assert "shard-000001.safetensors: damaged" in told(*small, *there)
    assert "holds no results of `cstep eval`" in told(*small, "-o", "report", "--resume")
    assert "no such dataset" in told("small.cstep", "none.npz")
    assert "give the --address" in told(*small, "--backend", "dask")
    assert "--address a:1: for --backend dask or ray" in told(*small, "--address", "a:1")


def test_a_worker_refuses_what_it_was_not_sent_for(program: Path) -> None:
    held = stored("digits", "test").digest
    right = (str(program), cstep.load(program).digest, "digits", held)
    assert run_task(Task(3, 0, 1, *right, True, "fast"))[0] == 3
    with pytest.raises(cstep.CStepError, match="but the evaluation began with other"):
        run_task(Task(0, 0, 1, right[0], "other", *right[2:], True, "fast"))
    with pytest.raises(cstep.CStepError, match=r"digits: sha256 .* but the evaluation began with other"):
        run_task(Task(0, 0, 1, *right[:3], "other", True, "fast"))


def test_a_backend_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for backend, module in (("dask", "distributed"), ("ray", "ray")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(cstep.CStepError, match=rf"{module} is not installed; pip install 'cstep\[{backend}\]'"):
            pools.require_backend(backend, "127.0.0.1:1")


def test_calibration_data_are_no_test_data(
    program: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], whole: Evaluation
) -> None:
    """The program was calibrated on 1,024 digits of the training part, drawn at random."""
    assert whole.report.inputs.calibrated == 0
    trained = np.random.default_rng(0).permutation(1442)[:1024]
    expected = int((trained < COUNT).sum())
    found = cstep.evaluate(program, "digits:train", tmp_path, workers=1, **LIMIT)
    assert found.report.inputs.calibrated == expected > 0
    for data, warned in (("digits:train", True), ("digits:test", False)):
        assert cstep.main(["run", str(program), data, "--limit", str(COUNT)]) == 0
        words = f"calibration data == test data: the program was calibrated on {expected} of these {COUNT}"
        assert (words in capsys.readouterr().out) == warned


def test_results_have_a_name_of_their_own() -> None:
    assert default_folder(Path("a/net.cstep"), "data/cifar10-test.parquet") == Path("net-cifar10-test.eval")
    assert default_folder(Path("net.cstep"), "digits:train") == Path("net-digits-train.eval")


@pytest.fixture
def dask_scheduler(tmp_path: Path) -> Iterator[str]:
    """The address of a local cluster: a scheduler and two workers, processes of their own."""
    pytest.importorskip("distributed")
    places = (tmp_path / "scheduler.json", tmp_path / "room")
    options = ("--scheduler-file", str(places[0]), "--no-dashboard")
    commands = [("scheduler", "--host", "127.0.0.1", "--port", "0", *options)]
    for _ in range(2):
        commands.append(("worker", "--nthreads", "1", "--no-nanny", "--local-directory", str(places[1]), *options))
    running = [
        subprocess.Popen([sys.executable, "-m", "dask", *command], cwd=ROOT, stderr=subprocess.DEVNULL)
        for command in commands
    ]
    try:
        import distributed

        with distributed.Client(scheduler_file=str(places[0]), timeout=60) as client:
            client.wait_for_workers(2, timeout=60)
            address: str = client.scheduler_info()["address"]
        yield address
    finally:
        for process in reversed(running):
            process.kill()
            process.wait()


def test_a_dask_cluster_gives_the_same(program: Path, whole: Evaluation, tmp_path: Path, dask_scheduler: str) -> None:
    found = cstep.evaluate(program, "digits", tmp_path / "results", backend="dask", address=dask_scheduler, **LIMIT)
    assert same(found, whole)
    assert len(shards(tmp_path / "results")) == SHARDS
    images = np.zeros((5, 1, 16, 16), np.float32)
    images[3, 0, 0, 0] = np.nan
    np.savez(tmp_path / "broken.npz", x=images)
    with pytest.raises(cstep.CStepError, match=r"broken\.npz: row 3: x is not finite there") as caught:
        cstep.evaluate(
            program, f"{tmp_path}/broken.npz", tmp_path / "broken", shard=1, backend="dask", address=dask_scheduler
        )
    assert "\n" not in str(caught.value)
