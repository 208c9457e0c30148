"""Losses are proved finite and convex, refused with the place, or searched: the proof, its bounds and its search."""

import random
import time
import warnings

import pytest
import sympy
from mpmath import mpf, workdps
from sympy import Rational

from theory.composition import is_convex
from theory.convexity import ConvexityWarning, examine
from theory.enclosure import Enclosure, UnknownFunctionError
from theory.functions import MATH, MPMATH, sigmoid, softplus
from theory.intervals import LINE, add, around, invert, multiply
from theory.losses import Loss
from theory.positivity import nowhere_negative
from theory.roots import sign_by_roots
from theory.symbols import TEACHER, h, logit

PROVED = [
    ("log(1 + exp(-s*h))", {}),
    ("exp(-20*s*h)", {}),
    ("exp(-s*h/0.01)", {}),
    ("exp(exp(h/3))", {}),
    ("a*log(1 + exp((1 - s*h)/a))", {"a": 0.4}),
    ("d**2*(sqrt(1 + ((h - h_teacher)/d)**2) - 1)", {"d": 0.5}),
    ("sigmoid(-s*h_teacher)**k*softplus(-s*h)", {"k": 1.0}),
    ("(1 - c)*softplus(-s*h) + c*a*softplus((s*h_teacher - s*h)/a)", {"c": 0.8, "a": 0.2}),
    ("exp(-s*h) + (h - h_1)**2/2 + (h - h_teacher)**8", {}),
    ("h**2/sqrt(1 + exp(-h_1))", {}),
    # Polynomials that are not convex term by term, some with l'' = 0 at a place.
    ("h**8/56 - h**6/30 + h**4/12", {}),
    ("h**8 - 2*h**7 + 3*h**6", {}),
    ("h**4 - 0.4*h**3 + 0.06*h**2", {}),
    ("h**4 - 4*h**3 + c*h**2", {"c": 6}),
    ("(h**2 - 1)**2 + b*h**2", {"b": 2}),
    ("(h**2 + h*h_teacher + h_teacher**2)**2", {}),
    ("a*(h - b)**8 + c*(h - d)**4", {"a": 0.1, "b": 1.3, "c": 0.2, "d": -0.7}),
    # Exponentials that cancel, roots and logarithms.
    ("cosh(h) - h**2/2", {}),
    ("cosh(a*h) - b*h**2", {"a": 1.5, "b": 1.0}),
    ("2*softplus(h) - 0.5*softplus(2*h)", {}),
    ("log(1 + exp(h) + exp(2*h)) - y*h", {}),
    ("log(exp(h) + exp(h_teacher) + exp(-h - h_1))", {}),
    ("log(cosh(h - h_teacher))", {}),
    ("sqrt(h**2 + h*h_1 + h_1**2 + 1)", {}),
    ("(1 + (h - s)**2)**0.51", {}),
    ("h*atan(h/w)", {"w": 0.1}),
    ("h*erf(h) + exp(-h**2)/sqrt(pi)", {}),
    ("(1 + exp(h))*log(1 + exp(h))", {}),
    ("log(1 + exp(-s*h))**2", {}),
    # Functions of functions.
    ("softplus(exp(h) - h_1)", {}),
    ("softplus(h**2 - h_teacher)", {}),
    ("sqrt(1 + softplus(h)**2)", {}),
    ("exp(softplus(-s*h)) - 1", {}),
    # Sums of convex functions that share no functions, and whose parts cancel far out.
    ("sqrt(1 + (h/2 - s)**4) + (3*h + 1)*erf(3*h + 1) + exp(-(3*h + 1)**2)/sqrt(pi)", {}),
    ("softplus(softplus(-3*s*h)) + (1 + (h - 2*y)**2)**(3/4) + 2*log(cosh(3*h + 1))", {}),
    # Not convex term by term, by a margin that only subdivision shows.
    ("h**2/2 + exp(-h**2/2)", {}),
    ("h**2/2 - 0.9*cosh(0.5*h)/cosh(h)**2", {}),
    ("sigmoid(-s*h)**k*softplus(-s*h) + 0.2*h**2", {"k": 2.0}),
    ("atan(h)*h*2 + log(1 + exp(h))", {}),
    ("h**2/2 - 0.3*exp(-(h_1 - 500)**2)*exp(-(h + 800)**2)", {}),
    ("h**2*(1.01 - exp(-(h_1*h_2 - 1)**2))", {}),
    ("step(h_1)*h**2 - step(h_1 - 1)*h**2*0.9", {}),
    ("h**2*(1 - 0.1*(step(h_1) + step(h_1 - 1) + step(h_1 - 2) + step(h_2) + step(h_2 - 1) + step(h_2 - 2)))", {}),
    ("softplus(h) + 1e-3*sigmoid(h)", {}),
]

