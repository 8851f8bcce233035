"""Contenders: made ready one by one, compared with each other, timed in turn."""

import math
import os
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from bench.records import Absent, Figures, Sides

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
    # What is timed, of JAX: a "compiled" call, an "eager" one, outside `jax.jit`, or the "first"
    # one, which traces and compiles.
    call: str = "compiled"


class Ready(NamedTuple):
    """A contender that can be timed."""

    run: Callable[[], Any]
    evaluate: Callable[[], Any]  # its value and gradients, where they are not what `run` returns
    compile_seconds: float | None = None
    temporaries: int | None = None
    forget: Callable[[], None] | None = None  # before each run, and not timed
    difference: float | None = None
    note: str = ""


class Rounds(NamedTuple):
    """How often the sides take their turns: `least` times, then until the seconds are over."""

    least: int
    most: int
    seconds: float


def measure(
    contenders: Iterable[Contender], rounds: Rounds, *, compile_torch: bool = True
) -> Sides:
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
    samples = _in_turn({n: s for n, s in sides.items() if isinstance(s, Ready)}, rounds)
    return {
        name: side if isinstance(side, Absent) else _figures(side, samples[name])
        for name, side in sides.items()
    }


def _ready(contender: Contender) -> tuple[Ready, list[np.ndarray]]:
    if contender.framework == "jax":
        ready = {"compiled": _compiled, "eager": _eager, "first": _first}[contender.call](contender)
    else:
        ready = _torch(contender)
    start = time.perf_counter()
    results = [_array(x) for x in jax.tree.leaves(ready.evaluate())]
    if contender.framework == "torch.compile":
        ready = ready._replace(compile_seconds=time.perf_counter() - start)
    return ready._replace(note=contender.note), results


def _differentiated(contender: Contender) -> Callable[..., Any]:
    function, wrt = contender.function, contender.wrt
    return jax.value_and_grad(function, wrt) if wrt else function


def _compiled(contender: Contender) -> Ready:
    jitted = jax.jit(_differentiated(contender))
    seconds, _, temporaries = _compile(contender, jitted)

    def run() -> Any:
        return jax.block_until_ready(jitted(*contender.arguments))

    return Ready(run, run, seconds, temporaries)


def _eager(contender: Contender) -> Ready:
    function = _differentiated(contender)

    def run() -> Any:
        return jax.block_until_ready(function(*contender.arguments))

    return Ready(run, run)


def _first(contender: Contender) -> Ready:
    """Tracing and compiling, by a JAX that has forgotten all it has traced and compiled before."""

    def run() -> tuple[float, Any, int | None]:
        return _compile(contender, jax.jit(_differentiated(contender)))

    jax.clear_caches()
    seconds, program, temporaries = run()
    return Ready(run, lambda: program(*contender.arguments), seconds, temporaries, jax.clear_caches)


def _compile(contender: Contender, jitted: Any) -> tuple[float, Any, int | None]:
    """Seconds, the program, and the bytes of its temporaries, where the compiler says them."""
    start = time.perf_counter()
    program = jitted.lower(*contender.arguments).compile()
    seconds = time.perf_counter() - start
    memory = program.memory_analysis()
    return seconds, program, None if memory is None else memory.temp_size_in_bytes


def _torch(contender: Contender) -> Ready:
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

    return Ready(run, run)


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


def _in_turn(sides: dict[str, Ready], rounds: Rounds) -> dict[str, list[float]]:
    """Seconds per call, one sample per round; each round begins with another side."""
    calls = {
        name: 1 if side.forget else math.ceil(SAMPLE / _seconds(side, 1))
        for name, side in sides.items()
    }
    samples: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    start = time.perf_counter()
    for number in range(rounds.most):
        if number >= rounds.least and time.perf_counter() - start > rounds.seconds:
            break
        first = number % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(PAUSE)
            samples[name].append(_seconds(sides[name], calls[name]))
    return samples


def _seconds(side: Ready, calls: int) -> float:
    if side.forget:
        side.forget()
    start = time.perf_counter()
    for _ in range(calls):
        side.run()
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
