"""Losses as expressions: everything a solver needs of a loss is derived from its formula.

A stage minimises sum_mu l(h_mu; y_mu, earlier logits) + (ridge/2)|w|^2.  A ``Loss`` holds the formula of l
in the logit ``h``, the label ``y`` in {0, 1}, the logits of earlier stages (``h_1``, ``h_2``, ..., or
``h_teacher`` for "the stage before") and named parameters.  Parameter values are kept beside the formula,
not inside it: two losses that differ only in values share one expression, and so one compiled kernel.
A target may jump where an earlier logit changes sign: that is ``step`` (hard pseudo-labels).

    >>> SquareLoss().split
    (h, 2*y - 1)
    >>> Loss.from_expression("log(1 + exp(-s*h)) + a*h**2", {"a": 0.1}).split
    (2*a*h + sigmoid(h), y)
"""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import sympy
from sympy import Add, Expr, Integer, Symbol, collect, diff, expand, factor

from theory.bends import CURVED, Bend, are_known, numeric_bends, symbolic_bends
from theory.convexity import ConvexityWarning, examine
from theory.functions import sigmoid, softplus, stabilise, step
from theory.parser import earlier_logits, names_classes, names_label, parameter_symbol, read_formula, require_used
from theory.softmax import SoftmaxForm, Target, numeric_form, read_target, softmax_form
from theory.symbols import TEACHER, h, logit, y

Teacher = int | tuple[int, ...] | None
"""Stage (from 1) that a target is taken from, several of them, or None: the stage before."""


@dataclass(frozen=True)
class Range:
    """Allowed values of a parameter: lower <= value <= upper, the lower end excluded if ``open_below``.

    Examples
    --------
    >>> Range(0.0, 1.0).check("mixing", 1)
    1.0
    >>> print(Range(lower=0.0, open_below=True))
    in (0, inf)
    """

    lower: float = -math.inf
    upper: float = math.inf
    open_below: bool = False

    def check(self, name: str, value: float) -> float:
        """Return ``value`` as a float; ValueError naming the parameter and the range if it is not allowed."""
        try:
            number = math.nan if isinstance(value, bool | str) else float(value)
        except OverflowError:
            number = math.inf
        except (TypeError, ValueError):
            raise ValueError(f"{name} must be a number, {self}, got {value!r}") from None
        above = number > self.lower if self.open_below else number >= self.lower
        if not (math.isfinite(number) and above and number <= self.upper):
            raise ValueError(f"{name} must be finite and {self}, got {value!r}")
        return number

    def __str__(self) -> str:
        left = "(" if self.open_below or math.isinf(self.lower) else "["
        right = ")" if math.isinf(self.upper) else "]"
        return f"in {left}{self.lower:g}, {self.upper:g}{right}"


