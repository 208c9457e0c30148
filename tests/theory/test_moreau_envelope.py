"""Derivative rules of the Moreau envelope, against the proximal point computed numerically."""

import mpmath
import pytest
import sympy

from theory.envelope import S1, S2, average_integrands, envelope_derivatives, f, g, gamma, proximal_derivatives
from theory.envelope import sigma as width
from theory.functions import MPMATH
from theory.losses import CrossEntropy, Loss
from theory.symbols import h, y

LOSSES = [CrossEntropy(0.1), Loss.from_expression("h**4/12 + softplus(h) - y*h")]


class Proximal:
    """f, S1, S2, and M as functions of (u, gamma) for y = 1, by root finding."""

    def __init__(self, loss: Loss) -> None:
        values = {y: 1, **dict(zip(loss.symbols, loss.values, strict=True))}

        def compiled(expression):
            return sympy.lambdify(h, expression.subs(values), modules=[MPMATH, "mpmath"])

        self.loss, self.slope = compiled(loss.expression), compiled(loss.gradient)
        self.second, self.third = compiled(loss.curvature), compiled(loss.third)

    def point(self, u, scale):
        return mpmath.findroot(lambda x: x - u + scale * self.slope(x), u / (1 + scale), tol=1e-25)

    def force(self, u, scale):
        return -self.slope(self.point(u, scale))

    def envelope(self, u, scale):
        x = self.point(u, scale)
        return self.loss(x) + (x - u) ** 2 / (2 * scale)

    def values(self, u, scale):
        x = self.point(u, scale)
        return {f: -self.slope(x), S1: self.second(x), S2: self.third(x), gamma: scale}


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_rules_against_numerical_derivatives(loss):
    proximal, u, scale = Proximal(loss), mpmath.mpf("0.7"), mpmath.mpf("1.3")
    with mpmath.workdps(30):
        measured = {
            "df_du": mpmath.diff(proximal.force, (u, scale), (1, 0)),
            "d2f_du2": mpmath.diff(proximal.force, (u, scale), (2, 0)),
            "df_dgamma": mpmath.diff(proximal.force, (u, scale), (0, 1)),
            "d2f_du_dgamma": mpmath.diff(proximal.force, (u, scale), (1, 1)),
            "dM_du": mpmath.diff(proximal.envelope, (u, scale), (1, 0)),
            "dM_dgamma": mpmath.diff(proximal.envelope, (u, scale), (0, 1)),
        }
    values = proximal.values(u, scale)
    rules = {**proximal_derivatives(), **envelope_derivatives()}
    assert set(rules) == set(measured)
    for name, rule in rules.items():
        assert float(rule.subs(values)) == pytest.approx(float(measured[name]), rel=1e-7), name


def test_average_integrands_are_derivatives_of_gaussian_averages():
    """E over g of each integrand equals the derivative of E over g of the first, by quadrature."""
    proximal = Proximal(LOSSES[0])
    integrands = average_integrands()
    assert list(integrands) == [n + e for n in ("f", "ff", "df") for e in ("", "_a", "_sigma", "_gamma")]
    nodes = [mpmath.mpf(k) / 4 for k in range(-26, 27)]
    weights = [mpmath.npdf(x) / 4 for x in nodes]
    functions = {
        name: sympy.lambdify((f, S1, S2, gamma, g, width), integrand, modules="mpmath")
        for name, integrand in integrands.items()
    }

    def average(name, a, sigma, scale):
        total = mpmath.mpf(0)
        for node, weight in zip(nodes, weights, strict=True):
            at = proximal.values(a + sigma * node, scale)
            total += weight * functions[name](at[f], at[S1], at[S2], scale, node, sigma)
        return total

    point, step = (0.4, 1.1, 0.8), 1e-4
    for name in ("f", "ff", "df"):
        for position, suffix in enumerate(("_a", "_sigma", "_gamma")):
            up = [v + step * (i == position) for i, v in enumerate(point)]
            down = [v - step * (i == position) for i, v in enumerate(point)]
            slope = (average(name, *up) - average(name, *down)) / (2 * step)
            assert float(average(name + suffix, *point)) == pytest.approx(float(slope), rel=1e-5, abs=1e-9)
