"""The command line: parses, hands over to the part that does the work, turns misuse into one line.

Exit codes: 0 all is well, 1 a gradient is wrong, 2 misuse.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

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
    _add_check(commands)
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


def _add_check(commands) -> None:
    parser = commands.add_parser(
        "check",
        help="check the gradients of the losses, or of a function of your own",
        description="Without a name, check every gradient of every loss: against autodiff of the "
        "plain equation, against central differences in float64, and with the full checker. "
        "PACKAGE.MODULE:FUNCTION checks a function of your own.",
        epilog="Exit code: 0 all is well, 1 a gradient is wrong, 2 misuse.",
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="a loss, or PACKAGE.MODULE:FUNCTION (default: all)"
    )
    parser.add_argument(
        "--args", metavar="ARGS", help='for a function: FILE.npz, or "f32[3,4],i32[3]" for random'
    )
    parser.add_argument("--reference", metavar="PACKAGE.MODULE:FUNCTION", help="one that is right")
    parser.add_argument("--order", type=int, choices=(1, 2), default=1, help="of the derivatives")
    parser.add_argument("--seed", type=_at_least(0), default=0, help="of all random choices")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    import mcgrad

    own = [name for name in options.names if ":" in name]
    losses = [name for name in options.names if ":" not in name]
    unknown = [name for name in losses if name not in mcgrad.LOSSES]
    if unknown:
        raise Misuse(f"no loss is called {unknown[0]!r}; there are {', '.join(mcgrad.LOSSES)}")
    if own and (losses or len(own) > 1):
        raise Misuse("check one function of your own at a time, and without losses beside it")
    if own:
        return _check_function(own[0], options)
    if options.args or options.reference:
        raise Misuse("--args and --reference go with PACKAGE.MODULE:FUNCTION")
    return _check_losses(losses or list(mcgrad.LOSSES), options)


def _check_function(path: str, options: argparse.Namespace) -> int:
    from mcgrad import audit
    from mcgrad.checking import check_gradients

    if not options.args:
        raise Misuse(f'{path} needs --args, a FILE.npz or a list like "f32[3,4],i32[3]"')
    sys.path.insert(0, "")
    try:
        fun = audit.function(path)
        reference = audit.function(options.reference) if options.reference else None
        args = audit.arguments(options.args, options.seed)
    except (ValueError, OSError) as error:
        raise Misuse(str(error)) from error
    try:
        report = check_gradients(
            fun, *args, reference=reference, order=options.order, seed=options.seed
        )
    except Exception as error:  # the function itself refuses these arguments
        message = str(error).splitlines()[0] if str(error) else ""
        raise Misuse(f"{path} raised {type(error).__name__}: {message}") from error
    print(json.dumps(report.to_dict(), indent=2) if options.json else report)
    return int(not report.ok)


def _check_losses(names: list[str], options: argparse.Namespace) -> int:
    from mcgrad import audit
    from mcgrad.checking import aligned

    results = [run() for run in _progress(list(audit.audits(names, options.order, options.seed)))]
    rows = [row for own, _ in results for row in own]
    reports = [report for _, report in results]
    ok = all(row.ok for row in rows) and all(report.ok for report in reports)
    if options.json:
        gradients = [row._asdict() | {"ok": row.ok} for row in rows]
        checks = [report.to_dict() for report in reports]
        print(json.dumps({"ok": ok, "gradients": gradients, "reports": checks}, indent=2))
        return int(not ok)
    head = ["loss", "hinge", "argument", "against autodiff", "against differences", ""]
    print("Relative errors of the closed-form gradients")
    print(
        f"allowed: {audit.AUTODIFF_TOLERANCE:.1e} against autodiff in float32, "
        f"{audit.DIFFERENCE_TOLERANCE:.1e} against central differences in float64\n"
    )
    lines = [
        [*row[:3], f"{row.autodiff:.1e}", f"{row.differences:.1e}", "" if row.ok else "WRONG"]
        for row in rows
    ]
    print(aligned([head, *lines]))
    for report in reports:
        if not report.ok:
            print(f"\n{report}")
    comparisons = sum(check.comparisons for report in reports for check in report.checks)
    findings = sum(len(report.findings) for report in reports)
    print(f"\nFull checker: {comparisons} comparisons, {findings} findings")
    return int(not ok)


def _progress(audits: list[tuple[str, Callable[[], Any]]]) -> Iterator[Callable[[], Any]]:
    """The runs, with a progress bar on a terminal where rich is installed."""
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ModuleNotFoundError:
        yield from (run for _, run in audits)
        return
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(audits))
        for title, run in audits:
            progress.update(task, description=title)
            yield run
            progress.advance(task)


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least:
            raise ValueError
        return int(text)

    number.__name__ = f"whole number from {least}"  # What argparse says was expected.
    return number
