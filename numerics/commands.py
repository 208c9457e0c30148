"""What the command lines share: flags, how flags become a model, errors in one line; and two of the commands.

Exit codes: 0 done, 1 something did not converge or could not be finished, 2 bad input (one line on standard error), 130
interrupted.
"""

from __future__ import annotations

import inspect
import json
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from click.core import ParameterSource

from numerics.models import TRAINING, Chain, Estimator, GaussianMixture, ParameterError, Stage, check_fit
from numerics.problem import read_problem
from numerics.solution.solution import OBSERVABLES, Solution
from numerics.solver import ConvergenceWarning, solve
from numerics.sweeps.executors import EXECUTORS, THREADS, WorkersLostError, cluster
from numerics.sweeps.journal import Journal, require_room
from theory import terminal
from theory.convexity import ConvexityWarning
from theory.losses import BUILT_IN, Loss

if TYPE_CHECKING:
    from numerics.simulation.result import Estimate, SimulationResult
    from numerics.sweeps.grid import Experiment, Grid

PATIENCE = 2.0
"""Seconds after which a command says what it is waiting for."""

OUTPUT_FOLDER = Path("replica-distillation")
"""Where a command puts files that it was not told where to put."""

ROOT = Path(__file__).parents[1]
"""Where the packages are; in a checkout, the pictures that are committed are in ``figures`` there."""

SHOWN_FAILURES = 5
"""Points without a result that a command names."""

MODEL = """\b
Model: M = alpha N samples x = s v/sqrt(N) + sqrt(Delta) z in N dimensions,
  class s = +1 with probability rho, else -1; v, z standard normal.
Teacher, then student: minimise sum of loss(h) + ridge/2 |w|^2 over w and b,
  where h = w.x/sqrt(N) + b.  N goes to infinity at fixed alpha.
Distillation: (1-chi) H(y, sigma(h)) + chi H(sigma(h_teacher/T), sigma(h/T)),
  H the cross-entropy, sigma the sigmoid, y = (1+s)/2 the label.
"""

LOSSES = f"{', '.join(BUILT_IN)}, or a formula in h, y, s, h_teacher such as 'log(1+exp(-s*h))'"

_ALPHA = "Samples per input dimension, alpha = M/N > 0."

_OPTIONS: tuple[tuple[tuple[str, ...], dict], ...] = (
    (("--rho",), {"type": float, "default": 0.2, "help": "Probability of the positive class, in (0, 1)."}),
    (("--delta",), {"type": float, "default": 1.0, "help": "Noise variance Delta > 0 of every input."}),
    (
        ("--label-noise",),
        {"type": float, "default": 0.0, "help": "Probability, in [0, 1/2), that a training label is flipped."},
    ),
    (
        ("--teacher-ridge",),
        {"type": float, "default": 0.1, "help": "Ridge lambda >= 0 of the teacher; 0 is the limit."},
    ),
    (
        ("--student-ridge",),
        {"type": float, "default": 1e-5, "help": "Ridge lambda >= 0 of the student; 0 is the limit."},
    ),
    (("--eta",), {"type": float, "default": 0.5, "help": "Fraction of its weights the student trains, in (0, 1]."}),
    (
        ("--chi",),
        {"type": float, "default": 1.0, "help": "Mixing, in [0, 1]: 0 learns the labels, 1 the teacher's outputs."},
    ),
    (
        ("--temperature",),
        {"type": float, "default": 1.0, "help": "Temperature T > 0, divides both logits of the soft term."},
    ),
    (
        ("--gain",),
        {"type": float, "default": 1.0, "help": "Gain on the teacher's logit in square-distillation."},
    ),
    (
        ("--smoothing",),
        {"type": float, "default": 0.0, "help": "Label smoothing in [0, 1/2], of teacher and student."},
    ),
    (("--teacher-loss",), {"default": "cross-entropy", "metavar": "LOSS", "help": f"{LOSSES}."}),
    (("--student-loss",), {"default": "distillation", "metavar": "LOSS", "help": "The same for the student."}),
    (
        ("--temperature-squared",),
        {"is_flag": True, "show_default": False, "help": "Multiply the soft term by T^2 (Hinton's convention)."},
    ),
    (("--single",), {"is_flag": True, "show_default": False, "help": "The teacher only, no student."}),
    (
        ("--problem",),
        {
            "type": click.Path(exists=True, dir_okay=False, allow_dash=True),
            "metavar": "FILE",
            "show_default": False,
            "help": "Take data and chain (any stages, several data sets) from a JSON file, see numerics/problem.py; - is "
            "standard input.  --alpha, --rho, --delta and --label-noise go before the file.",
        },
    ),
)

