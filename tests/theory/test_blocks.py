"""Equations in blocks: gradients of the potential component by component, one logit as a special case, the replica step."""

from __future__ import annotations

import numpy as np
import pytest
from sympy import (
    Expr,
    Float,
    ImmutableMatrix,
    Inverse,
    MatrixExpr,
    MatrixSymbol,
    Symbol,
    Trace,
    Transpose,
    lambdify,
    simplify,
)
from test_theory_command import show  # noqa: F401

from theory import blocks, potential
from theory.symbols import eta, ridge

D, K = 2, 3
RIDGE, ETA = 0.3, 0.7


def numeric(expression: MatrixExpr, values: dict[str, np.ndarray]) -> np.ndarray:
    """An expression of blocks with numbers for them."""
    sizes = {blocks.d: D, blocks.classes: K}
    symbols = sorted(expression.atoms(MatrixSymbol), key=str)
    sized = [MatrixSymbol(s.name, *(n.subs(sizes) for n in s.shape)) for s in symbols]
    found = expression.subs({ridge: Float(RIDGE), eta: Float(ETA), **sizes}).xreplace(
        dict(zip(symbols, sized, strict=True))
    )
    return lambdify(sized, found, "numpy")(*(values[s.name] for s in symbols))


def numeric_trace(expression: Expr, values: dict[str, np.ndarray]) -> float:
    """Of a number times a trace."""
    (trace,) = expression.atoms(Trace)
    return float((expression / trace).subs(eta, ETA)) * float(np.trace(numeric(trace.arg, values)))


def random_values(t: int, seed: int = 1) -> dict[str, np.ndarray]:
    """Blocks of a stage and moments of the earlier ones; what is symmetric is so."""
    generator = np.random.default_rng(seed)
    found = {}
    names = [blocks.gram, blocks.magnetization(t), blocks.magnetization_hat(t)]
    names += [
        f(t, s)
        for f in (blocks.overlap, blocks.overlap_hat, blocks.response, blocks.response_hat)
        for s in range(1, t + 1)
    ]
    names += [blocks.alignment(s) for s in range(1, t)]
    names += [f(s, r) for f in (blocks.covariance, blocks.propagator) for s in range(1, t) for r in range(1, s + 1)]
    for block in names:
        shape = [D if n == blocks.d else K for n in block.shape]
        value = generator.standard_normal(shape)
        if block.name == "Gamma" or (block.name[-1] == block.name[-2] and block.name[0] in "QVB"):
            value = value @ value.T
        found[block.name] = value
    return found


@pytest.mark.parametrize("t", [1, 2, 3])
def test_order_parameters_make_the_potential_stationary(t: int) -> None:
    """d Phi/d(conjugate) by central differences, every component; symmetric blocks are moved symmetrically."""
    values = random_values(t)
    for name, expression in blocks.prior_equations(t).items():
        values[name] = numeric(expression, values)
    phi = [blocks.entropic_potential(t), blocks.coupling(t)]
    step = 1e-5
    for _, conjugate in blocks.conjugate_pairs(t):
        name = conjugate.name
        symmetric = name[-1] == name[-2] and "_" in name[:-2]
        for i, j in np.ndindex(values[name].shape):
            move = np.zeros(values[name].shape)
            move[i, j] += step
            if symmetric:
                move[j, i] += step
            ends = [
                sum(numeric_trace(part, values | {name: values[name] + sign * move}) for part in phi)
                for sign in (1, -1)
            ]
            assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(0.0, abs=2e-7), (name, i, j)


@pytest.mark.parametrize("t", [1, 2, 3])
def test_one_logit_is_the_binary_prior(t: int) -> None:
    """With 1 x 1 blocks and Gamma = 1 the equations are those of ``theory.potential``."""

    def scalar(expression: MatrixExpr):
        found = expression.subs({blocks.d: 1, blocks.classes: 1})
        symbols = found.atoms(MatrixSymbol)
        numbers = {s: ImmutableMatrix([[1 if s.name == "Gamma" else Symbol(s.name, real=True)]]) for s in symbols}
        return found.subs(numbers).doit().as_explicit()[0]

    expected = potential.prior_equations(t).outputs
    for name, expression in blocks.prior_equations(t).items():
        assert simplify(scalar(expression) - expected[name]) == 0, name
    moments = potential.conditional_moments(t).outputs
    for k in range(1, t + 1):
        name = f"G_{t}{k}"
        assert simplify(scalar(blocks.propagators(t)[name]) - moments[name]) == 0, name


