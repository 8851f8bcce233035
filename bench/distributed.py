"""`python -m bench distributed`: the digits classifier trained by several processes.

Each process is started as it would be on a machine of its own: it finds the others by
`jax.distributed`, holds one device of a mesh over all processes, and feeds its own part of every
batch. The classifier is split along its examples or along its classes.

The weights must be those of one process to the bit. They can be: pixels are sixteenths, batch and
learning rates are powers of two, and the slopes of the exact hinge are whole numbers, so that every
sum in the training is exact in float32, in whatever order it is taken.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

import mcgrad

HOST = "127.0.0.1"
CLASSES, TRAINING, BATCH = 10, 1440, 256
RATE = 0.5  # halved after each third of the steps

# Seconds. A process that no longer answers is given up by the others after HEARTBEAT. Once one has
# ended, the others have GRACE to end by themselves, are then asked to, and after another PATIENCE
# are not asked any more.
START, HEARTBEAT, GRACE, PATIENCE = 60, 10, 12, 3
# They would change how many devices a worker has, or lead it away from the loopback interface.
NOT_FOR_WORKERS = {"XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"}

NAME = "python -m bench distributed"
SPLITS = "data", "model"


# The launcher.


class Ended(NamedTuple):
    """How a process ended, and how many seconds after the first of them."""

    process: int
    code: int
    later: float

    def __str__(self) -> str:
        if self.code < 0:
            how = f"was ended by {signal.Signals(-self.code).name}"
        else:
            how = f"ended with code {self.code}"
        return f"process {self.process} {how}" + (f" {self.later:.1f} s later" * (self.later > 0))


class Run(NamedTuple):
    """What a training left behind, and how long it took."""

    split: str
    processes: int
    result: dict[str, np.ndarray]
    seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    """Train in each way that is asked for, and compare. Returns 1 if the results are not equal."""
    options = _options(argv)
    if options.worker is not None:
        train(options.worker)
        return 0
    folder = options.folder or Path(tempfile.mkdtemp(prefix="mcgrad-"))
    console = Console()
    console = console if console.is_terminal else Console(width=120)
    runs = []
    with console.status("") as status:
        for split, processes in _plan(options):
            status.update(f"split {split}, processes: {processes}, in {folder / split}")
            runs.append(_launch(split, processes, folder / split, options))
    console.print(_table(runs))
    if options.folder is None:
        shutil.rmtree(folder)
    different = [run.split for run in runs if _difference(run, runs[-1]) != 0]
    if different:
        print(f"{NAME}: not the weights of one process: {', '.join(different)}", file=sys.stderr)
    return int(bool(different))


def _plan(options: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """(split, processes) of each training; that of one process, without a mesh, is the last."""
    for split in [options.split] if options.split else SPLITS:
        yield split, options.processes
    yield "none", 1


def _launch(split: str, processes: int, folder: Path, options: argparse.Namespace) -> Run:
    """Start the processes and wait until all of them have ended."""
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    task = Task(
        split, 0, processes, _free_port(), str(folder.resolve()), options.steps, options.every
    )
    if split != "none":
        task = task._replace(kill=options.kill, freeze=options.freeze, victim=options.victim)
    with contextlib.ExitStack() as stack:
        workers = []
        for process in range(processes):
            log = stack.enter_context((folder / f"process-{process}.log").open("w"))
            given = json.dumps(task._replace(process=process))
            worker = subprocess.Popen(
                [sys.executable, "-m", "bench.distributed", "--worker", given],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(),
            )
            stack.callback(_end, worker)
            workers.append(worker)
        ended = _wait(workers, start + options.limit)
    seconds = time.monotonic() - start
    if any(end.code for end in ended):
        told = [str(end) for end in ended]
        if seconds > options.limit:
            told.insert(0, f"not done after {options.limit} s")
        raise SystemExit(f"{NAME}: split {split}: {', '.join(told)}; their logs: {folder}")
    with np.load(folder / "result.npz") as result:
        return Run(split, processes, dict(result), seconds)


def _environment() -> dict[str, str]:
    kept = {name: x for name, x in os.environ.items() if name.upper() not in NOT_FOR_WORKERS}
    return kept | {"JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as server:
        return server.getsockname()[1]


def _wait(workers: list[subprocess.Popen], limit: float) -> list[Ended]:
    """How the processes ended, in that order; none outlives the first by more than it may."""
    ended: dict[int, Ended] = {}
    first, asked = None, False
    while len(ended) < len(workers):
        time.sleep(0.05)
        now = time.monotonic()
        for process, worker in enumerate(workers):
            if process not in ended and worker.poll() is not None:
                first = now if first is None else first
                ended[process] = Ended(process, worker.returncode, now - first)
        deadline = limit if first is None else first + GRACE
        if now > deadline and not asked:
            asked = True
            for worker in workers:
                worker.terminate()
        if now > deadline + PATIENCE:
            for worker in workers:
                worker.kill()
    return list(ended.values())


def _end(worker: subprocess.Popen) -> None:
    """Leave no process behind, whatever happens to the launcher."""
    worker.kill()
    worker.wait()


def _difference(run: Run, other: Run) -> float:
    """The largest difference between two trainings' parameters."""
    names = "weights", "bias"
    return max(float(np.abs(run.result[n] - other.result[n]).max()) for n in names)