_DATA = ("alpha", "rho", "delta", "label_noise")
_DATA_FLAGS = {name: f"--{name.replace('_', '-')}" for name in _DATA}
_LOSS_ARGUMENTS = {
    "mixing": "chi",
    "temperature": "temperature",
    "gain": "gain",
    "smoothing": "smoothing",
    "temperature_squared": "temperature_squared",
}
_LOSS_FLAGS = {argument: f"--{name.replace('_', '-')}" for argument, name in _LOSS_ARGUMENTS.items()}
_STUDENT_FLAGS = {
    "student_ridge": "--student-ridge",
    "eta": "--eta",
    "student_loss": "--student-loss",
    **{name: _LOSS_FLAGS[argument] for argument, name in _LOSS_ARGUMENTS.items() if name != "smoothing"},
}
_STAGE_FLAGS = {
    **_STUDENT_FLAGS,
    "teacher_ridge": "--teacher-ridge",
    "teacher_loss": "--teacher-loss",
    "smoothing": "--smoothing",
    "single": "--single",
}
SIMULATION_FLAGS = {
    "n_inputs": "--inputs",
    "n_runs": "--runs",
    "seed": "--seed",
    "n_jobs": "--jobs",
    "eta": "--eta",
    "alpha": "--alpha",
}


class Command(terminal.Command):
    """A command that reports whatever goes wrong in one line and returns its exit code."""

    plain = (WorkersLostError,)
    bad_input = (ParameterError,)


def model_options(alpha: float | None = None) -> Callable[[Callable], Callable]:
    """The flags of the model; ``alpha`` is its default, required (here or in ``--problem``) if None."""
    first = (
        {"type": float, "help": f"{_ALPHA}  [required]"}
        if alpha is None
        else {"type": float, "default": alpha, "help": f"{_ALPHA}  Not used where alpha is an axis."}
    )

    def decorate(function: Callable) -> Callable:
        for names, settings in reversed(((("--alpha",), first), *_OPTIONS)):
            function = click.option(*names, **{"show_default": True, **settings})(function)
        return function

    return decorate


def report_options(function: Callable) -> Callable:
    """Flags on how a result is written."""
    for decorator in (
        click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Write to FILE, not to stdout."),
        click.option("--json", "as_json", is_flag=True, help="Write JSON."),
        click.option("--rtol", type=float, help="Relative accuracy of the theory's order parameters.  [default: 1e-8]"),
    ):
        function = decorator(function)
    return function


def jobs_option(function: Callable) -> Callable:
    """``--jobs``."""
    return click.option(
        "--jobs",
        type=click.IntRange(min=1),
        default=os.cpu_count() or 1,
        show_default="one per core",
        help="Threads or processes.",
    )(function)


def executor_options(function: Callable) -> Callable:
    """``--executor`` and ``--scheduler``; see :func:`opened_executor`."""
    for decorator in (
        click.option("--scheduler", metavar="ADDRESS", help="Compute on the Dask cluster whose scheduler is at ADDRESS, such as "
                     "tcp://host:8786, or on a local one: local.  Needs the extra 'cluster'."),
        click.option("--executor", type=click.Choice(EXECUTORS), default=THREADS, show_default=True,
                     help="Where points are computed."),
    ):  # fmt: skip
        function = decorator(function)
    return function


