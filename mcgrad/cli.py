"""The command line: parses, hands over to the part that does the work, turns misuse into one line.

Exit codes: 0 all is well, 1 a gradient is wrong, 2 misuse, 130 interrupted.
"""

import argparse
import contextlib
import inspect
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["main"]


class Misuse(Exception):
    """The command cannot be run as it was given; the message is one line."""


class Parser(argparse.ArgumentParser):
    """Its errors are misuse like any other: one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        raise Misuse(f"{message} ({self.prog} --help says more)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `mcgrad ARGV` and return the exit code."""
    parser = Parser(
        prog="mcgrad", description="Losses for JAX whose gradients are known in closed form."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_check(commands)
    try:
        try:
            options = parser.parse_args(argv)
            return options.run(options)
        finally:
            _print()
    except Misuse as misuse:
        print(f"mcgrad: {misuse}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mcgrad: interrupted", file=sys.stderr)
        return 130


def _print(*lines: Any) -> None:
    """Print, and write it out. A reader who has left, `| head -1`, does not change the verdict."""
    try:
        for line in lines:
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered must go somewhere, or the interpreter complains when it exits.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except OSError as error:
        raise Misuse(f"cannot write the result: {error.strerror}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Whatever is printed inside goes to stderr, so that stdout holds the result alone.

    The file descriptor is exchanged as well: compiled code writes to it directly. Warnings are
    left out: the report says what is not finite or could not be computed.
    """
    import jax

    sys.stdout.flush()
    log = logging.getLogger("jax")
    level, stdout = log.level, None
    with contextlib.suppress(OSError):  # a closed descriptor needs no exchange
        stdout = os.dup(1)
        os.dup2(2, 1)
    log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
            jax.effects_barrier()  # jax.debug.print may still be on its way
    finally:
        log.setLevel(level)
        if stdout is not None:
            os.dup2(stdout, 1)
            os.close(stdout)


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
        description="Check gradients. Without a name: every gradient of every loss of mcgrad, "
        "against autodiff of the plain equation, against differences in float64, and in every "
        "other way of the checker. MODULE:FUNCTION or FILE.py:FUNCTION checks a function of your "
        "own.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="a loss, or MODULE:FUNCTION (default: all losses)"
    )
    parser.add_argument(
        "--args", metavar="ARGS", help="the arguments of your function, as below; it needs some"
    )
    parser.add_argument(
        "--reference",
        metavar="MODULE:FUNCTION",
        help="a function of the same arguments that is right, to compare yours with",
    )
    parser.add_argument(
        "--order", type=int, choices=(1, 2), default=1, help="2: second derivatives too (default 1)"
    )
    parser.add_argument(
        "--seed", type=_at_least(0), default=0, help="of all random choices (default 0)"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=_check)


EPILOG = """\
arguments of your function:
  f32[3,4],i32[3]      random arrays: f16 bf16 f32 f64, i8 ... i64, u8 ... u64, bool, key.
                       Real numbers are normal. Integers go from 0 to below the last size of
                       the first real array (here 0 to 3), as labels do; to 9 if there is none.
  i32[3]:0..9          the range is yours, both ends included; so is f32[3]:0.5..2
  FILE.npz             arrays of your own: arr_0, arr_1, ... by position, others by name

examples:
  mcgrad check weston_watkins_loss
  mcgrad check my_losses.py:loss --args "f32[6,10],i32[6]"

What your function prints goes to stderr.
Exit code: 0 all is well, 1 a gradient is wrong, 2 misuse, 130 interrupted.
"""


def _check(options: argparse.Namespace) -> int:
    import mcgrad

    own = [name for name in options.names if ":" in name]
    losses = [name for name in options.names if ":" not in name]
    unknown = [name for name in losses if name not in mcgrad.LOSSES]
    if unknown:
        raise Misuse(
            f"no loss is called {unknown[0]!r}; there are {', '.join(mcgrad.LOSSES)}; "
            "a function of your own is MODULE:FUNCTION"
        )
    if own and (losses or len(own) > 1):
        raise Misuse("check one function of your own at a time, and without losses beside it")
    if not own and (options.args is not None or options.reference is not None):
        raise Misuse("--args and --reference go with PACKAGE.MODULE:FUNCTION")
    with _quiet():
        if own:
            code, lines = _check_function(own[0], options)
        else:
            code, lines = _check_losses(list(dict.fromkeys(losses or mcgrad.LOSSES)), options)
    _print(*lines)
    return code


def _check_function(path: str, options: argparse.Namespace) -> tuple[int, list[Any]]:
    from mcgrad import audit
    from mcgrad.checking import check_gradients

    if not options.args:
        raise Misuse(f'{path} needs --args, a FILE.npz or a list like "f32[3,4],i32[3]"')
    try:
        fun = audit.function(path)
        reference = None if options.reference is None else audit.function(options.reference)
        given = audit.arguments(options.args, options.seed)
    except ValueError as error:
        raise Misuse(str(error)) from error
    args, kwargs = _call(path, fun, given)
    named = [(path, fun)] if reference is None else [(path, fun), (options.reference, reference)]
    for name, each in named:  # each alone first, to know whose error it is
        with _blamed(name):
            check_gradients(each, *args, checks=(), **kwargs)
    with _blamed(path):
        report = check_gradients(
            fun, *args, reference=reference, order=options.order, seed=options.seed, **kwargs
        )
    code = int(not report.ok)
    if options.json:
        drawn = {"arguments": [argument.to_dict() for argument in given]}
        return code, [json.dumps(report.to_dict() | drawn, indent=2)]
    return code, [report, "\nArguments", *(f"- {argument}" for argument in given)]


@contextlib.contextmanager
def _blamed(path: str) -> Iterator[None]:
    """A function that refuses its arguments, or exits, is misuse."""
    from mcgrad import audit

    try:
        yield
    except (Exception, SystemExit) as error:
        raise Misuse(f"{path} raised {audit.one_line(error)}") from error


def _call(path: str, fun: Callable[..., Any], given: list[Any]) -> tuple[Any, dict[str, Any]]:
    """(args, kwargs) of a call: by position wherever the function allows it.

    So a parameter may have the name of an option of the checker, and a reference other names.
    """
    from mcgrad.checking import check_gradients

    args = tuple(argument.value for argument in given if argument.name is None)
    kwargs = {argument.name: argument.value for argument in given if argument.name is not None}
    try:
        bound = inspect.signature(fun).bind(*args, **kwargs)
    except ValueError:  # it has no signature
        pass
    except TypeError as error:
        raise Misuse(f"{path} does not take these arguments: {error}") from error
    else:
        args, kwargs = bound.args, bound.kwargs
    clash = sorted(kwargs.keys() & inspect.signature(check_gradients).parameters.keys())
    if clash:
        raise Misuse(f"{path}: {clash[0]!r} is an option of the checker, and cannot be checked")
    return args, kwargs


def _check_losses(names: list[str], options: argparse.Namespace) -> tuple[int, list[Any]]:
    from mcgrad import audit
    from mcgrad.checking import aligned, jsonable

    results = [run() for run in _progress(list(audit.audits(names, options.order, options.seed)))]
    rows = [row for own, _ in results for row in own]
    reports = [report for _, report in results]
    ok = all(report.ok for report in reports)
    if options.json:
        gradients, checks = jsonable(rows), [report.to_dict() for report in reports]
        result = {"ok": ok, "gradients": gradients, "reports": checks}
        return int(not ok), [json.dumps(result, indent=2)]
    head = ["loss", "variant", "argument", "autodiff", "differences", "float32", ""]
    lines = [[*row[:3], *map(_error, row[3:6]), "" if row.ok else "WRONG"] for row in rows]
    comparisons = sum(check.comparisons for report in reports for check in report.checks)
    findings = sum(len(report.findings) for report in reports)
    return int(not ok), [
        "Relative errors of the closed-form gradients: in float64 against autodiff of the equation",
        "and against differences, and of float32 against float64\n",
        aligned([head, *lines]),
        *(f"\n{report}" for report in reports if not report.ok),
        f"\n{comparisons} comparisons, {findings} findings",
    ]


def _error(error: float | None) -> str:
    return "not compared" if error is None else f"{error:.1e}"


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
        if not least <= int(text) < 2**31:
            raise ValueError
        return int(text)

    number.__name__ = (
        f"whole number from {least} to {2**31 - 1}"  # What argparse says was expected.
    )
    return number