REFUSED = [
    # Dips: narrow, far away, in a teacher's logit, in several at once.
    ("h**2/2 - 0.01*exp(-((h - 0.75)/0.05)**2) - s*h", {}, "-2.57 at h=0.811"),
    ("h**2/2 - 1e-8*exp(-((h - 1234.5)/0.00005)**2)", {}, "-2.57 at h=1234.5"),
    ("h**2/2 - 1.2*w**2*exp(-((h - c)/w)**2)", {"w": 1e-4, "c": -3777.7}, "-0.071 at h=-3777.7"),
    ("h**2/2 - 0.01*exp(-((h - h_teacher - 3)/0.05)**2)", {}, "-2.57 at h=(3.061|2.938)"),
    ("h**2*(1 - 1.5*exp(-((h_teacher - 2000)/0.01)**2))", {}, "-1 at h=0, y=0, h_teacher=2000"),
    ("h**2/2 - 0.003*exp(-((h - 777)/0.05)**2)*exp(-((h_1 + 333)/0.01)**2)", {}, "-0.071 at h=77.*h_1=-333"),
    ("h**2/2 - 0.5e-6*h_1**2*exp(-((h - 1000)/0.5)**2)", {}, "at h=999.*h_1="),
    ("y*h**2 + (1 - y)*(h**2/2 - 4e-6*exp(-((h - 50)/0.001)**2))", {}, "y=0"),
    ("softplus(h) - 1e-3*exp(-(h - 20)**2)", {}, "-0.000893 at h=18.7"),
    ("h**2/2 + 0.1*tanh((h - 31)/0.1)", {}, "at h=31.0"),
    ("h**2/2*(1 - 1.1*sigmoid(h_1 - 2000))", {}, "-0.1 at"),
    # Just not convex, for these values of the parameters.
    ("h**4 - 4*h**3 + c*h**2", {"c": 5.99}, "-0.02 at h=1"),
    ("cosh(a*h) - b*h**2", {"a": 1.4, "b": 1.0}, "-0.04 at h="),
    ("h**8/56 - h**6/30 + h**4/120", {}, "-0.084"),
    ("(1 + h**2)**0.49", {}, "-0.001 at h=-?12.2"),
    ("a*softplus(h) + b*softplus(2*h) - c*softplus(3*h)", {"a": 1, "b": 2, "c": 1.2}, "-0.45 at"),
    ("sigmoid(-s*h)**k*softplus(-s*h)", {"k": 2.0}, "-0.047"),
    ("exp(-s*h) - 0.001*h**2", {}, "at h="),
    ("h**2*(h_1 - 1)**2 - 0.0001*h**2", {}, "-0.0002 at h=0, y=0, h_1=(1|0.999)"),
    ("exp(h*h_1) - 0.1*h**2", {}, "-0.2"),
    ("step(h_1)*h**2 - step(h_1 - 1)*h**2*1.1", {}, "-0.2 at h=0, y=0, h_1="),
    ("h**3", {}, "-6 at h=-1"),
]

