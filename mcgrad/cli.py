"""The command line: parses, hands over to the part that does the work, turns misuse into one line.

Exit codes: 0 all is well, 1 a gradient is wrong, 2 misuse.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["main"]


class Misuse(Exception):
    """The command cannot be run as it was given; the message is one line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `mcgrad ARGV` and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="mcgrad", description="Losses for JAX whose gradients are known in closed form."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_demo(commands)
    options = parser.parse_args(argv)
    try:
        return options.run(options)
    except Misuse as misuse:
        print(f"mcgrad: {misuse}", file=sys.stderr)
        return 2


def _add_demo(commands) -> None:
    parser = commands.add_parser(
        "demo",
        help="train on handwritten digits and draw the result",
        description="Train the Weston-Watkins classifier on 1,797 handwritten digits, with the "
        "exact and with the smooth hinge; check its gradients on them; draw the result.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--output", type=Path, default=Path("mcgrad-demo"), metavar="DIR", help="for the picture"
    )
    parser.add_argument("--steps", type=_at_least(1), default=1000, help="of either training")
    parser.add_argument("--seed", type=_at_least(0), default=0, help="of the split and the start")
    parser.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> int:
    try:
        from mcgrad import demo
    except ModuleNotFoundError as missing:
        raise Misuse(
            f'the demo needs {missing.name}: pip install "mcgrad[demo]" installs it'
        ) from missing
    try:
        return demo.run(options.output, steps=options.steps, seed=options.seed)
    except OSError as error:
        raise Misuse(f"cannot write to {options.output}: {error.strerror}") from error


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least:
            raise ValueError
        return int(text)

    number.__name__ = f"whole number from {least}"  # What argparse says was expected.
    return number