def _table(runs: list[Run]) -> Table:
    table = Table(title="The digits classifier", title_justify="left")
    table.add_column("split")
    for column in ("processes", "from step", "loss", "accuracy", "weights differ by", "seconds"):
        table.add_column(column, justify="right")
    for run in runs:
        start, loss, accuracy = (run.result[name] for name in ("start", "loss", "accuracy"))
        differ = "" if run is runs[-1] else f"{_difference(run, runs[-1]):g}"
        figures = f"{start}", f"{loss:.4f}", f"{accuracy:.1%}", differ, f"{run.seconds:.1f}"
        table.add_row(run.split, f"{run.processes}", *figures)
    return table


# The worker.


class Task(NamedTuple):
    """What a process is to do: its place among the others, and the training."""

    split: str
    process: int
    processes: int
    port: int
    folder: str
    steps: int
    every: int
    kill: int | None = None
    freeze: int | None = None
    victim: int | None = None


class Digits(NamedTuple):
    """Images as rows of 64 pixels in [0, 1], with their labels."""

    inputs: np.ndarray
    labels: np.ndarray


def digits() -> tuple[Digits, Digits]:
    """1440 images to train on, the others to test on."""
    pixels, labels = map(np.asarray, load_digits(return_X_y=True))
    inputs, labels = (pixels / 16).astype(np.float32), labels.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(labels))
    training, test = (Digits(inputs[part], labels[part]) for part in np.split(order, [TRAINING]))
    return training, test


def batch(step: int) -> np.ndarray:
    """The rows of the batch of a step, the same for every process, before or after a restart."""
    return np.random.default_rng((0, step)).choice(TRAINING, BATCH, replace=False)


def train(task: Task) -> None:
    """One process of the training, from the last checkpoint if there is one."""
    if task.processes > 1:
        address = f"{HOST}:{task.port}"
        jax.distributed.initialize(
            address,
            task.processes,
            task.process,
            initialization_timeout=START,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=HEARTBEAT,
            coordinator_bind_address=address,
        )
    mesh = jax.make_mesh((task.processes,), (task.split,))
    with jax.set_mesh(mesh):
        start, params, loss = _train(task, mesh)
    if task.processes > 1:
        params = multihost_utils.process_allgather(params, tiled=True)
        jax.distributed.shutdown()
    if task.process == 0:
        params = jax.device_get(params)
        accuracy = _accuracy(params, digits()[1])
        results = params | {"start": start, "loss": loss, "accuracy": accuracy}
        np.savez(Path(task.folder) / "result.npz", **results)