NOT_FINITE = [
    ("log(y)*h + h**2", "not finite at y=0"),
    ("h**2/(1 - y)", "not finite at y=1"),
    ("h**2/(a - y)", "not finite at y=1"),
    ("log(y - 1)*h**2", "not real"),
    ("(h - log(h_teacher))**2/2", r"log\(h_teacher\) is infinite or undefined at h=0, y=0, h_teacher=-"),
    ("h**2 + h*sqrt(h_1)", r"sqrt\(h_1\) is undefined at h=0, y=0, h_1=-"),
    ("h**2 + h/(h_1 - 0.123)", "infinite or undefined at"),
    ("h**2 + h/(h_1 - 1234.567)**2", "infinite or undefined at"),
    ("h**2 + h*log((h_1 - 1/3)**2)", "infinite or undefined at h=0, y=0, h_1=0.33"),
    ("h**2 + h*log(1 - 1.5*sigmoid(h_1))", "infinite or undefined at"),
    ("h**2/(h_1**2 - 2)", "infinite or undefined at"),
    ("h**2 + h/step(h_1)", "not finite at h=0, y=0, h_1=-"),
    ("h**2*(1 + 1/(step(h_1) - 0.5))", "where a step jumps"),
    ("1/(h - s)", "infinite or undefined at"),
    ("(h - 3)**2 + h**1.5", "is undefined at h=-1"),
    ("exp(1000)*h**2", "overflow"),
    ("exp(exp(exp(exp(3*h))))", "overflow"),
]


def read(formula, values):
    """The loss, with any warning as an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return Loss.from_expression(formula, values)


@pytest.mark.parametrize(("formula", "values"), PROVED, ids=lambda item: item if isinstance(item, str) else "")
def test_convex_losses_are_accepted_without_a_word(formula, values):
    assert read(formula, values).parameters == values


@pytest.mark.parametrize(
    ("formula", "values", "place"), REFUSED, ids=lambda item: item if isinstance(item, str) else ""
)
def test_concave_places_are_found(formula, values, place):
    with pytest.raises(ValueError, match=f"not convex: its second derivative is .*{place}"):
        read(formula, values)


@pytest.mark.parametrize(("formula", "place"), NOT_FINITE)
def test_losses_that_are_not_finite_are_refused(formula, place):
    values = {"a": 1} if "a -" in formula else {}
    with pytest.raises(ValueError, match=place):
        read(formula, values)


def test_a_dip_is_found_wherever_it_is_and_its_size_decides():
    """l'' = 1 + a (2 - 4u^2) exp(-u^2), u = (h - c)/w, is lowest, 1 - 4 exp(-3/2) a, at u^2 = 3/2."""
    source = random.Random(3)
    for _ in range(6):
        centre, width = source.uniform(-1, 1) * 10 ** source.uniform(0, 3.7), 10 ** source.uniform(-4, 1)
        seen = source.choice(["h", "(h - 2*h_1)"])
        formula = f"{seen}**2/2 - a*w**2*exp(-(({seen} - c)/w)**2)"
        fine, deep = ({"a": a / 0.892520640593719, "w": width, "c": centre} for a in (0.98, 1.02))
        loss = read(formula, fine)
        with pytest.raises(ValueError, match=r"second derivative is -0.02") as caught:
            loss.with_parameters(**deep)
        place = float(str(caught.value).split("h=")[1].split(",")[0])
        assert abs(abs(place - centre) / width - 1.5**0.5) < 0.2 + 1e-5 * abs(centre) / width


def test_what_can_be_neither_proved_nor_refuted_is_a_warning():
    """The probit loss underflows where its curvature is smallest."""
    with pytest.warns(ConvexityWarning, match="'probit' is not proved"):
        loss = Loss.from_expression("-log(erfc(-s*h)/2)", name="probit")
    assert not examine(loss.expression, loss.symbols, loss.values).fault
    unknown = h**2 + sympy.besselj(0, h) / 10
    with pytest.warns(ConvexityWarning, match="no bounds are known"):
        Loss.from_expression(unknown)


def test_rounding_is_no_violation():
    """Parameters that should cancel, and a double root that is not quite one."""
    assert read("softplus(h) + (a - b)*h**2", {"a": 0.3, "b": 0.1 + 0.2}).values[1] > 0.3
    third = f"{1 / 3:.16f}"
    assert read(f"h**4/12 - {third}*h**3/3 + {third}**2*h**2/2 - 1e-17*h**2", {})


def test_a_check_with_other_parameter_values_is_quick():
    """Bounds are prepared once; so that a sweep over a parameter of a user's loss is not a sweep of proofs."""
    for formula, values, key in (
        ("a*log(1 + exp((1 - s*h)/a))", {"a": 0.4}, "a"),
        ("d**2*(sqrt(1 + ((h - h_teacher)/d)**2) - 1)", {"d": 0.5}, "d"),
        ("sigmoid(-s*h)**k*softplus(-s*h) + 0.2*h**2", {"k": 2.0}, "k"),
        ("h**2/2 - 0.5*k*exp(-(h - 5)**2)", {"k": 1.0}, "k"),
    ):
        loss = read(formula, values)
        times = []
        for k in range(10):
            start = time.process_time()
            loss.with_parameters(**{key: values[key] * (1 + 1e-3 * (k + 1))})
            times.append(time.process_time() - start)
        assert sorted(times)[5] < 0.1, formula  # 0.2 to 6 ms on the machine it was written on