@contextmanager
def opened_executor(executor: str, scheduler: str | None, jobs: int) -> Iterator[object]:
    """What ``run_tasks`` takes as an executor; a cluster is left again at the end."""
    if scheduler is None:
        yield executor
        return
    if _given("executor"):
        raise click.UsageError("--executor has no effect with --scheduler")
    with ExitStack() as stack:
        with blaming({}, "--scheduler", ParameterError):
            client = stack.enter_context(cluster(scheduler, jobs))
        yield client


@contextmanager
def blaming(flags: Mapping[str, str], otherwise: str, errors: type[ValueError] = ValueError) -> Iterator[None]:
    """Turn an error about a parameter into one about the flag that sets it.

    ``flags`` maps the first word of a message to a flag; other messages are put after ``otherwise``.
    """
    try:
        yield
    except errors as error:
        word, _, rest = str(error).partition(" ")
        message = f"{flags[word]} {rest}" if word in flags else f"{otherwise}: {error}"
        raise click.UsageError(message) from None


def build_model(flags: Mapping[str, object]) -> tuple[GaussianMixture, Chain]:
    """Data and chain from the values of :func:`model_options`.

    Raises
    ------
    click.UsageError
        Naming the flag that is out of range, or that has no effect together with the others.
    """
    if flags["problem"] is not None:
        return _read_model(str(flags["problem"]), flags)
    if flags["alpha"] is None:
        raise click.UsageError("Missing option '--alpha'.")
    _reject_idle_flags(flags)
    with blaming(_DATA_FLAGS, "--alpha"):
        data = GaussianMixture(**{name: flags[name] for name in _DATA})
    stages = []
    for role, eta in (("teacher", 1.0), ("student", flags["eta"])):
        if role == "student" and flags["single"]:
            break
        with blaming(_LOSS_FLAGS, f"--{role}-loss"):
            loss = _loss(str(flags[f"{role}_loss"]), flags)
            loss.stages(len(stages) + 1)
        with blaming({"ridge": f"--{role}-ridge", "eta": "--eta"}, f"--{role}-ridge"):
            stages.append(Estimator(loss, flags[f"{role}_ridge"], eta))
    if flags["smoothing"] and not any("smoothing" in stage.loss.parameters for stage in stages):
        raise click.UsageError("--smoothing has no effect on these losses")
    return data, Chain.of(stages)


def _read_model(file: str, flags: Mapping[str, object]) -> tuple[GaussianMixture, Chain]:
    """Data and chain of ``--problem``, after the flags of the data that were given."""
    for name, flag in _STAGE_FLAGS.items():
        if _given(name):
            raise click.UsageError(f"{flag} has no effect with --problem: the file describes the stages")
    try:
        with click.open_file(file, encoding="utf-8") as stream:
            text = stream.read()
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"--problem: cannot read {file}: {error}") from None
    with blaming({}, "--problem"):
        data, chain = read_problem(text)
    with blaming(_DATA_FLAGS, "--problem"):
        data = replace(data, **{name: flags[name] for name in _DATA if _given(name)})
        check_fit(data, chain)
    return data, chain


def _arguments(loss: str) -> tuple[str, ...]:
    """Which of ``_LOSS_ARGUMENTS`` a loss takes; none for a formula."""
    if loss not in BUILT_IN:
        return ()
    known = inspect.signature(BUILT_IN[loss]).parameters
    return tuple(argument for argument in _LOSS_ARGUMENTS if argument in known)


def _loss(text: str, flags: Mapping[str, object]) -> Loss:
    if text not in BUILT_IN:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvexityWarning)
            loss = Loss.from_expression(text)
        for warning in caught:
            click.echo(f"warning: {warning.message}", err=True)
        return loss
    return BUILT_IN[text](**{argument: flags[_LOSS_ARGUMENTS[argument]] for argument in _arguments(text)})


def _given(name: str) -> bool:
    return click.get_current_context().get_parameter_source(name) == ParameterSource.COMMANDLINE