@dataclass(frozen=True, repr=False)
class Loss:
    """A convex loss l(h; y, earlier logits), symbolic; hashable, compared by formula and parameter values.

    Attributes
    ----------
    name
        What the loss is called in messages.
    expression
        The formula, in h, y, earlier logits and parameter symbols.
    keys, symbols, values
        Parameters in a fixed order: their Python names, their symbols in ``expression``, their values.
    limits
        Allowed range of each parameter.
    teacher
        Stage (from 1) that ``h_teacher`` stands for; None means the stage before.  With several stages the
        formula holds their logits h_1, h_2, ... themselves.
    options
        Structural flags, shown by ``repr`` only (they are already in the formula).
    needs_classes
        Whether the formula means two classes: one that names y, or has it inside.  Labels s may be real numbers.
    softmax
        The same loss for K classes (:mod:`theory.softmax`), in the symbols of the parameters; None if there is none.
    needs_many_classes
        Whether it means something for K classes alone.
    is_formula
        Whether it was made by :meth:`from_expression`.
    table
        Soft targets that come with it, a row of K numbers for each of K labels; None if there are none.

    Examples
    --------
    >>> loss = Loss.from_expression("a*log(1 + exp((1 - s*h)/a))", {"a": 0.4}, name="smoothed hinge")
    >>> loss.gradient
    (1 - 2*y)*sigmoid((-h*(2*y - 1) + 1)/a)
    >>> loss.with_parameters(a=0.1)
    Loss('smoothed hinge', a=0.1)
    """

    name: str
    expression: Expr
    keys: tuple[str, ...] = ()
    symbols: tuple[Symbol, ...] = ()
    values: tuple[float, ...] = ()
    limits: tuple[Range, ...] = ()
    teacher: Teacher = None
    options: tuple[tuple[str, object], ...] = ()

    needs_classes = False
    softmax = None
    needs_many_classes = False
    table = None

    def __post_init__(self) -> None:
        checked = (
            limit.check(key, value) for key, value, limit in zip(self.keys, self.values, self.limits, strict=True)
        )
        object.__setattr__(self, "values", tuple(checked))
        _check_teacher(self.teacher)
        if isinstance(self.teacher, tuple) and TEACHER in self.logits:
            raise ValueError(
                f"h_teacher is one stage, got teacher={self.teacher!r}: write h_1, h_2, ... in the formula"
            )

    @classmethod
    def from_expression(
        cls,
        expression: str | Expr,
        parameters: Mapping[str, float] | None = None,
        name: str | None = None,
        teacher: int | None = None,
    ) -> Loss:
        """A loss from a formula; raises ValueError if it cannot be read, is not finite or is not convex.

        Issues a :class:`theory.convexity.ConvexityWarning` if it can neither be proved convex nor found not to be.

        Parameters
        ----------
        expression
            Formula in ``h``, ``y`` (0 or 1), ``s`` (= 2y-1), ``h_teacher``, ``h_1``, ``h_2``, ... and
            parameters.  Powers up to 100.
            Functions: sigmoid, softplus, exp, log, sqrt, tanh, sinh, cosh, atan, asinh, erf, erfc, and of
            earlier logits ``step`` (0 below 0, 1 above, 1/2 at 0).  Of K classes, with an index of the class, in ``h[k]``,
            ``y[k]`` (1 of the label, else 0), ``h_teacher[k]``, ``h_1[k]``, ..., with ``Sum(..., k)`` over the classes,
            ``logsumexp(h)``, ``softmax(h)[k]`` and their number ``K`` (:mod:`theory.class_formulas`).
        parameters
            Value of each named parameter of the formula.  Names of the model (``ridge``, ``eta``, ``alpha``, ...)
            are taken.
        name
            Name used in messages; the formula itself if not given.
        teacher
            Stage (from 1) that ``h_teacher`` stands for; None means the stage before.

        Examples
        --------
        >>> matched = Loss.from_expression("c*(h - h_teacher)**2/2 + (1 - c)*softplus(-s*h)", {"c": 0.5})
        >>> matched.logits, matched.parameters
        ((h_teacher,), {'c': 0.5})
        >>> Loss.from_expression("-h**2")
        Traceback (most recent call last):
        ValueError: loss '-h**2' is not convex: its second derivative is -2 at h=0, y=0
        """
        parameters = dict(parameters or {})
        symbols = {key: parameter_symbol(key) for key in parameters}
        if names_classes(expression):
            from theory.class_formulas import ClassFormula, read_class_formula  # here: few formulas have an index

            cls, formula = ClassFormula, read_class_formula(expression, symbols)
        else:
            formula = read_formula(expression, symbols)
        require_used(expression, formula, symbols)
        loss = cls(
            name=name or str(expression),
            expression=formula,
            keys=tuple(symbols),
            symbols=tuple(symbols.values()),
            values=tuple(parameters.values()),
            limits=(Range(),) * len(symbols),
            teacher=teacher,
        )
        object.__setattr__(loss, "text", str(expression))
        if not loss.needs_classes:
            object.__setattr__(loss, "needs_classes", names_label(expression))
        loss.check_convex()
        return loss

    def __repr__(self) -> str:
        shown = [f"{key}={value!r}" for key, value in self.parameters.items()]
        shown += [f"{key}={value!r}" for key, value in self.options]
        if self.teacher is not None:
            shown.append(f"teacher={self.teacher}")
        if self.is_formula:
            return f"Loss({self.name!r}{''.join(', ' + item for item in shown)})"
        return f"{self.name}({', '.join(shown)})"

    @property
    def is_formula(self) -> bool:
        return type(self) is Loss

    @property
    def parameters(self) -> dict[str, float]:
        """Parameter values by Python name."""
        return dict(zip(self.keys, self.values, strict=True))

    def with_parameters(self, **values: float) -> Loss:
        """The same loss with some parameter values changed; ValueError on an unknown name or a bad value."""
        for key in values:
            if key not in self.keys:
                allowed = ", ".join(self.keys) or "none"
                raise ValueError(f"{self.name} has no parameter {key!r}; its parameters: {allowed}")
        merged = self.parameters | values
        other = copy.copy(self)
        object.__setattr__(other, "values", tuple(merged.values()))
        other.__post_init__()
        if other.is_formula:
            other.check_convex()
        return other

    def with_teacher(self, stage: int | None) -> Loss:
        """The same loss with another stage (from 1) behind ``h_teacher``; ValueError if the formula has none."""
        if TEACHER not in self.logits:
            raise ValueError(f"{self.name} names no h_teacher that another stage could stand for")
        other = copy.copy(self)
        object.__setattr__(other, "teacher", stage)
        return other

    @property
    def logits(self) -> tuple[Symbol, ...]:
        """Earlier logits in the formula: h_1, h_2, ... in order, then h_teacher."""
        return earlier_logits(self.expression)

    def require_classes(self, classes: int) -> None:
        """ValueError if it is no loss of so many classes, three or more."""
        softmax_form(self)

    def never_shown(self, seen: Sequence[float]) -> list[int]:
        """Classes, from 0, whose logit runs to -infinity where labels are seen so often."""
        return numeric_form(self).never_shown(seen, self.table)

    def stages(self, t: int) -> tuple[int, ...]:
        """Stages (from 1) that ``logits`` mean for a loss used at stage ``t``; ValueError if not earlier."""
        stages = []
        for symbol in self.logits:
            if symbol == TEACHER:
                stage = t - 1 if self.teacher is None else self.teacher
                if stage < 1:
                    raise ValueError(f"{self.name} needs a teacher: stage {t} has no stage before it")
            else:
                stage = int(symbol.name.removeprefix("h_"))
            if stage >= t:
                raise ValueError(f"{self.name} at stage {t} looks at stage {stage}, which is not earlier")
            stages.append(stage)
        return tuple(stages)

    @property
    def gradient(self) -> Expr:
        """dl/dh; in the form S - c when the gradient splits."""
        return _gradient(self.expression)

    @property
    def curvature(self) -> Expr:
        """d2l/dh2."""
        return _curvature(self.expression)

    @property
    def third(self) -> Expr:
        """d3l/dh3."""
        return _third(self.expression)

    @property
    def split(self) -> tuple[Expr, Expr] | None:
        """(S, c) with dl/dh = S(h) - c(y, earlier logits), or None if the curvature depends on the target.

        With a split, the proximal map h + gamma S(h) is one function for every label and every teacher's
        logit.
        """
        return _split(self.expression)

    @property
    def is_quadratic(self) -> bool:
        """Whether the loss is a polynomial of second degree in all logits: forces then are linear in the fields."""
        return _is_quadratic(self.expression)

    @property
    def saturation(self) -> tuple[Expr, Expr]:
        """Limits of the S of ``split`` as h -> -oo and +oo; 0 where S does not saturate.

        Where S approaches a limit, S minus the limit is what can be evaluated without cancellation.
        """
        return _saturation(self.expression)

    @property
    def bends(self) -> tuple[Bend, ...]:
        """Bends of the gradient in h: (centre, scale, strength) each, from its terms with curved functions.

        A function of slope*h + offset bends at centre -offset/slope over the scale 1/|slope|; strength is the
        derivative of the term there.  A root of a quadratic bends at its minimum.  Equal bends are merged.
        The own logit is in no ``step``.
        """
        return symbolic_bends(self.gradient, h)

    @property
    def bends_are_known(self) -> bool:
        """Whether ``bends`` are all the bends of the gradient in h; if not, an integration has to search for the others."""
        return are_known(self.gradient if self.split is None else self.split[0], h)

    @property
    def target_bends(self) -> tuple[tuple[tuple[Expr, Expr], ...], ...]:
        """For each of ``logits``, the (centre, scale) of the bends of -dl/dh as a function of that logit.

        The jump of a ``step`` has the scale ``JUMP_WIDTH``.
        """
        return tuple(
            tuple((centre, scale) for centre, scale, _ in symbolic_bends(self.gradient, symbol))
            for symbol in self.logits
        )

    def target_bends_at_values(self) -> tuple[tuple[tuple[float, float], ...], ...]:
        """For each of ``logits``, the (position, scale) of the bends of dl/dh in that logit, at the loss's parameter values.

        Those that move with another logit are left out.
        """
        values = dict(zip(self.symbols, map(sympy.Float, self.values), strict=True))
        slope = self.gradient.xreplace(values)
        return tuple(numeric_bends(slope, symbol) for symbol in self.logits)

    def check_convex(self) -> None:
        """Raise ValueError, naming the loss and the place, where the loss is not finite or its curvature negative.

        A ConvexityWarning is issued where neither that nor the contrary is found; see :mod:`theory.convexity`.
        """
        finding = examine(self.expression, self.symbols, self.values)
        if finding.fault:
            raise ValueError(f"loss {self.name!r} is {finding.fault}")
        if finding.unproved:
            warnings.warn(f"loss {self.name!r} is not proved {finding.unproved}", ConvexityWarning, stacklevel=3)


