"""Contenders: made ready one by one, compared with each other, timed in turn."""

import math
import os
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

SAMPLE = 0.02  # Seconds of one sample: a short call is repeated to fill it.
PAUSE = 0.005  # Seconds in which the threads of the side before fall asleep.


class Contender(NamedTuple):
    """One side of a case: a function, its arguments, and how to run it."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    # With respect to which arguments it is differentiated; () asks for the value alone, and None
    # runs the function as it is: the floor.
    wrt: tuple[int, ...] | None
    framework: str = "jax"  # or "torch", "torch.compile"
    note: str = ""  # In what it is not the same loss as the others.


class Figures(NamedTuple):
    """What was measured of a contender; `difference` is the relative one from mcgrad's results."""

    median: float
    quartiles: tuple[float, float]
    rounds: int
    compile_seconds: float | None
    temporaries: int | None
    difference: float | None
    note: str


class Absent(NamedTuple):
    """Why a contender was not measured."""

    reason: str


class Ready(NamedTuple):
    """A contender that has been compiled and has run once."""

    run: Callable[[], Any]
    compile_seconds: float | None
    temporaries: int | None
    difference: float | None
    note: str


class Rounds(NamedTuple):
    """How often the sides take their turns: `least` times, then until the seconds are over."""

    least: int
    most: int
    seconds: float


def measure(
    contenders: Iterable[Contender], rounds: Rounds, *, compile_torch: bool = True
) -> dict[str, Figures | Absent]:
    """Time the contenders in turn. The first is the reference for the results of the others."""
    sides: dict[str, Ready | Absent] = {}
    reference = None
    for contender in contenders:
        if contender.framework == "torch.compile" and not compile_torch:
            sides[contender.name] = Absent("left out of --quick")
            continue
        try:
            ready, results = _ready(contender)
        except Exception as error:
            # A peer that cannot run here is a finding; the library or the floor, a failure.
            if reference is None or contender.wrt is None:
                raise
            sides[contender.name] = Absent(_one_line(error))
            continue
        reference = results if reference is None else reference
        same = contender.wrt is not None and not contender.note
        difference = _difference(results, reference) if same else None
        sides[contender.name] = ready._replace(difference=difference)
    samples = _in_turn({n: s.run for n, s in sides.items() if isinstance(s, Ready)}, rounds)
    return {
        name: side if isinstance(side, Absent) else _figures(side, samples[name])
        for name, side in sides.items()
    }


def _ready(contender: Contender) -> tuple[Ready, list[np.ndarray]]:
    prepare = _jax if contender.framework == "jax" else _torch
    run, compile_seconds, temporaries = prepare(contender)
    start = time.perf_counter()
    results = [_array(x) for x in jax.tree.leaves(run())]
    if contender.framework == "torch.compile":
        compile_seconds = time.perf_counter() - start
    return Ready(run, compile_seconds, temporaries, None, contender.note), results


def _jax(contender: Contender) -> tuple[Callable[[], Any], float, int | None]:
    function, wrt = contender.function, contender.wrt
    jitted = jax.jit(jax.value_and_grad(function, wrt) if wrt else function)
    start = time.perf_counter()
    compiled = jitted.lower(*contender.arguments).compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    temporaries = None if memory is None else memory.temp_size_in_bytes
    return lambda: jax.block_until_ready(jitted(*contender.arguments)), seconds, temporaries


def _torch(contender: Contender) -> tuple[Callable[[], Any], None, None]:
    import torch

    torch.set_num_threads(cores())
    torch.set_float32_matmul_precision("high")  # JAX's default on accelerators; no change on a CPU.
    function = contender.function
    if contender.framework == "torch.compile":
        torch.compiler.reset()
        function = torch.compile(function, dynamic=False, fullgraph=True)
    tensors = [torch.from_dlpack(x).clone() for x in contender.arguments]
    wanted = [tensors[i].requires_grad_() for i in contender.wrt or ()]
    wait = torch.cuda.synchronize if tensors[0].is_cuda else lambda: None

    def run() -> tuple[Any, ...]:
        value = function(*tensors)
        gradients = torch.autograd.grad(value, wanted) if wanted else ()
        wait()
        return value.detach(), *gradients

    return run, None, None


def cores() -> int:
    """How many this process may use: all that XLA takes, hyperthreads included."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _array(x: Any) -> np.ndarray:
    return x.float().cpu().numpy() if hasattr(x, "cpu") else np.asarray(x, np.float32)


def _difference(results: list[np.ndarray], reference: list[np.ndarray]) -> float:
    """The largest relative difference among the value and the gradients; absolute from a zero."""
    return max(
        float(np.linalg.norm(a - b) / (np.linalg.norm(b) or 1))
        for a, b in zip(results, reference, strict=True)
    )


def _in_turn(runs: dict[str, Callable[[], Any]], rounds: Rounds) -> dict[str, list[float]]:
    """Seconds per call, one sample per round; each round begins with another side."""
    calls = {name: math.ceil(SAMPLE / _seconds(run, 1)) for name, run in runs.items()}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    start = time.perf_counter()
    for number in range(rounds.most):
        if number >= rounds.least and time.perf_counter() - start > rounds.seconds:
            break
        first = number % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(PAUSE)
            samples[name].append(_seconds(runs[name], calls[name]))
    return samples


def _seconds(run: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def _figures(side: Ready, samples: list[float]) -> Figures:
    first, median, third = statistics.quantiles(samples, n=4, method="inclusive")
    return Figures(
        median=median,
        quartiles=(first, third),
        rounds=len(samples),
        compile_seconds=side.compile_seconds,
        temporaries=side.temporaries,
        difference=side.difference,
        note=side.note,
    )


def _one_line(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed"
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first[:120]}"
