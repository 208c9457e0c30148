"""Flags that commands share, and how they become a model."""

from __future__ import annotations

import inspect
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import click

from numerics.cli.command import blaming, given
from numerics.models import (
    OUTPUTS,
    Chain,
    ClassMixture,
    DataModel,
    Estimator,
    GaussianMixture,
    LinearRule,
    ParameterError,
    PowerLaw,
    RandomFeatures,
    check_fit,
    similar_pairs,
)  # fmt: skip
from numerics.models.activations import ACTIVATIONS
from numerics.models.inputs import WHITE
from numerics.problem import read_problem
from numerics.sweeps.executors import EXECUTORS, THREADS, cluster
from theory.convexity import ConvexityWarning
from theory.losses import BUILT_IN, Loss, built_in

MODEL = """\b
Model: M = alpha N samples x = s v/sqrt(N) + sqrt(Delta) z in N dimensions,
  class s = +1 with probability rho, else -1; v, z standard normal.
  With --classes, x = mu_c/sqrt(N) + sqrt(Delta) z, mu_c.mu_c'/N = Gamma_cc',
  and there are K logits: sigma is softmax, and y the class.
  With --rule, x is standard normal, and the label is what a rule makes of
  theta.x/sqrt(N), |theta|^2 = N: that number with noise (identity), its sign
  (sign), the sign of the number with noise (probit), or +1 with probability
  sigma(slope theta.x/sqrt(N)), else -1 (logit).
Teacher, then student: minimise sum of loss(h) + ridge/2 |w|^2 over w and b,
  where h = w.x/sqrt(N) + b.  N goes to infinity at fixed alpha.
Distillation: (1-chi) H(y, sigma(h)) + chi H(sigma(h_teacher/T), sigma(h/T)),
  H the cross-entropy, sigma the sigmoid, y = (1+s)/2 the label.
"""

LOSSES = (
    f"{', '.join(BUILT_IN)}, or a formula in h, y, s, h_teacher such as 'log(1+exp(-s*h))', of many classes one such as "
    "'logsumexp(h) - Sum(y[k]*h[k], k)'"
)

_ALPHA = "Samples per input dimension, alpha = M/N > 0."