class CrossEntropy(Loss):
    """Cross-entropy H(y_eps, sigmoid(h)) with label smoothing, y_eps = y(1-eps) + (1-y)eps.

    ``smoothing`` in [0, 1/2].  Of K classes, H(y_eps, softmax(h)), and each of the other classes has eps/(K-1).

    Examples
    --------
    >>> CrossEntropy().split  # the gradient is the first minus the second
    (sigmoid(h), -2*epsilon*y + epsilon + y)
    """

    needs_classes = True

    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__(
            "CrossEntropy",
            softplus(h) - _smoothed(_EPSILON) * h,
            ("smoothing",),
            (_EPSILON,),
            (smoothing,),
            (_SMOOTHING,),
        )

    @property
    def softmax(self) -> SoftmaxForm:
        return SoftmaxForm(0, 1, 0, 1, 1, _EPSILON, 0, 0)


class SquareLoss(Loss):
    """(h - s)^2/2 with s = 2y - 1.

    Twice :class:`SquareDistillation` with ``mixing=0``: the same weights take twice the ridge.  Of K classes it is
    |h - e_y|^2/2 with the one-hot label e_y, as ``SquareDistillation`` with ``mixing=0``.

    Examples
    --------
    >>> SquareLoss().gradient
    h - 2*y + 1
    """

    def __init__(self) -> None:
        super().__init__("SquareLoss", (h - (2 * y - 1)) ** 2 / 2)

    @property
    def softmax(self) -> SoftmaxForm:
        return SoftmaxForm(1, 0, 0, 1, 1, 0, 0, 0)


