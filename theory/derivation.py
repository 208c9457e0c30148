"""The replica derivation told as a list of steps, with the equations computed by ``theory.replica``."""

from __future__ import annotations

from dataclasses import dataclass

from sympy import Add, Eq, Expr, IndexedBase, Sum, Symbol, symbols

from theory.notation import force, proximal_field
from theory.potential import GaussianRidgePrior, QuadraticPrior, coupling, entropic_potential
from theory.replica import (
    beta,
    cavity_shift,
    coupling_limit,
    entropic_action,
    entropic_limit,
    inverse_temperature,
    laplace,
    n,
)
from theory.symbols import (
    delta,
    field,
    magnetization_hat,
    overlap,
    overlap_hat,
    response,
    response_hat,
    ridge,
)


@dataclass(frozen=True)
class Step:
    """One step of the derivation: a title, a sentence or two, lines of code, and equations, whose first one has a label.

    The text is marked up as :mod:`theory.typesetting` says.
    """

    title: str
    text: str
    equations: tuple[Expr, ...] = ()
    label: str = ""
    code: tuple[str, ...] = ()


def derivation(stages: int, prior: QuadraticPrior = GaussianRidgePrior) -> list[Step]:
    """The replica calculation of stage ``stages``, step by step, with the results computed here."""
    t = stages
    steps = [_replicated_action(t), _symmetric_ansatz(t)]
    legendre = coupling_limit(t)
    steps.append(
        Step(
            "Legendre terms",
            "Order parameters and conjugates meet in terms linear in `n`.  Divided by `n beta` they become, for "
            + ("`n -> 0`, `n~ -> 0`" if t > 1 else "`n -> 0`")
            + " and `beta -> infinity`,",
            (Eq(Symbol("Phi_coupling"), legendre.zero_temperature, evaluate=False),),
            "coupling",
        )
    )
    steps += _entropic_steps(t, prior)
    steps += _energetic_steps(t)
    steps.append(
        Step(
            "Potential",
            "The stage extremises the sum of the three parts @{coupling}, @{entropic} and @{envelope}.",
            (
                Eq(
                    Symbol(f"Phi_{t}"),
                    coupling(t) + Symbol("Psi_w") + Symbol("Psi_h"),
                    evaluate=False,
                ),
            ),
            "potential",
        )
    )
    return steps


def _replicated_action(t: int) -> Step:
    a, b, c = symbols("a b c", integer=True)
    w, teacher, qh, sh = IndexedBase("w"), IndexedBase("w~"), IndexedBase("qh"), IndexedBase("Sh")
    mh, v, lam = Symbol("mh"), Symbol("v"), ridge
    action = -beta * lam / 2 * Sum(w[a] ** 2, (a, 1, n)) + mh * v * Sum(w[a], (a, 1, n))
    action += Sum(qh[a, b] * w[a] * w[b], (a, 1, n), (b, 1, n)) / 2
    text = (
        f"Stage {t} is replicated `n` times.  Averaging over the inputs leaves, per coordinate, the overlaps "
        "with `v` and between replicas; their conjugates couple the replicas in the action"
    )
    if t > 1:
        number = Symbol("n~")
        action += Sum(sh[a, c] * w[a] * teacher[c], (a, 1, n), (c, 1, number))
        text += (
            ".  An earlier stage is drawn from its own Gibbs measure, written with `n~` replicas: replica "
            "`c = 1` is the teacher, the other `n~ - 1` are its normalisation, `n~ -> 0`"
        )
    return Step("Replicated action of one weight", text + ".", (Eq(Symbol("A"), action, evaluate=False),), "action")


def _symmetric_ansatz(t: int) -> Step:
    v, vh = response(t, t), response_hat(t, t)
    q, qh = overlap(t, t), overlap_hat(t, t)
    equations = [
        Eq(Symbol("q_aa"), q + v / beta, evaluate=False),
        Eq(Symbol("q_ab"), q, evaluate=False),
        Eq(Symbol("qh_aa"), beta**2 * qh - beta * vh, evaluate=False),
        Eq(Symbol("qh_ab"), beta**2 * qh, evaluate=False),
        Eq(Symbol("mh_a"), beta * magnetization_hat(t), evaluate=False),
    ]
    text = "Replicas of the stage are equivalent; fluctuations between them are of order `1/beta`."
    if t > 1:
        text += "  The selected replica of an earlier stage differs from the others by the response."
    for s in range(1, t):
        beta_s = inverse_temperature(s)
        mixed = beta * beta_s * overlap_hat(t, s)
        equations += [
            Eq(Symbol(f"S_a1^({s})"), overlap(t, s) + response(t, s) / beta_s, evaluate=False),
            Eq(Symbol(f"S_ac^({s})"), overlap(t, s), evaluate=False),
            Eq(Symbol(f"Sh_a1^({s})"), mixed - beta * response_hat(t, s), evaluate=False),
            Eq(Symbol(f"Sh_ac^({s})"), mixed, evaluate=False),
        ]
    return Step("Replica-symmetric ansatz and zero-temperature scaling", text, tuple(equations), "ansatz")