_OPTIONS: tuple[tuple[tuple[str, ...], dict], ...] = (
    (("--rho",), {"type": float, "default": 0.2, "help": "Probability of the positive class, in (0, 1)."}),
    (("--delta",), {"type": float, "default": 1.0, "help": "Noise variance Delta > 0 of every input."}),
    (
        ("--rule",),
        {
            "type": click.Choice(OUTPUTS),
            "show_default": False,
            "help": "Labels of a linear rule instead of classes; identity is regression, and then the losses are square and "
            "square-distillation unless said otherwise.  Without --rho and --delta.",
        },
    ),
    (
        ("--noise",),
        {"type": float, "default": 0.25, "help": "Variance >= 0 of the noise of the rule (identity, probit)."},
    ),
    (("--slope",), {"type": float, "default": 1.0, "help": "Slope > 0 of the sigmoid of the rule (logit)."}),
    (
        ("--label-noise",),
        {"type": float, "default": 0.0, "help": "Probability, in [0, 1/2], that a training label is flipped."},
    ),
    (
        ("--classes",),
        {
            "type": click.IntRange(min=2),
            "metavar": "K",
            "show_default": False,
            "help": "A mixture of K classes, with softmax and K logits; means are orthogonal, |mu|^2 = N.  Without --rho.",
        },
    ),
    (
        ("--similarity",),
        {
            "type": float,
            "default": 0.0,
            "help": "With --classes: overlap, in [-1, 1], of the means of classes 1 and 2, 3 and 4, ...",
        },
    ),
    (
        ("--gram",),
        {
            "type": click.Path(exists=True, dir_okay=False, path_type=Path),
            "metavar": "FILE",
            "show_default": False,
            "help": "Any Gram matrix of the means, K lines of K numbers or a list of lists in JSON; instead of --classes.",
        },
    ),
    (
        ("--weights",),
        {
            "metavar": "LIST",
            "show_default": False,
            "help": "With --classes or --gram: probabilities of the classes, such as 0.5,0.3,0.2; by default they are equal.",
        },
    ),
    (
        ("--capacity",),
        {
            "type": float,
            "show_default": False,
            "help": "Inputs whose variances fall like k^-capacity (>= 0), see --source; white without it.",
        },
    ),
    (
        ("--source",),
        {
            "type": float,
            "default": 0.5,
            "help": "With --capacity: variance times squared signal falls like k^-(1 + 2 source capacity).",
        },
    ),
    (
        ("--teacher-features",),
        {
            "metavar": "ACTIVATION",
            "show_default": False,
            "help": f"The teacher sees random features: {', '.join(ACTIVATIONS)}, or a smooth formula of h.",
        },
    ),
    (
        ("--student-features",),
        {
            "metavar": "ACTIVATION",
            "show_default": False,
            "help": "The same for the student, whose eta then is 1.  As an axis: --x student.features=0.1:4:60.",
        },
    ),
    (
        ("--features",),
        {"type": float, "default": 1.0, "help": "Features per input, p/N > 0, of the one network that has them."},
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

_CLASSES = ("classes", "similarity", "gram", "weights")
_DATA = ("alpha", "rho", "delta", "noise", "slope", "label_noise")
_MIXTURE, _RULE = ("alpha", "rho", "delta", "label_noise"), ("alpha", "noise", "slope", "label_noise")
DATA_FLAGS = {name: f"--{name.replace('_', '-')}" for name in _DATA}
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
    "student_features": "--student-features",
    **{name: _LOSS_FLAGS[argument] for argument, name in _LOSS_ARGUMENTS.items() if name != "smoothing"},
}
_STAGE_FLAGS = {
    **_STUDENT_FLAGS,
    "teacher_ridge": "--teacher-ridge",
    "teacher_loss": "--teacher-loss",
    "smoothing": "--smoothing",
    "single": "--single",
    "teacher_features": "--teacher-features",
    "capacity": "--capacity",
    "source": "--source",
    "features": "--features",
}
SIMULATION_FLAGS = {
    "n_inputs": "--inputs",
    "n_runs": "--runs",
    "seed": "--seed",
    "n_jobs": "--jobs",
    "eta": "--eta",
    "alpha": "--alpha",
}


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
    if given("executor"):
        raise click.UsageError("--executor has no effect with --scheduler")
    with ExitStack() as stack:
        with blaming({}, "--scheduler", ParameterError):
            client = stack.enter_context(cluster(scheduler, jobs))
        yield client


def build_model(flags: Mapping[str, object]) -> tuple[DataModel, Chain]:
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
    flags = _with_losses_of_rule(flags)
    _reject_idle_flags(flags)
    with blaming({**DATA_FLAGS, "output": "--rule", "capacity": "--capacity", "source": "--source"}, "--alpha"):
        inputs = WHITE if flags["capacity"] is None else PowerLaw(flags["capacity"], flags["source"])
        if flags["classes"] or flags["gram"]:
            data = _classes(flags)
        elif flags["rule"] is None:
            data = GaussianMixture(**{name: flags[name] for name in _MIXTURE}, inputs=inputs)
        else:
            data = LinearRule(output=flags["rule"], **{name: flags[name] for name in _RULE}, inputs=inputs)
    stages = []
    for role, eta in (("teacher", 1.0), ("student", flags["eta"])):
        if role == "student" and flags["single"]:
            break
        with blaming(_LOSS_FLAGS, f"--{role}-loss"):
            loss = _loss(str(flags[f"{role}_loss"]), flags)
            loss.stages(len(stages) + 1)
        network = _network(flags, role)
        if network is not None or (flags["teacher_features"] and not given("eta")):
            eta = flags["eta"] if role == "student" and given("eta") else 1.0
        with blaming({"ridge": f"--{role}-ridge", "eta": "--eta"}, f"--{role}-ridge"):
            stages.append(Estimator(loss, flags[f"{role}_ridge"], eta, features=network))
    if flags["smoothing"] and not any("smoothing" in stage.loss.parameters for stage in stages):
        raise click.UsageError("--smoothing has no effect on these losses")
    chain = Chain.of(stages)
    with blaming(
        {"eta": "--eta"},
        "--rule"
        if flags["rule"]
        else "--classes"
        if data.many_classes
        else "--student-features"
        if flags["student_features"]
        else "--teacher-features",
    ):
        check_fit(data, chain)
    return data, chain


def _classes(flags: Mapping[str, object]) -> ClassMixture:
    """Data of K classes."""
    if flags["gram"] is None:
        with blaming({"similarity": "--similarity", "classes": "--classes"}, "--classes"):
            gram = similar_pairs(flags["classes"], flags["similarity"])
    else:
        gram = _gram(flags["gram"])
    weights = None
    if flags["weights"] is not None:
        try:
            weights = [float(item) for item in str(flags["weights"]).split(",")]
        except ValueError:
            raise click.UsageError(
                f"--weights must be numbers with commas between them, got {flags['weights']}"
            ) from None
    with blaming({"gram": "--gram", "weights": "--weights", **DATA_FLAGS}, "--classes"):
        return ClassMixture(
            alpha=flags["alpha"], gram=gram, weights=weights, delta=flags["delta"], label_noise=flags["label_noise"]
        )


def _gram(path: Path) -> list[list[float]]:
    """Numbers of a file, a list of lists in JSON or lines of numbers."""
    try:
        text = path.read_text(encoding="utf-8")
        if text.lstrip().startswith("["):
            return json.loads(text)
        lines = [line.split("#")[0].replace(",", " ").split() for line in text.splitlines()]
        return [[float(item) for item in line] for line in lines if line]
    except (OSError, ValueError) as error:
        raise click.UsageError(f"--gram: cannot read {path}: {error}") from None


def _network(flags: Mapping[str, object], role: str) -> RandomFeatures | None:
    """What the flags say that a stage sees; None for the inputs."""
    activation = flags[f"{role}_features"]
    if activation is None:
        return None
    with blaming({"ratio": "--features", "activation": f"--{role}-features"}, f"--{role}-features"):
        return RandomFeatures(flags["features"], activation)


def _with_losses_of_rule(flags: Mapping[str, object]) -> dict[str, object]:
    """The flags, with square losses where labels are real numbers; a UsageError for flags of other data."""
    flags = dict(flags)
    _reject_flags_of_other_classes(flags)
    if flags["capacity"] is None and given("source"):
        raise click.UsageError("--source has no effect without --capacity")
    if flags["teacher_features"] is None and flags["student_features"] is None and given("features"):
        raise click.UsageError("--features has no effect without --teacher-features or --student-features")
    if flags["rule"] is None:
        for name in ("noise", "slope"):
            if given(name):
                raise click.UsageError(f"--{name} has no effect without --rule")
        return flags
    for name in ("rho", "delta"):
        if given(name):
            raise click.UsageError(f"--{name} has no effect with --rule: its inputs have no classes")
    if flags["rule"] in ("sign", "logit") and given("noise"):
        raise click.UsageError(f"--noise has no effect with --rule {flags['rule']}; see --rule probit, --label-noise")
    if flags["rule"] != "logit" and given("slope"):
        raise click.UsageError(f"--slope has no effect with --rule {flags['rule']}; see --rule logit")
    if flags["rule"] == "identity":
        for name, loss in (("teacher_loss", "square"), ("student_loss", "square-distillation")):
            if not given(name):
                flags[name] = loss
    return flags


def _reject_flags_of_other_classes(flags: Mapping[str, object]) -> None:
    if flags["classes"] is None and flags["gram"] is None:
        for name in ("similarity", "weights"):
            if given(name):
                raise click.UsageError(
                    f"--{name} has no effect without --classes{' or --gram' if name == 'weights' else ''}"
                )
        return
    if flags["gram"] is not None:
        for name in ("classes", "similarity"):
            if given(name):
                raise click.UsageError(f"--{name} has no effect with --gram, which says how many classes there are")
    for name in ("rule", "capacity", "teacher_features", "student_features"):
        if flags[name] is not None:
            raise click.UsageError(f"--{name.replace('_', '-')} is not available with --classes or --gram")
    if given("rho"):
        raise click.UsageError("--rho has no effect with --classes or --gram; see --weights")


def _read_model(file: str, flags: Mapping[str, object]) -> tuple[DataModel, Chain]:
    """Data and chain of ``--problem``, after the flags of the data that were given."""
    for name, flag in _STAGE_FLAGS.items():
        if given(name):
            raise click.UsageError(f"{flag} has no effect with --problem: the file describes the stages")
    try:
        with click.open_file(file, encoding="utf-8") as stream:
            text = stream.read()
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"--problem: cannot read {file}: {error}") from None
    with blaming({}, "--problem"):
        data, chain = read_problem(text)
    for name in ("rule", *_CLASSES):
        if given(name):
            raise click.UsageError(f"--{name} has no effect with --problem: the file describes the data")
    for name in _DATA:
        if given(name) and name not in (*data.parameters, "label_noise"):
            raise click.UsageError(f"{DATA_FLAGS[name]} has no effect on the data of --problem, {data!r}")
    with blaming(DATA_FLAGS, "--problem"):
        data = replace(data, **{name: flags[name] for name in _DATA if given(name)})
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
    return built_in(text, **{argument: flags[_LOSS_ARGUMENTS[argument]] for argument in _arguments(text)})


def _reject_idle_flags(flags: Mapping[str, object]) -> None:
    if flags["single"]:
        for name, flag in _STUDENT_FLAGS.items():
            if given(name):
                raise click.UsageError(f"{flag} is the student's, but --single leaves the student out")
        return
    loss = str(flags["student_loss"])
    for argument, name in _LOSS_ARGUMENTS.items():
        if name != "smoothing" and argument not in _arguments(loss) and given(name):
            raise click.UsageError(f"{_LOSS_FLAGS[argument]} has no effect with --student-loss {loss}")
