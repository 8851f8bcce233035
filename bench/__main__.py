"""The command line: `python -m bench [CASE…] [--quick] [--json FILE] [--compare FILE] …`."""

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

COMMANDS = "distributed", "scaling"  # Modules of their own, with options of their own.


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write. Missing a goal is a result, not a failure: returns 0."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in COMMANDS:
        return _command(argv[0])(argv[1:])
    options = _options(argv)
    # JAX reads these when it is first used, so what imports it comes after.
    if options.device:
        os.environ["JAX_PLATFORMS"] = options.device
    # PyTorch needs a part of the same accelerator's memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # Compilations are timed: none may come from an earlier run.
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    from bench import compare, records, report, run

    try:
        earlier = [records.read(file) for file in options.compare]
    except ValueError as error:
        raise SystemExit(f"python -m bench: --compare: {error}") from None
    if len(earlier) < 2:
        measured = run.run(
            options.cases,
            quick=options.quick,
            dtype=options.dtype,
            rounds=options.rounds,
            seconds=options.seconds,
            json_file=options.json,
            plot_file=options.plot,
            growth_file=options.growth,
        )
        earlier.append(measured)
    if options.compare:
        old, new = earlier
        console = report.console()
        console.print(compare.side_by_side(old, new))
        for line in compare.differences(old, new):
            console.print(line)
    return 0


def _command(name: str) -> Callable[[Sequence[str]], int]:
    try:
        return importlib.import_module(f"bench.{name}").main
    except ModuleNotFoundError as error:
        install = 'pip install --editable ".[bench,demo,distributed]"'
        raise SystemExit(f"python -m bench {name}: {error}; {install}") from None


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Time the losses against autodiff, PyTorch and optax, and against the floor: "
        "the bare matrix products, copy or factorization that nothing can avoid.",
        epilog="`python -m bench distributed` trains by several processes, and `python -m bench "
        "scaling` counts what is sent and held over a mesh: each has a --help of its own.",
    )
    parser.add_argument(
        "cases", nargs="*", metavar="CASE", help="names, or beginnings of names (default: all)"
    )
    parser.add_argument("--quick", action="store_true", help="toy sizes: does it run?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the ratios to the floor")
    parser.add_argument(
        "--growth", type=Path, metavar="FILE", help="sweep the sizes too, and draw time and memory"
    )
    parser.add_argument(
        "--compare",
        type=Path,
        nargs="+",
        default=[],
        metavar=("OLD", "NEW"),
        help="show an earlier run, written by --json, beside this one; of two, nothing is measured",
    )
    parser.add_argument("--device", help="a platform of JAX: cpu, cuda, tpu (default: JAX's own)")
    parser.add_argument("--dtype", choices=("float32", "bf16"), default="float32")
    parser.add_argument("--rounds", type=int, default=5, help="of each case, at least (default: 5)")
    parser.add_argument(
        "--seconds", type=float, default=6.0, help="for more rounds than these (default: 6)"
    )
    options = parser.parse_args(argv)
    if options.rounds < 2:
        parser.error("--rounds: quartiles need at least 2")
    if len(options.compare) > 2:
        parser.error("--compare: expected one or two files; the names of cases come before it")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