def _train(task: Task, mesh: jax.sharding.Mesh) -> tuple[int, dict[str, jax.Array], float]:
    """The step from which it went on, the parameters, and the loss on the whole training part."""
    training, _ = digits()
    loss, examples, classes = _layout(task.split, mesh)
    thirds = {task.steps // 3: 0.5, 2 * task.steps // 3: 0.5}
    optimizer = optax.sgd(optax.piecewise_constant_schedule(RATE, thirds))

    def objective(params, inputs, labels):
        return loss(params["weights"], inputs, labels, bias=params["bias"])

    @jax.jit
    def update(params, state, inputs, labels):
        gradient = jax.grad(objective)(params, inputs, labels)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state

    def placed(rows):
        """Global arrays, to which each process gives those of the rows that it holds."""
        own = np.split(rows, task.processes)[task.process] if task.split == "data" else rows
        return [jax.make_array_from_process_local_data(examples, x[own]) for x in training]

    zeros = {"weights": np.zeros((CLASSES, 64), "f"), "bias": np.zeros(CLASSES, "f")}
    params = jax.device_put(zeros, classes)
    state = jax.jit(optimizer.init)(params)
    with _checkpoints(task) as checkpoints:
        start = checkpoints.latest_step() or 0
        if start:
            last = ocp.args.StandardRestore((params, state))
            params, state = checkpoints.restore(start, args=last)
        for step in range(start + 1, task.steps + 1):
            params, state = update(params, state, *placed(batch(step)))
            if step % task.every == 0 or step == task.steps:
                checkpoints.save(step, args=ocp.args.StandardSave((params, state)))
            _fail(task, step)
    return start, params, float(jax.jit(objective)(params, *placed(np.arange(TRAINING))))


def _layout(split: str, mesh: jax.sharding.Mesh) -> tuple[Any, NamedSharding, NamedSharding]:
    """The loss, and how examples and classes lie on the mesh."""
    loss, whole = mcgrad.linear_weston_watkins_loss, NamedSharding(mesh, jax.P())
    if split == "data":
        return mcgrad.shard(loss, mesh, batch_axis=split), NamedSharding(mesh, jax.P(split)), whole
    if split == "model":
        return mcgrad.shard(loss, mesh, model_axis=split), whole, NamedSharding(mesh, jax.P(split))
    return loss, whole, whole


def _checkpoints(task: Task) -> ocp.CheckpointManager:
    """Written by all processes together, each its own part; a half-written one does not count."""
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    return ocp.CheckpointManager(Path(task.folder) / "checkpoints", options=options)


def _accuracy(params: dict[str, np.ndarray], test: Digits) -> float:
    scores = test.inputs @ params["weights"].T + params["bias"]
    return float(np.mean(scores.argmax(1) == test.labels))


def _fail(task: Task, step: int) -> None:
    """Die or stop answering, to see what the others make of it."""
    victim = task.processes - 1 if task.victim is None else task.victim
    ways = {task.kill: signal.SIGKILL, task.freeze: signal.SIGSTOP}
    if task.process == victim and step in ways:
        os.kill(os.getpid(), ways[step])


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=NAME,
        description="Train the digits classifier by several processes on this machine, and by one, "
        "and compare the weights. Once a process has died the others end too, within "
        f"{GRACE + PATIENCE} seconds; the same command then goes on from the last checkpoint.",
    )
    whole = {"type": int, "metavar": "N"}
    parser.add_argument("--processes", default=2, **whole, help="how many (default: 2)")
    parser.add_argument(
        "--split", choices=SPLITS, help="along examples or along classes (default: both)"
    )
    parser.add_argument("--steps", default=300, **whole, help="of the training (default: 300)")
    parser.add_argument(
        "--every", default=50, **whole, help="steps between checkpoints (default: 50)"
    )
    parser.add_argument(
        "--folder", type=Path, help="of checkpoints, logs and results (default: removed at the end)"
    )
    parser.add_argument(
        "--limit", default=600, **whole, help="seconds that a training may take (default: 600)"
    )
    parser.add_argument("--kill", **whole, help="kill a process after N steps")
    parser.add_argument("--freeze", **whole, help="stop a process after N steps, without an end")
    parser.add_argument("--victim", **whole, help="which process (default: the last)")
    parser.add_argument("--worker", type=_task, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    _check(parser, options)
    return options


def _task(given: str) -> Task:
    return Task(*json.loads(given))


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    for name in ("processes", "steps", "every", "limit"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: expected 1 or more, got {getattr(options, name)}")
    sizes = {"data": {"examples": BATCH, "images": TRAINING}, "model": {"classes": CLASSES}}
    for split, _ in _plan(options):
        for name, size in sizes.get(split, {}).items():
            if size % options.processes:
                parser.error(f"--processes: {options.processes} do not divide {size} {name}")


if __name__ == "__main__":
    raise SystemExit(main())
