"""What a compiled program sends, read from its HLO text.

A collective in the body of a loop counts as often as the loop runs.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from bench.hlo import Computations, called, numbers, parse, trips

__all__ = ["Message", "messages"]

KINDS = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast"
COLLECTIVE = re.compile(rf"(?:{KINDS})(?:-start)?")

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
    computations = parse(hlo)
    return list(_sent(computations, computations.entry))


def _sent(computations: Computations, name: str) -> Iterator[Message]:
    for instruction in computations.bodies[name]:
        inner = [x for other in called(instruction) for x in _sent(computations, other)]
        if COLLECTIVE.fullmatch(instruction.operation):
            shapes = tuple(array.shape for array in instruction.arrays)
            held = tuple(array.bytes for array in instruction.arrays)
            kind = instruction.operation.removesuffix("-start")
            yield Message(kind, _group(instruction.rest), shapes, held, 1)
        elif inner and instruction.operation == "conditional":
            raise ValueError(f"a branch that sends: how often is unknown: {instruction}")
        elif inner and instruction.operation == "while":
            count = trips(instruction)
            if count is None:
                raise ValueError(f"a loop that sends, of unknown length: {instruction}")
            yield from (message._replace(times=message.times * count) for message in inner)
        else:
            yield from inner


def _group(rest: str) -> tuple[int, ...]:
    if listed := LISTED.search(rest):
        return numbers(listed[1])
    if ranged := RANGE.search(rest):
        groups, devices, sizes, order = ranged.groups()
        every = _every(numbers(sizes))
        if order:
            every = every.transpose(numbers(order))
        return tuple(every.reshape(int(groups), int(devices))[0].tolist())
    if mesh := MESH.search(rest):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        axes = re.findall(r"'([^']+)'", mesh[2])
        of_first = tuple(slice(None) if name in axes else 0 for name in sizes)
        return tuple(_every(tuple(sizes.values()))[of_first].ravel().tolist())
    raise ValueError(f"groups of devices in a form that is not known: {rest}")


def _every(sizes: tuple[int, ...]) -> np.ndarray:
    return np.arange(math.prod(sizes)).reshape(sizes)