# The parts of the proof.


@pytest.mark.parametrize(
    "expression",
    [
        h**3 - h * TEACHER + 1,
        sigmoid(h) * (1 - sigmoid(h)) * TEACHER,
        sympy.sqrt(1 + (h - TEACHER) ** 2),
        sympy.log(1 + sympy.exp(h) + h**2),
        sympy.tanh(h * TEACHER) + sympy.erf(h) + sympy.erfc(TEACHER),
        sympy.cosh(h) - sympy.sinh(TEACHER) + sympy.asinh(h * TEACHER) ** 3,
        sympy.atan(h) / (1 + TEACHER**2) - (softplus(h) - h),
        (h - TEACHER) ** -2 - 1 / (2 + sympy.sin(h)),
        (2 + sympy.cos(h)) ** Rational(-7, 3) + sympy.pi * h - sympy.log(2) * TEACHER,
        sympy.exp(-h) ** TEACHER,
    ],
)
def test_bounds_hold_the_values(expression):
    """Boxes of all sizes, down to rounding, against values with 60 digits."""
    source = random.Random(0)
    enclosure = Enclosure(expression, (h, TEACHER))
    function = sympy.lambdify((h, TEACHER), expression, modules=[MPMATH, "mpmath"])
    with workdps(60):
        for _ in range(150):
            scale = 10 ** source.uniform(-2, 2)
            centres = [source.uniform(-scale, scale) for _ in range(2)]
            box = [(c - w, c + w) for c in centres for w in [10 ** source.uniform(-16, 1)]]
            lower, upper = enclosure.bounds(box)
            place = [mpf(source.uniform(*side)) for side in box]
            assert lower <= function(*place) <= upper, (box, place)


def test_interval_arithmetic_at_the_ends():
    assert multiply((0.0, 0.0), LINE) == (0.0, 0.0)
    assert add((1.0, 1.0), (-1.0, 0.0)) == (0.0, 1.0)
    assert multiply((0.0, 1e-300), (0.0, 1e-300))[0] == 0.0 < multiply((0.0, 1e-300), (0.0, 1e-300))[1]
    assert invert((0.0, 2.0)) == (pytest.approx(0.5), float("inf"))
    assert invert((-1.0, 1.0)) == LINE
    lower, upper = around(Rational(1, 10))
    assert lower < upper
    assert Rational(lower) < Rational(1, 10) < Rational(upper)
    assert around(Rational(3, 8)) == (0.375, 0.375)
    assert Enclosure(1 - sigmoid(h), (h,)).bounds([(800.0, 900.0)])[0] >= 0
    assert Enclosure(softplus(h) - h, (h,)).bounds([LINE]) == (0.0, float("inf"))
    with pytest.raises(UnknownFunctionError):
        Enclosure(sympy.zeta(h), (h,))


