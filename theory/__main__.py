"""Print the derivation and the saddle-point equations of a chain of estimators."""

from __future__ import annotations

import re
import sys
import textwrap
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace

import click
from sympy import (
    Add,
    Derivative,
    Eq,
    Expr,
    Function,
    MatrixBase,
    Mul,
    Rational,
    Symbol,
    Wild,
    erf,
    pretty,
    sqrt,
    symbols,
    together,
)
from sympy.core.relational import Equality

from theory.blocks import document as document_of_classes
from theory.convexity import ConvexityWarning
from theory.derivation import Step, derivation
from theory.envelope import envelope_derivatives, proximal_derivatives
from theory.functions import step as unit_step
from theory.losses import BUILT_IN, CrossEntropy, Loss, built_in
from theory.notation import Notation, force, proximal_field, stage_fraction
from theory.observables import test_error
from theory.potential import channel_conditions, conditional_moments, conjugates, prior_equations
from theory.replica import stage_ridge
from theory.symbols import (
    TEACHER,
    alpha,
    bias,
    delta,
    eta,
    field,
    h,
    logit,
    magnetization,
    overlap,
    response,
    rho,
    ridge,
    sign,
)
from theory.terminal import Command
from theory.typesetting import TAIL, as_latex, plain_text

MANY = 3
"""Stages from which on the notation is the general one."""


def chain_losses(choice: str, stages: int, parameters: dict[str, float]) -> list[Loss]:
    """The loss of each stage: the chosen one where the stages it looks at exist, cross-entropy before."""
    known = choice in BUILT_IN
    loss = built_in(choice).with_parameters(**parameters) if known else Loss.from_expression(choice, parameters)
    loss.stages(stages)
    return [loss if _usable(loss, t) else CrossEntropy() for t in range(1, stages + 1)]


def _usable(loss: Loss, t: int) -> bool:
    try:
        loss.stages(t)
    except ValueError:
        return False
    return True


def document(losses: Sequence[Loss], notation: Notation) -> list[Step]:
    """Derivation, rules and equations of the chain, in printed names."""
    stages = len(losses)
    steps = [_setting(losses)]
    for t in sorted({1, stages}):
        steps += [_of_stage(step, t) for step in derivation(t)]
    steps.append(_envelope_step())
    for t, loss in enumerate(losses, start=1):
        steps.append(_loss_step(t, loss, notation))
        steps.append(_channel_step(t, stages, notation))
        steps += _prior_steps(t, stages)
        steps.append(_error_step(t))
    return [replace(step, equations=tuple(_rename(e, notation) for e in step.equations)) for step in steps]


def _of_stage(step: Step, t: int) -> Step:
    """A step of the derivation as one of stage ``t``: its title, its label and the labels that it refers to say so."""
    text = step.text.replace("@{", f"@{{{t}.")
    return replace(
        step, title=f"Stage {t}. {step.title}", text=text, label=f"{t}.{step.label}", equations=_localise(step.equations, t)
    )  # fmt: skip


def _rename(equation: Expr, notation: Notation) -> Expr:
    if isinstance(equation, Equality):
        lhs, rhs = notation(equation.lhs), notation(equation.rhs)
        if (-lhs).is_Symbol:
            lhs, rhs = -lhs, -rhs
        return Eq(lhs, _tidy_sign(rhs), evaluate=False)
    return notation(equation)


def _tidy_sign(expression: Expr) -> Expr:
    """-(-a - b) c as (a + b) c: move a leading minus sign into a sum that is mostly negative."""
    coefficient, rest = expression.as_coeff_Mul()
    if coefficient.is_negative:
        factors = list(Mul.make_args(rest))
        for position, factor in enumerate(factors):
            if isinstance(factor, Add):
                negative = sum(term.could_extract_minus_sign() for term in factor.args)
                if 2 * negative > len(factor.args):
                    factors[position] = -factor
                    return Mul(-coefficient, *factors)
    return expression


def _localise(equations: Iterable[Expr], t: int) -> tuple[Expr, ...]:
    """Give the ridge and the active fraction the index of their stage."""
    own = {ridge: stage_ridge(t), eta: stage_fraction(t)}
    return tuple(
        Eq(e.lhs.xreplace(own), e.rhs.xreplace(own), evaluate=False) if isinstance(e, Equality) else e.xreplace(own)
        for e in equations
    )


def _setting(losses: Sequence[Loss]) -> Step:
    return Step(
        "Setting",
        "`N` inputs, `M = alpha N` samples `x = s v/sqrt(N) + sqrt(Delta) z`, label `y in {0, 1}` with `P(y=1) = rho` "
        "and sign `s = 2y-1`.  Each stage minimises the sum over samples of its loss plus `lambda/2 |w|^2` over "
        "the logit `w.x/sqrt(N) + b`.  The chain:",
        code=tuple(f"stage {t}: {loss!r}" for t, loss in enumerate(losses, start=1)),
    )