class LinearLoss(Loss):
    """-s h: with any ridge, the fitted weights are the Hebbian sum of s x.

    Examples
    --------
    >>> LinearLoss().gradient, LinearLoss().curvature
    (1 - 2*y, 0)
    """

    def __init__(self) -> None:
        super().__init__("LinearLoss", -(2 * y - 1) * h)


class Distillation(Loss):
    """(1-chi) H(y_eps, sigmoid(h)) + chi H(sigmoid(h_teacher/T), sigmoid(h/T)).

    Parameters
    ----------
    mixing
        chi in [0, 1]: 0 is training on labels, 1 is pure distillation.
    temperature
        T > 0, on both logits of the soft term; the label term stays at T = 1.
    smoothing
        Label smoothing eps in [0, 1/2].
    temperature_squared
        Multiply the soft term by T^2 (Hinton's convention; not the paper's).
    teacher
        Stage (from 1) that teaches; None means the stage before.  With several, the soft target is the mean of
        sigmoid(h_k/T) over them.
    target
        Of K classes, what of the teacher's probabilities the student is shown: "full", "true" (that of the label's class, the
        others equal), "similarity" (their mean over the training samples of this label), "true+similarity", "top-k" (the k
        largest, as in "top-2") or "above-0.01" (those of at least this level), the rest in equal parts; "average" (of the label
        its mean over all training samples) or "cosine-1" (what the angles between the teacher's weights say, to this power).
        See :class:`theory.softmax.Target`.  Two classes have "full" alone.

    Examples
    --------
    >>> loss = Distillation(mixing=0.3, temperature=2.0)
    >>> loss
    Distillation(mixing=0.3, temperature=2.0, smoothing=0.0)
    >>> loss.logits, Distillation(teacher=(1, 2)).logits
    ((h_teacher,), (h_1, h_2))
    >>> Distillation(mixing=2.0)
    Traceback (most recent call last):
    ValueError: mixing must be finite and in [0, 1], got 2.0
    """

    needs_classes = True

    def __init__(
        self,
        mixing: float = 1.0,
        temperature: float = 1.0,
        smoothing: float = 0.0,
        temperature_squared: bool = False,
        teacher: Teacher = None,
        target: str = "full",
    ) -> None:
        read_target(target)
        label = softplus(h) - _smoothed(_EPSILON) * h
        soft = softplus(h / _T) - _mean_over(teacher, lambda taught: sigmoid(taught / _T)) * h / _T
        factor_t = _T**2 if temperature_squared else Integer(1)
        super().__init__(
            "Distillation",
            (1 - _CHI) * label + _CHI * factor_t * soft,
            ("mixing", "temperature", "smoothing"),
            (_CHI, _T, _EPSILON),
            (mixing, temperature, smoothing),
            (_MIXING, _TEMPERATURE, _SMOOTHING),
            teacher,
            (*((("temperature_squared", True),) if temperature_squared else ()),
             *((("target", target),) if target != "full" else ())),
        )  # fmt: skip

    @property
    def temperature_squared(self) -> bool:
        """Whether the soft term is multiplied by T^2."""
        return bool(dict(self.options).get("temperature_squared", False))

    @property
    def needs_many_classes(self) -> bool:
        return "target" in dict(self.options)

    @property
    def soft_weight(self) -> float:
        """Factor of sigmoid(h/T) - sigmoid(h_teacher/T) in the gradient: chi/T, with ``temperature_squared`` chi T."""
        chi, t = self.parameters["mixing"], self.parameters["temperature"]
        return chi * t if self.temperature_squared else chi / t

    @property
    def softmax(self) -> SoftmaxForm:
        soft = _CHI * _T if self.temperature_squared else _CHI / _T
        kept = read_target(dict(self.options).get("target", "full"))
        return SoftmaxForm(0, 1 - _CHI, soft, _T, 1 - _CHI, _EPSILON, soft, 0, *kept)


