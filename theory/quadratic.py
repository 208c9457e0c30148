"""Losses of second degree in all logits: their force is linear, and stages on the same samples are functions of one matrix.

For a quadratic loss the force is, for each label,

    f_t = -dl_t/dh_t = target_t(y) - curvature_t h_t + sum_{k<t} pull_tk h_k .

Let curvatures and pulls not depend on the label, target_t = p_t + q_t e with the sign e of the label seen in training, and all
stages be trained on the same samples and weights.  With X = Y + u v^T/N (u the signs of the classes, Y of independent entries of
variance Delta/N), the matrix K = diag(curvature) - pull, and one row a stage, stationarity reads

    Lambda W = F X,    F = p 1^T + q e^T - K (W X^T + b 1^T),
    (Lambda W + K W Y^T Y) = D Y + mh v^T,    D = (p - K b) 1^T + q e^T - K m u^T,    m = W v/N,   mh = F u/N .

On an eigenvector of Y^T Y with eigenvalue x this is a triangular system of the stages, with the matrix Lambda + x K.  For N ->
infinity the vectors 1, e, u, v are in general position to Y, so that all order parameters are integrals over the law of
Marchenko and Pastur (1967).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import sympy
from sympy import Expr, Integer, Symbol, diff, expand, pi, simplify, sqrt, together

from theory.losses import Loss
from theory.parser import earlier_logits
from theory.symbols import alpha, delta, eta, h, ridge, y

eigenvalue = Symbol("x", positive=True)
"""x, eigenvalue of Y^T Y."""

spectral_edges: tuple[Expr, Expr] = (
    delta * (sqrt(alpha) - sqrt(eta)) ** 2,
    delta * (sqrt(alpha) + sqrt(eta)) ** 2,
)
"""Ends of the bulk of eigenvalues x > 0 of Y^T Y, Y of alpha N rows and eta N columns with entries of variance Delta/N."""

spectral_density: Expr = sqrt((spectral_edges[1] - eigenvalue) * (eigenvalue - spectral_edges[0])) / (
    2 * pi * delta * eigenvalue
)
"""Eigenvalues x > 0 per input and unit of x: together min(alpha, eta).  Of Y^T Y max(0, eta - alpha) more are 0, of Y Y^T
max(0, alpha - eta)."""


@dataclass(frozen=True)
class LinearForce:
    """f = target - curvature h + sum of pulls times the logits that the loss looks at, for one label.

    Attributes
    ----------
    target, curvature : Expr
    pulls : tuple of Expr
        In the order of ``loss.logits``.
    """

    target: Expr
    curvature: Expr
    pulls: tuple[Expr, ...]


@lru_cache(maxsize=256)
def linear_force(expression: Expr) -> tuple[LinearForce, LinearForce]:
    """The force of a quadratic loss, given by its formula, for the labels 0 and 1.

    Examples
    --------
    >>> from theory.losses import SquareDistillation
    >>> linear_force(SquareDistillation().expression)[1].pulls
    (beta*chi/2,)
    """
    logits = earlier_logits(expression)
    zero = dict.fromkeys((h, *logits), Integer(0))
    found = []
    for label in (0, 1):
        force = -diff(expression.subs(y, label), h)
        pulls = tuple(sympy.factor(diff(force, symbol)) for symbol in logits)
        found.append(LinearForce(sympy.factor(force.subs(zero)), sympy.factor(-diff(force, h)), pulls))
    return found[0], found[1]


@lru_cache(maxsize=256)
def least_value(expression: Expr) -> tuple[Expr, Expr]:
    """What is left of a quadratic loss beyond ``f^2/(2 curvature)``, for the labels 0 and 1: a function of earlier logits.

    Of a loss without curvature everything is left.

    Examples
    --------
    >>> from theory.losses import SquareDistillation
    >>> least_value(SquareDistillation().expression)
    (0, 0)
    """
    found = []
    for label in (0, 1):
        value = expression.subs(y, label)
        curvature = expand(diff(value, h, 2))
        if curvature == 0:
            found.append(value)
            continue
        # Without denominators, so that a square cancels term by term, whatever its parameters.
        found.append(expand(2 * curvature * value - diff(value, h) ** 2) / (2 * curvature))
    return found[0], found[1]


@dataclass(frozen=True)
class SelfDistillationLimit:
    """The fixed point of stages that repeat: a square loss (h - target)^2/2 with another ridge.

    Attributes
    ----------
    targets : tuple of Expr
        For the labels 0 and 1.
    ridge : Expr
        In terms of the stage's ridge.
    gain : Expr
        Factor on the logits of large directions at every stage: the fixed point is reached if its absolute value is below 1.
    """

    targets: tuple[Expr, Expr]
    ridge: Expr
    gain: Expr


def self_distillation_limit(loss: Loss) -> SelfDistillationLimit:
    """Where (Lambda + x K) W = ... ends if every stage looks at the one before alone: w_t = w_{t-1} in its own stationarity.

    Raises
    ------
    ValueError
        If the loss is not quadratic, looks at another number of earlier logits than one, or its curvature depends on the label.

    Examples
    --------
    >>> from theory.losses import SquareDistillation
    >>> limit = self_distillation_limit(SquareDistillation())
    >>> limit.gain, limit.ridge
    (beta*chi, -2*lambda/(beta*chi - 1))
    """
    if not loss.is_quadratic:
        raise ValueError(f"{loss.name} is not of second degree in all logits")
    forces = linear_force(loss.expression)
    if len(loss.logits) != 1:
        raise ValueError(f"{loss.name} must look at one earlier logit, it looks at {len(loss.logits)}")
    negative, positive = forces
    if any(simplify(a - b) != 0 for a, b in zip((negative.curvature, *negative.pulls), (positive.curvature, *positive.pulls),
                                                strict=True)):  # fmt: skip
        raise ValueError(f"the curvature of {loss.name} must not depend on the label")
    left = positive.curvature - positive.pulls[0]
    targets = tuple(sympy.factor(together(force.target / left)) for force in forces)
    return SelfDistillationLimit(
        targets, sympy.factor(together(ridge / left)), sympy.factor(positive.pulls[0] / positive.curvature)
    )