def _envelope_step() -> Step:
    u, gamma = symbols("u gamma")
    m, f = (Function(name)(u, gamma) for name in "Mf")
    left = {
        "dM_du": Derivative(m, u),
        "dM_dgamma": Derivative(m, gamma),
        "df_du": Derivative(f, u),
        "d2f_du2": Derivative(f, (u, 2)),
        "df_dgamma": Derivative(f, gamma),
        "d2f_du_dgamma": Derivative(f, u, gamma),
    }
    rules = {**envelope_derivatives(), **proximal_derivatives()}
    return Step(
        "Derivative rules of the Moreau envelope",
        "`M(u, gamma)` is the minimum over `h` of `l(h) + (h-u)^2/(2 gamma)`; there `h = u + gamma f`, `f = -l'(h)`, "
        "and `S1 = l''(h)`, `S2 = l'''(h)`.  Differentiating the condition of the minimum:",
        tuple(Eq(left[name], rule, evaluate=False) for name, rule in rules.items()),
        "rules",
    )


def _loss_step(t: int, loss: Loss, notation: Notation) -> Step:
    names = {h: logit(t)}
    if TEACHER in loss.logits:
        names[TEACHER] = logit(loss.stages(t)[loss.logits.index(TEACHER)])
    gamma = delta * response(t, t)
    shift = Add(*(delta * response(t, s) * force(s) for s in range(1, t)))
    equations = [
        Eq(Symbol(f"l_{t}"), loss.expression.xreplace(names), evaluate=False),
        Eq(force(t), -loss.gradient.xreplace(names), evaluate=False),
        Eq(proximal_field(t), Add(field(t), shift), evaluate=False),
        Eq(logit(t), proximal_field(t) + gamma * force(t), evaluate=False),
    ]
    text = "The loss, its force and the proximal point on a training sample."
    if loss.split is not None:
        text += "  The force is `c - S(h)`: one proximal map serves every label and teacher."
    if loss.expression.has(unit_step):
        mark = "The unit step" if notation.latex else "step"
        text += f"  {mark} is 0 below 0 and 1 above; the average slope of a force that jumps includes the jump."
    return Step(f"Stage {t}: proximal point", text, tuple(equations), f"{t}.proximal")


def _channel_step(t: int, stages: int, notation: Notation) -> Step:
    averages: dict[str, Expr] = {
        "sf": alpha * notation.average(sign, force(t)),
        "f": alpha * notation.average(force(t)),
        "ff": alpha * notation.average(force(t) ** 2),
    }
    averages |= {f"ff{s}": alpha * notation.average(force(t), force(s)) for s in range(1, t)}
    averages |= {f"df{s}": alpha * notation.average_slope(force(t), field(s)) for s in range(1, t + 1)}
    conditions = channel_conditions(t, averages)
    left = [*conjugates(t), Symbol("0")]
    return Step(
        f"Stage {t}: conjugates (channel)",
        f"The potential{_reference(t, stages)} is stationary in the order parameters.  `E[...]` is over the label and the cavity "
        "fields, which are Gaussian with mean `s m + b` and covariance `Delta` times the overlaps; derivatives are total.  The "
        "force is that of @{" + f"{t}.proximal" + "}.  The last line fixes the bias.",
        tuple(_solved(lhs, rhs) for lhs, rhs in zip(left, conditions.values(), strict=True)),
        f"{t}.channel",
    )


def _reference(t: int, stages: int) -> str:
    """To the potential of a stage, where it is derived."""
    return f" @{{{t}.potential}}" if t in (1, stages) else ""


def _solved(lhs: Symbol, rhs: Expr) -> Eq:
    return Eq(lhs, rhs, evaluate=False)


def _prior_steps(t: int, stages: int) -> list[Step]:
    equations = prior_equations(t)
    outputs = list(equations.outputs.values())
    text = f"The potential{_reference(t, stages)} is stationary in the conjugates."
    steps = []
    if t == 2 and stages == 2:
        first = conditional_moments(1)
        values = {Symbol(name, real=True): e.xreplace({ridge: stage_ridge(1)}) for name, e in first.outputs.items()}
        outputs = [output.subs(values) for output in outputs]
        text += "  The student's active weights are among the teacher's, which are all active."
    elif t > 1:
        text += "  `mu`, `B`, `G` are the moments of the earlier weights over the active coordinates."
    names = [Symbol(name, real=True) for name in equations.outputs]
    lines = [_solved(lhs, rhs) for lhs, rhs in zip(names, outputs, strict=True)]
    steps.append(Step(f"Stage {t}: order parameters (prior)", text, _localise(lines, t), f"{t}.prior"))
    if stages > 2 and t < stages:
        moments = conditional_moments(t).outputs
        lines = [_solved(Symbol(name), rhs) for name, rhs in moments.items()]
        found = _localise(lines, t)
        steps.append(Step(f"Stage {t}: moments of the weights", "For the stages that follow.", found, f"{t}.moments"))
    return steps