class TableTargets(Loss):
    """(1-chi) H(y_eps, softmax(h)) + chi H(t_y, softmax(h/T)): soft targets that the label decides, of K classes.

    Label smoothing is the table with 1 - eps on its diagonal and eps/(K-1) off it.

    Parameters
    ----------
    table
        t, shape (K, K): row y is the target of samples with label y, numbers >= 0 of sum 1.
    mixing, temperature, smoothing, temperature_squared
        As of :class:`Distillation`.

    Raises
    ------
    ValueError
        If the table is not square, or a row is no law of probability.

    Examples
    --------
    >>> TableTargets([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]], temperature=2.0).softmax[:5]
    (0, 1 - chi, chi/T, T, 1 - chi)
    >>> TableTargets([[0.8, 0.1], [0.1, 0.9]])
    Traceback (most recent call last):
    ValueError: row 0 of table must hold numbers >= 0 of sum 1, got [0.8, 0.1]
    """

    needs_classes = True
    needs_many_classes = True

    def __init__(
        self, table: object, mixing: float = 1.0, temperature: float = 1.0, smoothing: float = 0.0,
        temperature_squared: bool = False,
    ) -> None:  # fmt: skip
        label = softplus(h) - _smoothed(_EPSILON) * h
        soft = softplus(h / _T) - y * h / _T  # a formula for two classes; theory.levels.LabelTargets has a table of two
        factor_t = _T**2 if temperature_squared else Integer(1)
        super().__init__(
            "TableTargets",
            (1 - _CHI) * label + _CHI * factor_t * soft,
            ("mixing", "temperature", "smoothing"),
            (_CHI, _T, _EPSILON),
            (mixing, temperature, smoothing),
            (_MIXING, _TEMPERATURE, _SMOOTHING),
            options=(
                ("table", _checked_table(table)),
                *((("temperature_squared", True),) if temperature_squared else ()),
            ),
        )

    @property
    def table(self) -> tuple[tuple[float, ...], ...]:
        return dict(self.options)["table"]

    @property
    def temperature_squared(self) -> bool:
        """Whether the soft term is multiplied by T^2."""
        return bool(dict(self.options).get("temperature_squared", False))

    @property
    def softmax(self) -> SoftmaxForm:
        soft = _CHI * _T if self.temperature_squared else _CHI / _T
        return SoftmaxForm(0, 1 - _CHI, soft, _T, 1 - _CHI, _EPSILON, soft, 0, Target.TABLE)