def _entropic_steps(t: int, prior: QuadraticPrior) -> list[Step]:
    action = entropic_action(t, prior)
    steps = [
        Step(
            "Entropic part: Gaussian integral",
            "With @{ansatz} the action @{action} is quadratic in `v`"
            + (", in the selected and the other replicas of the earlier stages," if t > 1 else "")
            + " and in the `n` weights.  Its matrix of second derivatives acts on vectors that are constant in "
            "each of these classes as",
            (Eq(Symbol("K"), action.quotient(), evaluate=False),),
            "matrix",
        )
    ]
    if t <= 2:
        # Beyond two stages the closed form in the conjugates fills pages; the form below says the same.
        result = entropic_limit(t, prior)
        if t == 1:
            steps.append(
                Step(
                    "Entropic part: n -> 0 at finite temperature",
                    "`eta/(n beta)` times `-1/2 log det K` of @{matrix}, for `n -> 0`.",
                    (Eq(Symbol("Psi_w"), result.finite_temperature, evaluate=False),),
                    "finite",
                )
            )
        steps.append(
            Step(
                "Entropic part: zero temperature",
                "From @{matrix} for `n -> 0`"
                + (", `n~ -> 0`, `beta_1 -> infinity`" if t > 1 else "")
                + ", `beta -> infinity`.",
                (Eq(Symbol("Psi_w"), result.zero_temperature, evaluate=False),),
                "zero",
            )
        )
    steps.append(
        Step(
            "Entropic part in the moments of the earlier weights",
            "The same in terms of `mu_s = E[w_s v]`, `B_sr = E[w_s w_r]` and `G_sk = E[dw_s/dxi_k]`."
            if t > 1
            else "This is the mean energy of one weight in its effective field.",
            (Eq(Symbol("Psi_w"), entropic_potential(t, prior), evaluate=False),),
            "entropic",
        )
    )
    return steps


def _energetic_steps(t: int) -> list[Step]:
    step = laplace()
    steps = [
        Step(
            "Energetic part: one replica",
            "Given the label and the cavity fields, the replicated logits are independent with variance "
            "`Delta V/beta` around `u`.  For `n -> 0` each sample contributes",
            (step.integral,),
            "integral",
        ),
        Step(
            "Energetic part: Laplace's method",
            "The integral @{integral} concentrates at the proximal point, with a correction of order `1/beta`:",
            (step.expansion, step.condition),
            "laplace",
        ),
        Step(
            "Energetic part: Moreau envelope",
            "For `beta -> infinity` minus the Moreau envelope `M(u, Delta V)` is left of @{laplace}, and `Psi_h = -alpha E[M]`.",
            (Eq(-Symbol("M"), step.limit, evaluate=False),),
            "envelope",
        ),
    ]
    if t > 1:
        field_shift = cavity_shift()
        steps.append(
            Step(
                "Energetic part: the field of the student",
                "Beyond the common fields, the student's logit is correlated with the selected teacher "
                "replica only.  Conditioning on that one shifts it by `r (h~ - omega~)` and changes "
                "its variance by `c`, which vanishes:",
                (
                    Eq(Symbol("r"), field_shift.regression, evaluate=False),
                    Eq(Symbol("c"), field_shift.change, evaluate=False),
                ),
                "student",
            )
        )
        shift = Add(*(delta * response(t, s) * force(s) for s in range(1, t)))
        steps.append(
            Step(
                "Energetic part: cavity shift",
                "The teacher's logit sits at its proximal point, `Delta V_11 f_1` from its cavity field, so with @{student} "
                "the student feels a shifted field; every earlier stage adds its term.",
                (
                    Eq(proximal_field(2) - field(2), field_shift.shift, evaluate=False),
                    Eq(proximal_field(t), field(t) + shift, evaluate=False),
                ),
                "shift",
            )
        )
    return steps
