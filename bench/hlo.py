"""The text of a compiled program: its computations, and the work of its matrix products.

What is in the body of a loop counts as often as the loop runs; of branches, the dearest counts.
"""

import math
import re
from typing import NamedTuple

__all__ = ["Array", "Computations", "Instruction", "called", "parse", "products", "trips"]

COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)")
ARRAY = re.compile(r"(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
CALLED = re.compile(r"(?:to_apply|calls|body)=%?([\w.-]+)")
BRANCHES = re.compile(r"(?:branch_computations=\{(.*?)\}|(?:true|false)_computation=(%?[\w.-]+))")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
OPERANDS = re.compile(r"%([\w.-]+)")
BATCH = re.compile(r"lhs_batch_dims=\{([\d,]*)\}")
TARGET = re.compile(r'custom_call_target="([^"]*)"')


class Array(NamedTuple):
    shape: tuple[int, ...]
    bytes: int


class Instruction(NamedTuple):
    name: str
    arrays: tuple[Array, ...]  # of the result
    operation: str
    rest: str  # operands and attributes


class Computations(NamedTuple):
    entry: str
    bodies: dict[str, list[Instruction]]


def parse(hlo: str) -> Computations:
    bodies: dict[str, list[Instruction]] = {}
    lines: list[Instruction] = []
    entry = ""
    for line in hlo.splitlines():
        if head := COMPUTATION.match(line):
            lines = bodies.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif found := INSTRUCTION.match(line):
            name, result, operation, rest = found.groups()
            lines.append(Instruction(name, _arrays(result), operation, rest))
    return Computations(entry, bodies)


def called(instruction: Instruction) -> list[str]:
    """The computations that an instruction runs: of a conditional, one of these."""
    rest = instruction.rest
    if instruction.operation == "conditional":
        return re.findall(r"[\w.-]+", " ".join(map(" ".join, BRANCHES.findall(rest))))
    runs = instruction.operation in ("while", "call", "fusion", "async-start")
    return CALLED.findall(rest)[:1] if runs else []


def trips(loop: Instruction) -> int | None:
    """How often a loop runs, where the compiler knows."""
    known = TRIPS.search(loop.rest)
    return int(known[1]) if known else None


def products(hlo: str) -> float:
    """The multiply-adds of the matrix products and triangular solves that a program carries out."""
    computations = parse(hlo)
    return _work(computations, computations.entry)


def _work(computations: Computations, name: str) -> float:
    total = 0.0
    shapes: dict[str, tuple[int, ...]] = {}
    for instruction in computations.bodies[name]:
        shapes[instruction.name] = instruction.arrays[0].shape if instruction.arrays else ()
        inner = [_work(computations, other) for other in called(instruction)]
        if instruction.operation == "while" and any(inner):
            count = trips(instruction)
            if count is None:
                raise ValueError(f"a loop with products, of unknown length: {instruction}")
            total += count * sum(inner)
        else:
            total += max(inner, default=0.0) + _own_work(instruction, shapes)
    return total


def _own_work(instruction: Instruction, shapes: dict[str, tuple[int, ...]]) -> float:
    """Of (m, k) and (k, n), m k n: the root of the product of the three sizes, result included."""
    target = TARGET.search(instruction.rest)
    solve = bool(target) and "trsm" in target[1]
    if instruction.operation != "dot" and not (target and re.search("gemm|matmul|trsm", target[1])):
        return 0.0
    left, right = (shapes[name] for name in OPERANDS.findall(instruction.rest)[:2])
    sizes = [math.prod(shape) for shape in (left, right, instruction.arrays[0].shape)]
    batched = BATCH.search(instruction.rest)
    times = math.prod(left[axis] for axis in numbers(batched[1])) if batched else 1
    # A triangular matrix is half of one.
    return math.sqrt(math.prod(sizes) / times) / (2 if solve else 1)


def _arrays(result: str) -> tuple[Array, ...]:
    found = [(int(bits or 8), numbers(sizes)) for bits, sizes in ARRAY.findall(result)]
    return tuple(Array(shape, -(-bits * math.prod(shape) // 8)) for bits, shape in found)


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)