class SquareDistillation(Loss):
    """((h+1)/2 - target)^2 with target (1-chi) y_eps + chi (gain h_teacher + 1)/2.

    In signed labels (h - t)^2/4 with t = (1-chi) (1-2 eps) s + chi gain h_teacher: half of what :class:`SquareLoss`,
    (h - s)^2/2, is for that target, so that equal weights take half the ridge.

    Parameters
    ----------
    mixing
        chi, a weight of any size and sign: the loss is convex whatever its target.
    gain
        beta, factor on the teacher's logit.
    smoothing
        Label smoothing eps in [0, 1/2].
    teacher
        Stage (from 1) that teaches; None means the stage before.  With several, h_teacher is the mean of their
        logits.

    Examples
    --------
    >>> loss = SquareDistillation(mixing=0.5, gain=2.0)
    >>> loss.parameters, loss.is_quadratic
    ({'mixing': 0.5, 'gain': 2.0, 'smoothing': 0.0}, True)
    """

    def __init__(self, mixing: float = 1.0, gain: float = 1.0, smoothing: float = 0.0, teacher: Teacher = None) -> None:
        taught = _mean_over(teacher, lambda taught: taught)
        target = (1 - _WEIGHT) * _smoothed(_EPSILON) + _WEIGHT * (_BETA * taught + 1) / 2
        super().__init__(
            "SquareDistillation",
            ((h + 1) / 2 - target) ** 2,
            ("mixing", "gain", "smoothing"),
            (_WEIGHT, _BETA, _EPSILON),
            (mixing, gain, smoothing),
            (Range(), Range(), _SMOOTHING),
            teacher,
        )

    @property
    def softmax(self) -> SoftmaxForm:
        return SoftmaxForm(1, 0, 0, 1, 1 - _WEIGHT, _EPSILON, 0, _WEIGHT * _BETA)


class LogitMatching(Loss):
    """(1-chi) H(y_eps, sigmoid(h)) + chi gain (h - h_teacher)^2/4.

    Of K classes (1-chi) H(y_eps, softmax(h)) + chi gain |h - h_teacher|^2/2.  With gain = 1/K it is what :class:`Distillation`
    with ``temperature_squared`` tends to as T -> infinity (Hinton, Vinyals & Dean 2015, Sec. 2.1).

    Parameters
    ----------
    mixing
        chi in [0, 1].
    gain
        Weight of the matched logits, > 0.
    smoothing
        Label smoothing eps in [0, 1/2].
    teacher
        Stage (from 1) that teaches; None means the stage before.  With several, h_teacher is the mean of their logits.

    Examples
    --------
    >>> LogitMatching().split[0]
    chi*gain*h/2 + (1 - chi)*sigmoid(h)
    """

    needs_classes = True

    def __init__(self, mixing: float = 1.0, gain: float = 0.5, smoothing: float = 0.0, teacher: Teacher = None) -> None:
        taught = _mean_over(teacher, lambda taught: taught)
        label = softplus(h) - _smoothed(_EPSILON) * h
        super().__init__(
            "LogitMatching",
            (1 - _CHI) * label + _CHI * _GAIN * (h - taught) ** 2 / 4,
            ("mixing", "gain", "smoothing"),
            (_CHI, _GAIN, _EPSILON),
            (mixing, gain, smoothing),
            (_MIXING, _POSITIVE, _SMOOTHING),
            teacher,
        )

    @property
    def softmax(self) -> SoftmaxForm:
        return SoftmaxForm(_CHI * _GAIN, 1 - _CHI, 0, 1, 1 - _CHI, _EPSILON, 0, _CHI * _GAIN)


