"""What a compiled program sends, read from its HLO text.

A collective in the body of a loop counts as often as the loop runs.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

__all__ = ["Message", "messages"]

KINDS = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast"
COLLECTIVE = re.compile(rf"(?:{KINDS})(?:-start)?")
COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?[\w.-]+ = (.*?) ([a-z][\w-]*)\((.*)")
ARRAY = re.compile(r"(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
CALLED = re.compile(r"(?:to_apply|calls|body)=%?([\w.-]+)")
BRANCHES = re.compile(r"(?:branch_computations=\{(.*?)\}|(?:true|false)_computation=(%?[\w.-]+))")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')

# The devices of a group: all groups in full; a range, reshaped and transposed; axes of a mesh.
LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
RANGE = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] *\{([^}]*)\}")


class Message(NamedTuple):
    """One collective: what a device gives of every array, and with whom it shares them."""

    kind: str
    group: tuple[int, ...]  # the devices of the first group, by their place in the mesh
    shapes: tuple[tuple[int, ...], ...]
    bytes: tuple[int, ...]
    times: int


def messages(hlo: str) -> list[Message]:
    """All collectives of a program, those of the loops with how often they run."""
    computations: dict[str, list[str]] = {}
    lines: list[str] = []
    entry = ""
    for line in hlo.splitlines():
        if head := COMPUTATION.match(line):
            lines = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        else:
            lines.append(line)
    return list(_sent(computations, entry, 1))


def _sent(computations: dict[str, list[str]], name: str, times: int) -> Iterator[Message]:
    for line in computations[name]:
        if not (found := INSTRUCTION.match(line)):
            continue
        result, operation, rest = found.groups()
        if COLLECTIVE.fullmatch(operation):
            arrays = [(int(bits or 8), _sizes(sizes)) for bits, sizes in ARRAY.findall(result)]
            kind, shapes = operation.removesuffix("-start"), tuple(shape for _, shape in arrays)
            held = tuple(-(-bits * math.prod(shape) // 8) for bits, shape in arrays)
            yield Message(kind, _group(rest), shapes, held, times)
        elif operation == "while":
            trips = TRIPS.search(rest)
            inner = list(_sent(computations, CALLED.findall(rest)[0], 1))
            if inner and not trips:
                raise ValueError(f"a loop that sends, of unknown length: {line.strip()}")
            count = int(trips[1]) if trips else 0
            yield from (message._replace(times=message.times * count * times) for message in inner)
        elif operation == "conditional":
            branches = re.findall(r"[\w.-]+", " ".join(map(" ".join, BRANCHES.findall(rest))))
            if any(any(_sent(computations, branch, 1)) for branch in branches):
                raise ValueError(f"a branch that sends: how often is unknown: {line.strip()}")
        elif operation in ("call", "async-start"):
            yield from _sent(computations, CALLED.findall(rest)[0], times)


def _group(rest: str) -> tuple[int, ...]:
    if listed := LISTED.search(rest):
        return _sizes(listed[1])
    if ranged := RANGE.search(rest):
        groups, devices, sizes, order = ranged.groups()
        every = _every(_sizes(sizes))
        if order:
            every = every.transpose(_sizes(order))
        return tuple(every.reshape(int(groups), int(devices))[0].tolist())
    if mesh := MESH.search(rest):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        axes = re.findall(r"'([^']+)'", mesh[2])
        of_first = tuple(slice(None) if name in axes else 0 for name in sizes)
        return tuple(_every(tuple(sizes.values()))[of_first].ravel().tolist())
    raise ValueError(f"groups of devices in a form that is not known: {rest}")


def _every(sizes: tuple[int, ...]) -> np.ndarray:
    return np.arange(math.prod(sizes)).reshape(sizes)


def _sizes(numbers: str) -> tuple[int, ...]:
    return tuple(int(number) for number in numbers.split(",") if number)