def test_moments_follow_from_the_propagators() -> None:
    """mu_2 = a_2 Gamma and G_21 are what differentiating the potential gives: m_2 = eta mu_2, V_21 = eta G_21."""
    values = random_values(2)
    found = blocks.propagators(2)
    values["a_1"] = np.linalg.solve(values["Gamma"], values["mu_1"].T).T
    m, v = (numeric(blocks.prior_equations(2)[name], values) for name in ("m_2", "V_21"))
    assert m == pytest.approx(ETA * numeric(found["a_2"], values) @ values["Gamma"])
    assert v == pytest.approx(ETA * numeric(found["G_21"], values))


def test_the_replicated_determinant() -> None:
    """Of n replicas of d weights, dense, against the two determinants that it falls apart into; and its limit n -> 0."""
    generator = np.random.default_rng(3)
    beta, c, a = 1.7, 0.05 * np.eye(D), generator.standard_normal((D, D))
    c, curvature = c + 0.02 * a @ a.T, np.eye(D) + 0.2 * (a + a.T) @ (a + a.T)

    def log_det(n: float) -> float:
        together = np.linalg.slogdet(beta * curvature - n * beta**2 * c)[1]
        return (n - 1) * np.linalg.slogdet(beta * curvature)[1] + together

    for n in (1, 2, 3):
        dense = np.kron(np.eye(n), beta * curvature) - beta**2 * np.kron(np.ones((n, n)), c)
        assert np.linalg.slogdet(dense)[1] == pytest.approx(log_det(n))
    small = 1e-6
    slope = -(log_det(small) - log_det(-small)) / (4 * small * beta)
    own = -np.linalg.slogdet(beta * curvature)[1] / (2 * beta)  # vanishes for beta -> infinity
    assert slope - own == pytest.approx(np.trace(np.linalg.solve(curvature, c)) / 2)


def test_the_envelope_in_blocks() -> None:
    """dM/dV = -(Delta/2) f f^T."""
    f = MatrixSymbol("f", blocks.d, 1)
    assert (blocks.envelope_slope() + Symbol("Delta", positive=True) / 2 * f * Transpose(f)).doit().is_ZeroMatrix


def test_every_symbol_of_the_potential_is_a_block() -> None:
    assert isinstance(blocks.coupling(2), Trace)
    assert blocks.entropic_potential(2).has(Inverse)


def test_the_print(show) -> None:  # noqa: F811
    code, text, _ = show("--classes", "3")
    assert code == 0
    for line in (
        "Q_11 = eta*(lambda*I + Vh_11)**(-1)*(Qh_11 + mh_1*Gamma*mh_1.T)*(lambda*I + Vh_11)**(-1)",
        "V_21 = (-eta)*(lambda*I + Vh_22)**(-1)*Vh_21*G_11",
        "S(h_2) = (chi/T)*p(h_2/T) + (1 - chi)*p(h_2)",
        "Vh_21 = (-alpha)*sum_c rho_c Delta_c E_c[df_2/domega_1]",
        "3 logits, or 2 coordinates",
    ):
        assert line in text, line
    code, text, _ = show("--classes", "4", "--stages", "3", "--latex")
    assert code == 0
    assert r"\end{document}" in text
    for line in (
        r"\hat{V}_{32} &= - \alpha  \sum_{c} \rho_{c} \Delta_{c} \mathbb{E}_{c}\left[\frac{\partial f_{3}}{\partial \omega_{2}}",
        r"\Psi_{w} &= \frac{\eta \operatorname{tr}\left(\left(\lambda \mathbb{I} + \hat{V}_{33}\right)^{-1} C \right)}{2}",
        r"\Bigr] \left(\lambda \mathbb{I} + \hat{V}_{33}\right)^{-1} \label{3.prior.4}",  # the order of a broken product
    ):
        assert line in text, line
    assert "Vh" not in text
    code, _, error = show("--classes", "3", "--loss", "linear")
    assert code == 2
    assert "no form for more" in error