class PseudoLabels(Loss):
    """Hard pseudo-labels: (1-chi) H(y_eps, sigmoid(h)) + chi H(step(h_teacher), sigmoid(h)), or its square twin.

    The limit of infinite gain on the teacher's logit, exactly: step is 0 below 0, 1 above, 1/2 at 0.

    Parameters
    ----------
    mixing
        chi in [0, 1]: 0 is training on labels, 1 is training on the teacher's decisions.
    smoothing
        Smoothing eps in [0, 1/2] of the labels (not of the pseudo-labels).
    teacher
        Stage (from 1) that teaches; None means the stage before.  With several, the target is the fraction of
        them that decide for y = 1.
    square
        ((h+1)/2 - target)^2 with target (1-chi) y_eps + chi step(h_teacher), instead of the cross-entropy.

    Examples
    --------
    >>> PseudoLabels(mixing=0.5).split  # step(h_teacher) is the teacher's decision
    (sigmoid(h), chi*step(h_teacher) + (chi - 1)*(2*epsilon*y - epsilon - y))
    """

    needs_classes = True

    def __init__(
        self, mixing: float = 1.0, smoothing: float = 0.0, teacher: Teacher = None, square: bool = False
    ) -> None:
        target = (1 - _CHI) * _smoothed(_EPSILON) + _CHI * _mean_over(teacher, step)
        super().__init__(
            "PseudoLabels",
            ((h + 1) / 2 - target) ** 2 if square else softplus(h) - target * h,
            ("mixing", "smoothing"),
            (_CHI, _EPSILON),
            (mixing, smoothing),
            (_MIXING, _SMOOTHING),
            teacher,
            (("square", True),) if square else (),
        )

    @property
    def softmax(self) -> SoftmaxForm:
        weights = (1, 0) if self.options else (0, 1)
        return SoftmaxForm(*weights, 0, 1, 1 - _CHI, _EPSILON, _CHI, 0, Target.DECISION)


UserLoss = Loss.from_expression

BUILT_IN: dict[str, type[Loss]] = {
    "cross-entropy": CrossEntropy,
    "square": SquareLoss,
    "linear": LinearLoss,
    "distillation": Distillation,
    "table-targets": TableTargets,
    "square-distillation": SquareDistillation,
    "logit-matching": LogitMatching,
    "pseudo-labels": PseudoLabels,
}
"""Losses by the names that command lines and files use."""


def built_in(name: str, **arguments: object) -> Loss:
    """A loss of :data:`BUILT_IN`; ValueError if it needs more than is given.

    Examples
    --------
    >>> built_in("cross-entropy", smoothing=0.1)
    CrossEntropy(smoothing=0.1)
    >>> built_in("table-targets")
    Traceback (most recent call last):
    ValueError: table-targets needs table: give it in Python or in a problem file
    """
    known = inspect.signature(BUILT_IN[name]).parameters.values()
    missing = [found.name for found in known if found.default is found.empty and found.name not in arguments]
    if missing:
        raise ValueError(f"{name} needs {', '.join(missing)}: give it in Python or in a problem file")
    return BUILT_IN[name](**arguments)


_CHI = Symbol("chi", nonnegative=True)
_WEIGHT = Symbol("chi", real=True)
_T = Symbol("T", positive=True)
_EPSILON = Symbol("epsilon", nonnegative=True)
_BETA = Symbol("beta", real=True)
_GAIN = Symbol("gain", positive=True)
_MIXING = Range(0.0, 1.0)
_TEMPERATURE = _POSITIVE = Range(lower=0.0, open_below=True)
_SMOOTHING = Range(0.0, 0.5)
_SUM = 1e-9  # by how much a row of a table may miss 1


def _smoothed(epsilon: Symbol) -> Expr:
    return y * (1 - epsilon) + (1 - y) * epsilon


def _checked_table(table: object) -> tuple[tuple[float, ...], ...]:
    """Rows of K numbers >= 0 of sum 1, made to sum to 1 but for rounding; ValueError otherwise."""
    try:
        rows = tuple(tuple(float(value) for value in row) for row in table)
    except (TypeError, ValueError):
        raise ValueError(f"table must be K rows of K numbers, got {table!r}") from None
    if len(rows) < 2 or any(len(row) != len(rows) for row in rows):
        raise ValueError(f"table must be K rows of K numbers, got {len(rows)} of {sorted({len(row) for row in rows})}")
    for label, row in enumerate(rows):
        if not all(0.0 <= value <= 1.0 + _SUM for value in row) or abs(sum(row) - 1.0) > _SUM:
            raise ValueError(f"row {label} of table must hold numbers >= 0 of sum 1, got {list(row)}")
    return tuple(tuple(value / sum(row) for value in row) for row in rows)