def _error_step(t: int) -> Step:
    error = test_error(magnetization(t), bias(t), overlap(t, t), delta, rho)
    x = Wild("x")
    tails = error.replace(erf(x) / 2 + Rational(1, 2), lambda x: TAIL(together((-sqrt(2) * x).expand())))
    return Step(
        f"Stage {t}: test error", "`H(x)` is the tail of the standard normal distribution, the probability of more than `x`.",
        (_solved(Symbol("E_test"), tails),), f"{t}.error",
    )  # fmt: skip


# Output.


def as_text(steps: Sequence[Step], notation: Notation) -> str:
    """Plain text, equations one a line."""
    lines: list[str] = []
    titles = {step.label: re.sub(r"^Stage \d+\. ", "", step.title) for step in steps}
    for step in steps:
        lines += [step.title, "-" * len(step.title)]
        if step.text:
            lines += textwrap.wrap(plain_text(step.text, titles, notation), 100)
        lines += [line for text in step.code for line in _wrapped(text)]
        lines.append("")
        for equation in step.equations:
            lines += [*_text_equation(equation), ""]
    return "\n".join(lines).rstrip() + "\n"


def _text_equation(equation: Expr) -> list[str]:
    if not isinstance(equation, Equality):
        return _wrapped(str(equation))
    if isinstance(equation.rhs, MatrixBase):
        matrix = pretty(equation.rhs, use_unicode=False, wrap_line=False)
        return [f"    {equation.lhs} =", *("    " + line for line in matrix.splitlines())]
    shown = f"{equation.lhs} = {equation.rhs}"
    return textwrap.wrap(shown, 100, initial_indent="    ", subsequent_indent="        ", break_long_words=False)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent="    ", subsequent_indent="        ", break_long_words=False)


@click.command(cls=Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--stages", type=click.IntRange(1, 6), default=2, show_default=True, help="Length of the chain.")
@click.option(
    "--loss",
    default=None,
    help=f"One of {', '.join(BUILT_IN)}, or a formula in h, y, s, h_teacher, h_1, ... such as "
    "'log(1+exp(-s*h))'.  Stages without a teacher use cross-entropy when the loss needs one.",
)
@click.option("--parameter", "-p", multiple=True, metavar="NAME=VALUE", help="Parameter of the loss; repeatable.")
@click.option(
    "--classes",
    type=click.IntRange(2, 1000),
    default=None,
    help="A mixture of this many classes, by default the binary one.",
)
@click.option("--latex", "as_document", is_flag=True, help="Write a LaTeX document.")
def main(stages: int, loss: str | None, parameter: tuple[str, ...], classes: int | None, as_document: bool) -> None:
    """Print the replica derivation and the saddle-point equations of a chain of STAGES estimators.

    Up to two stages the notation is that of Saglietti and Zdeborova: ~ marks the teacher, hats conjugates.  With --classes order
    parameters are blocks, numbered by their stages.
    """
    choice = loss or ("distillation" if stages > 1 else "cross-entropy")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvexityWarning)
        try:
            losses = chain_losses(choice, stages, _parameters(parameter))
        except ValueError as error:
            raise click.UsageError(str(error)) from None
    for warning in caught:
        click.echo(f"warning: {warning.message}", err=True)
    notation = Notation(stages if classes is None else MANY, as_document)
    try:
        steps = document(losses, notation) if classes is None else document_of_classes(losses, classes)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    click.echo(as_latex(steps, stages, notation) if as_document else as_text(steps, notation), nl=False)


def _parameters(items: Sequence[str]) -> dict[str, float]:
    values = {}
    for item in items:
        name, _, value = (part.strip() for part in item.partition("="))
        if name in values:
            raise ValueError(f"--parameter {name} is given twice")
        try:
            values[name] = float(value)
        except ValueError:
            raise ValueError(f"--parameter wants NAME=VALUE, got {item!r}") from None
    return values


def run(arguments: Sequence[str] | None = None) -> int:
    """Exit code of the command; what goes wrong is one line on standard error."""
    try:
        main.main(arguments, prog_name="python -m theory")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


if __name__ == "__main__":
    sys.exit(run())