def _reject_idle_flags(flags: Mapping[str, object]) -> None:
    if flags["single"]:
        for name, flag in _STUDENT_FLAGS.items():
            if _given(name):
                raise click.UsageError(f"{flag} is the student's, but --single leaves the student out")
        return
    loss = str(flags["student_loss"])
    for argument, name in _LOSS_ARGUMENTS.items():
        if name != "smoothing" and argument not in _arguments(loss) and _given(name):
            raise click.UsageError(f"{_LOSS_FLAGS[argument]} has no effect with --student-loss {loss}")


def describe(data: GaussianMixture, chain: Chain) -> str:
    """The problem in words, a line for the data, one for each further data set and one for each stage."""
    lines = [f"Gaussian mixture: alpha = {data.alpha:g}, rho = {data.rho:g}, Delta = {data.delta:g}"]
    if data.label_noise:
        lines[0] += f", label noise {data.label_noise:g}"
    for further in data.further:
        lines.append(f"data set {further.name}: alpha = {further.alpha:g}, label noise {further.label_noise:g}")
    lines += [f"{name}: {_in_words(stage)}" for name, stage in zip(chain.names, chain.stages, strict=True)]
    return "\n".join(lines)


def _in_words(stage: Stage) -> str:
    if not isinstance(stage, Estimator):
        return repr(stage)
    text = f"{stage.loss!r}, ridge {stage.ridge:g}, eta {stage.eta:g}"
    if stage.bias is not None:
        text += f", bias {stage.bias:g}"
    if stage.mask_overlap is not None:
        text += f", mask overlap {stage.mask_overlap:g}"
    return text if stage.sets == (TRAINING,) else f"{text}, on {' and '.join(stage.sets)}"


# Files.


def require_writable(path: Path, flag: str = "--output") -> None:
    """Check that ``path`` can be written, in a folder that may not exist yet; click.UsageError if not.  Nothing is left there."""
    try:
        require_room(path, name=flag)
    except ParameterError as error:
        raise click.UsageError(str(error)) from None


def require_committed(allowed: set[str]) -> None:
    """click.UsageError unless this is a checkout, and no flags but the allowed ones change what ``--committed`` makes."""
    if not (ROOT / "pyproject.toml").is_file():
        raise click.UsageError("--committed makes the files of a checkout anew, and this installation is none")
    context = click.get_current_context()
    for name in context.params:
        if name not in allowed and _given(name):
            raise click.UsageError(
                f"--{name.replace('_', '-')} has no effect with --committed, which makes what is committed"
            )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the name of a temporary file that becomes ``path`` on success, and is removed otherwise; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def deliver(text: str, output: Path | None) -> None:
    """Write a report to a file, or to standard output."""
    if output is None:
        click.echo(text)
        return
    with replacing(output) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