def _check_teacher(teacher: Teacher) -> None:
    """ValueError unless ``teacher`` is None, a stage number, or a tuple of different ones."""
    stages = teacher if isinstance(teacher, tuple) else (1 if teacher is None else teacher,)
    numbers = all(isinstance(stage, int) and not isinstance(stage, bool) and stage >= 1 for stage in stages)
    if not numbers or not stages or len(set(stages)) < len(stages):
        raise ValueError(
            f"teacher must be a stage number 1, 2, ..., a tuple of different ones, or None, got {teacher!r}"
        )


def _mean_over(teacher: Teacher, function: Callable[[Expr], Expr]) -> Expr:
    """``function`` of the teacher's logit, averaged over the teachers if there are several."""
    _check_teacher(teacher)
    if not isinstance(teacher, tuple):
        return function(TEACHER)
    return Add(*(function(logit(stage)) for stage in teacher)) / len(teacher)


# What is derived from a formula depends on the formula alone, so it is cached by formula.


@lru_cache(maxsize=256)
def _split(expression: Expr) -> tuple[Expr, Expr] | None:
    # A label is 0 or 1, so any function of it is y f(1) + (1-y) f(0); the tests below then are identities.
    slope = diff(expression, h)
    at_one, at_zero = (_expand(stabilise(slope.subs(y, value))) for value in (1, 0))
    if _expand(stabilise(diff(at_one - at_zero, h))) != 0:
        return None
    slope = _expand(y * at_one + (1 - y) * at_zero)
    varying = Add(*(term for term in Add.make_args(slope) if term.has(h)))
    targets = {y, *earlier_logits(expression)}
    if varying.free_symbols & targets:
        return None
    return _tidy(varying), _tidy(varying - slope)


@lru_cache(maxsize=256)
def _is_quadratic(expression: Expr) -> bool:
    logits = (h, *earlier_logits(expression))
    for label in (0, 1):
        at_label = expression.subs(y, label)
        if not at_label.is_polynomial(*logits) or sympy.Poly(at_label, *logits).total_degree() > 2:
            return False
    return True


@lru_cache(maxsize=256)
def _saturation(expression: Expr) -> tuple[Expr, Expr]:
    split = _split(expression)
    limits = []
    for end in (-1, 1):
        limit = Integer(0) if split is None else split[0]
        for function in limit.atoms(sigmoid, sympy.tanh):
            direction = end * sympy.sign(diff(function.args[0], h))
            if direction.free_symbols:
                continue
            low = 0 if isinstance(function, sigmoid) else -1
            limit = limit.xreplace({function: Integer(1 if direction > 0 else low)})
        limits.append(factor(limit) if not limit.has(h) else Integer(0))
    return limits[0], limits[1]


@lru_cache(maxsize=256)
def _gradient(expression: Expr) -> Expr:
    split = _split(expression)
    if split is None:
        return stabilise(diff(expression, h))
    return split[0] - split[1]


@lru_cache(maxsize=256)
def _curvature(expression: Expr) -> Expr:
    split = _split(expression)
    return diff(_gradient(expression) if split is None else split[0], h)


@lru_cache(maxsize=256)
def _third(expression: Expr) -> Expr:
    third = diff(_curvature(expression), h)
    # Factoring pulls exponentials apart, and the parts overflow: only logistic losses are factored.
    return third if third.has(sympy.exp) or _split(expression) is None else _by_functions(third)


def _expand(expression: Expr, deep: bool = True) -> Expr:
    """Multiply products out, but leave exponentials and roots whole: split ones overflow when evaluated."""
    return expand(expression, deep=deep, power_exp=False, power_base=False, log=False)


def _tidy(expression: Expr) -> Expr:
    """Collect the terms by the curved functions in them, with factored coefficients."""
    functions = sorted(expression.atoms(*CURVED, step), key=sympy.default_sort_key)
    return collect(_expand(expression), [*functions, h], func=factor)


def _by_functions(expression: Expr) -> Expr:
    """Factor each group of terms that share the same functions."""
    groups: dict[frozenset, list[Expr]] = {}
    for term in Add.make_args(expression):
        groups.setdefault(frozenset(term.atoms(*CURVED)), []).append(term)
    return Add(*(factor(Add(*terms)) for terms in groups.values()))