def test_signs_by_roots_against_planted_roots():
    """Products of (E - r)^m in E = exp(h/k): negative somewhere, unless all powers are even and the sign is +."""
    source = random.Random(1)
    for _ in range(25):
        roots = [Rational(source.randint(1, 50), source.choice([1, 7, 10**9])) for _ in range(source.randint(1, 3))]
        powers = [source.choice([1, 2]) for _ in roots]
        sign = source.choice([1, -1])
        base = sympy.exp(h / source.choice([1, 2, 3]))
        product = sign * sympy.Mul(*((base - root) ** power for root, power in zip(roots, powers, strict=True)))
        odd = {root for root in roots if sum(p for r, p in zip(roots, powers, strict=True) if r == root) % 2}
        found = sign_by_roots(sympy.expand(product))
        assert (found is True) == (sign == 1 and not odd)
        if found is not True:
            with workdps(60):
                assert sympy.lambdify(h, product, "mpmath")(mpf(found[h])) < 0


def test_signs_of_expressions():
    t = logit(1)
    assert nowhere_negative(h**4 - 2 * h**2 + 1).proved
    assert not nowhere_negative(h**4 - 2 * h**2 + 1, strictly=True).proved
    assert nowhere_negative(3 * h**2 - 2 * h * t + t**2).proved
    verdict = nowhere_negative(h**2 - 3 * h * t + t**2)
    assert verdict.value < 0
    assert verdict.place[h] * verdict.place[t] > 0
    assert nowhere_negative(t, ((t - 1, True),)).proved
    assert nowhere_negative(t, ((t + 1, True),)).place[t] < 0
    assert not nowhere_negative(sympy.exp(-(h**2)) * (2 - h), budget=0).proved


def test_rules_for_sums_and_compositions():
    assert is_convex(sympy.exp(softplus(h)) + sympy.sqrt(1 + softplus(h) ** 2) - 3 * h)
    assert is_convex(softplus(softplus(h**2)))
    assert not is_convex(sympy.sqrt(1 + softplus(h)))
    assert not is_convex(-softplus(h))
    assert not is_convex(sympy.log(1 + h**2))


def test_proofs_agree_with_dense_sampling():
    """Random sums of functions: where sampling finds l'' < 0 none is proved, and a refused one is negative there."""
    source = random.Random(7)
    parts = [
        "softplus({a}*h + {b})",
        "exp(-({a}*h - {b})**2)",
        "sqrt(1 + ({a}*h - {b})**2)",
        "tanh({a}*h - {b})",
        "(h - {b})**4/10",
        "h**2/2",
        "log(2 + ({a}*h - {b})**2)",
        "h*atan({a}*h - {b})",
    ]
    proved = refused = 0
    for _ in range(16):
        terms = [
            f"{source.choice([1, 1, 0.3, -0.2])}*"
            + source.choice(parts).format(a=round(source.uniform(0.3, 3), 2), b=round(source.uniform(-3, 3), 2))
            for _ in range(3)
        ]
        formula = " + ".join(terms)
        second = sympy.diff(sympy.sympify(formula, {"h": h, "softplus": softplus}), h, 2)
        curvature = sympy.lambdify(h, second, [MATH, "math"])
        lowest = min(curvature(k / 40) for k in range(-400, 401))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                Loss.from_expression(formula)
            except ValueError as error:
                text = str(error).split("second derivative is ")[1]
                place = float(text.split("h=")[1].split(",")[0])
                assert curvature(place) == pytest.approx(float(text.split(" at ")[0]), rel=0.02)
                assert curvature(place) < 0
                refused += 1
                continue
        assert lowest > -1e-9, formula
        proved += not caught
    assert proved >= 4
    assert refused >= 4