@contextmanager
def patience(message: str) -> Iterator[None]:
    """Print ``message`` on standard error if the body takes over two seconds."""
    timer = threading.Timer(PATIENCE, click.echo, [message], {"err": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def kept_points(path: Path, work: Mapping[str, Grid | Experiment]) -> Iterator[Journal]:
    """The journal of ``path``, which says on Ctrl-C that the command can go on."""
    with blaming({"output:": "--output"}, "--output", ParameterError):
        journal = Journal(path, {name: part.description() for name, part in work.items()})
    with journal:
        try:
            yield journal
        except KeyboardInterrupt:
            tell_of_journal(journal.path)
            raise


def tell_of_journal(path: Path) -> None:
    """Say after an interruption where the points are that are done."""
    if path.exists():
        click.echo(f"interrupted: finished points are kept in {path}; the same command goes on from there", err=True)


def warn_of_failures(count: int, lines: Sequence[str]) -> None:
    """Name the first of ``count`` points without a result on standard error."""
    if count:
        shown = "; ".join(lines[:SHOWN_FAILURES]) + ("; ..." if count > SHOWN_FAILURES else "")
        click.echo(f"warning: {count} points without a result are left out: {shown}", err=True)


# Tables.


def number(value: float, digits: int = 6) -> str:
    """Short text of a number; '-' where there is none."""
    return f"{value:.{digits}g}" if np.isfinite(value) else "-"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, the first to the left, the others to the right."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]

    def line(first: str, *others: str) -> str:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        return "  ".join([first.ljust(widths[0]), *cells]).rstrip()

    return "\n".join(line(*row) for row in rows)


def matrix(name: str, values: np.ndarray, names: Sequence[str]) -> str:
    """A matrix over stages, with its rows and columns named."""
    rows = [[name, *names], *([left, *map(number, row)] for left, row in zip(names, values, strict=True))]
    return table(rows)


def solution_text(solution: Solution) -> str:
    """Order parameters and observables of a solution."""
    names = solution.chain.names
    rows = [["", *names]]
    for key in OBSERVABLES:
        values = [getattr(stage, key) for stage in solution.stages]
        if np.any(np.isfinite(values)):
            rows.append([key, *map(number, values)])
    parts = [
        describe(solution.data, solution.chain),
        f"converged: {str(solution.converged).lower()} (residual {solution.residual:.1e}, "
        f"quadrature error {solution.quadrature_error:.1e}, {solution.iterations} iterations)",
        table(rows),
    ]
    if len(names) > 1:
        parts += [matrix("overlap Q", solution.overlap, names), matrix("response V", solution.response, names)]
    return "\n\n".join(parts)


# One point of theory.


def solve_quietly(data: GaussianMixture, chain: Chain, rtol: float | None) -> Solution:
    """Solve; what did not converge is in the result, not in a warning."""
    with (
        warnings.catch_warnings(),
        patience("solving; what is new in a chain is compiled first"),
        blaming({"rtol": "--rtol", "ridge": "ridge"}, "--rtol", ParameterError),
    ):
        warnings.simplefilter("ignore", ConvergenceWarning)
        return solve(data, chain, rtol=rtol)


@click.command(
    cls=Command,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help=f"Order parameters and errors of a teacher and its student in the limit of large N.\n\n{MODEL}\n\n\b\n"
    "Example:\n  python -m numerics.solve --alpha 2 --teacher-ridge 0.1 --chi 1 --json\n"
    "  python -m numerics.solve --problem chain.json --label-noise 0.1",
)
@model_options()
@report_options
def solve_command(rtol: float | None, as_json: bool, output: Path | None, **flags) -> int:
    """``python -m numerics.solve``."""
    data, chain = build_model(flags)
    if output is not None:
        require_writable(output)
    solution = solve_quietly(data, chain, rtol)
    text = json.dumps(solution.to_dict(), indent=2, allow_nan=False) if as_json else solution_text(solution)
    deliver(text, output)
    if not solution.converged:
        click.echo(f"not converged: {solution.message}", err=True)
    return 0 if solution.converged else 1


# One point of simulation.


def simulated(runs: SimulationResult, index: int, name: str) -> Estimate | None:
    """Mean over runs of one of ``OBSERVABLES``; None if the simulation does not measure it at this stage."""
    if name not in dir(runs[index]):
        return None
    found = getattr(runs[index], name)
    return found if np.isfinite(found.mean) else None


def z_score(found: Estimate, expected: float) -> float:
    """Deviation of a simulation from theory in standard errors; NaN where it has none."""
    if not (found.standard_error > 0 and np.isfinite(expected)):
        return float("nan")
    return (float(found.mean) - expected) / float(found.standard_error)


def compare(runs: SimulationResult, solution: Solution | None) -> list[dict[str, dict[str, float | None]]]:
    """For each stage and observable: mean, standard error, and if there is theory its value and the z-score."""
    stages = []
    for index in range(len(runs)):
        entries = {}
        for name in OBSERVABLES:
            found = simulated(runs, index, name)
            if found is None:
                continue
            entry = {"mean": float(found.mean), "standard_error": float(found.standard_error)}
            if solution is not None:
                entry["theory"] = float(getattr(solution[index], name))
                entry["z"] = z_score(found, entry["theory"])
            entries[name] = {key: value if np.isfinite(value) else None for key, value in entry.items()}
        stages.append(entries)
    return stages


def comparison_text(runs: SimulationResult, stages: Sequence[Mapping[str, Mapping[str, float | None]]]) -> str:
    """Tables of :func:`compare`, one a stage."""

    def shown(value: float | None, digits: int) -> str:
        return "-" if value is None else number(value, digits)

    samples = str(runs.n_samples)
    if runs.data.further:
        sets = zip(runs.set_sizes, runs.data.sets, strict=True)
        samples = ", ".join(f"{size} ({data_set.name})" for size, data_set in sets)
    parts = [
        describe(runs.data, runs.chain),
        f"{runs.n_runs} runs of N = {runs.n_inputs} inputs, M = {samples} samples, seed {runs.seed}",
        f"converged: {str(runs.converged).lower()} (largest relative gradient norm "
        f"{runs.runs['relative_gradient_norm'].max():.1e})",
    ]
    for name, entries in zip(runs.chain.names, stages, strict=True):
        theory = any("theory" in entry for entry in entries.values())
        rows = [[name, "simulation", "std. error", *(["theory", "z"] if theory else [])]]
        for key, entry in entries.items():
            row = [key, shown(entry["mean"], 5), shown(entry["standard_error"], 2)]
            if theory:
                z = entry["z"]
                row += [shown(entry["theory"], 5), "-" if z is None else f"{z:+.1f}"]
            rows.append(row)
        parts.append(table(rows))
    return "\n\n".join(parts)


@click.command(
    cls=Command,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Train teacher and student on finite samples, beside what theory expects; z is the difference in standard "
    f"errors.\n\n{MODEL}\n\n\b\n"
    "Example:\n  python -m numerics.simulate --alpha 2 --teacher-ridge 0.1 --inputs 1000 --runs 20",
)
@model_options()
@click.option("--inputs", type=click.IntRange(min=2), default=1000, show_default=True, help="N, input dimension.")
@click.option("--runs", type=click.IntRange(min=1), default=20, show_default=True, help="Independent draws.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of all draws.")
@jobs_option
@click.option("--no-theory", is_flag=True, help="Do not solve the theory beside.")
@report_options
def simulate_command(
    inputs: int, runs: int, seed: int, jobs: int, no_theory: bool, rtol: float | None, as_json: bool,
    output: Path | None, **flags,
) -> int:  # fmt: skip
    """``python -m numerics.simulate``."""
    from numerics.scalar.compiled import compile_chain, compile_losses
    from numerics.simulation.run import simulate  # here: the other command does without

    data, chain = build_model(flags)
    if output is not None:
        require_writable(output)
    compile_losses(chain)  # before the clock of the bar runs
    if not no_theory:
        compile_chain(chain)
    with warnings.catch_warnings(), blaming(SIMULATION_FLAGS, "--inputs", ParameterError):
        warnings.simplefilter("ignore", ConvergenceWarning)
        result = simulate(data, chain, inputs, runs, seed, n_jobs=jobs, progress=True)
    solution = None if no_theory else solve_quietly(result.effective_data, result.effective_chain, rtol)
    stages = compare(result, solution)
    if as_json:
        document = {
            "simulation": result.to_dict(),
            "theory": None if solution is None else solution.to_dict(),
            "comparison": [{"name": name, **entries} for name, entries in zip(chain.names, stages, strict=True)],
        }
        deliver(json.dumps(document, indent=2, allow_nan=False), output)
    else:
        deliver(comparison_text(result, stages), output)
    converged = result.converged
    if not result.converged:
        click.echo(f"not converged: {result.message}", err=True)
    if solution is not None and not solution.converged:
        click.echo(f"theory not converged: {solution.message}", err=True)
        converged = False
    return 0 if converged else 1
