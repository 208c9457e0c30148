"""Losses: derivatives, split form, bends, convexity and bad input."""

import math
import pickle
from dataclasses import fields
from itertools import pairwise

import pytest
import sympy
from sympy import Integer, Rational, Symbol, diff, simplify

from numerics import Estimator, GaussianMixture, LinearRule
from theory import CrossEntropy, Distillation, LinearLoss, Loss, PseudoLabels, SquareDistillation, SquareLoss
from theory.bends import JUMP_WIDTH
from theory.functions import MPMATH, sigmoid, softplus, step
from theory.parser import MODEL_NAMES
from theory.symbols import TEACHER, h, logit, y

CHI, T, EPSILON = Distillation().symbols

BUILT_IN = [
    CrossEntropy(0.1),
    SquareLoss(),
    LinearLoss(),
    Distillation(0.3, 2.5, 0.05),
    Distillation(0.3, 2.5, temperature_squared=True),
    SquareDistillation(0.4, 1.5, 0.1),
    Distillation(0.3, 2.5, 0.05, teacher=(1, 3)),
    SquareDistillation(0.4, 1.5, 0.1, teacher=(2, 1)),
    PseudoLabels(0.4, 0.1),
    PseudoLabels(0.4, 0.1, square=True),
    PseudoLabels(0.7, teacher=(1, 2, 3)),
]
USER = [
    Loss.from_expression("log(1 + exp(-s*h))"),
    Loss.from_expression("-y*log(sigmoid(h)) - (1-y)*log(1 - sigmoid(h)) + a*h^2", {"a": 0.1}),
    Loss.from_expression("sqrt(1 + (h - s)**2)"),
    Loss.from_expression("softplus(margin - s*h)", {"margin": 1.5}),
    Loss.from_expression("softplus(h)*(1 + step(h_1 - 1)) - y*h"),
    Loss.from_expression("exp(-s*h) + (h - h_1)**2/2 + (h - h_teacher)**4"),
]


@pytest.mark.parametrize("loss", BUILT_IN + USER, ids=repr)
def test_derivatives_match_the_formula_numerically(loss):
    """Gradient, curvature and third derivative against differences, for both labels."""
    variables = (h, y, *loss.logits, *loss.symbols)

    def compiled(expression):
        return sympy.lambdify(variables, expression, modules=[MPMATH, "mpmath"])

    chain = [compiled(e) for e in (loss.expression, loss.gradient, loss.curvature, loss.third)]
    for label in (0, 1):
        for place in (-1.7, 0.4, 2.2):
            rest = (label, *(0.3 for _ in loss.logits), *loss.values)
            for lower, upper in pairwise(chain):
                step = 1e-5
                slope = (lower(place + step, *rest) - lower(place - step, *rest)) / (2 * step)
                assert float(upper(place, *rest)) == pytest.approx(float(slope), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("loss", [*BUILT_IN, *USER[:2]], ids=repr)
def test_split_is_found_and_is_the_gradient(loss):
    own, target = loss.split
    assert own.free_symbols <= {h, *loss.symbols}
    assert h not in target.free_symbols
    for label in (0, 1):
        difference = (diff(loss.expression, h) - (own - target)).subs(y, label)
        assert simplify(difference.rewrite(sympy.exp)) == 0


@pytest.mark.parametrize("loss", USER[2:], ids=repr)
def test_no_split_when_the_curvature_depends_on_the_target(loss):
    assert loss.split is None


def test_split_is_detected_and_not_declared():
    """The same loss with another target keeps S and changes c; another shape changes S."""
    first, second = (Loss.from_expression(f"softplus(h) - {target}*h") for target in ("y", "sigmoid(3*h_1)"))
    assert first.split[0] == second.split[0] == sigmoid(h)
    assert second.split[1] == sigmoid(3 * logit(1))
    assert Loss.from_expression("softplus(h) + h**2 - y*h").split[0] == sigmoid(h) + 2 * h


def test_cross_entropy_and_distillation_formulas():
    assert CrossEntropy().expression.subs({EPSILON: 0, y: 1}) == softplus(h) - h
    soft = Distillation().expression.subs(CHI, 1)
    assert simplify(soft - (softplus(h / T) - sigmoid(TEACHER / T) * h / T)) == 0
    hinton = Distillation(temperature_squared=True).expression
    assert simplify(hinton.subs(CHI, 1) - T**2 * soft) == 0
    assert simplify(Distillation().expression.subs(CHI, 0) - CrossEntropy().expression) == 0


def test_several_teachers_are_averaged():
    first, second = logit(1), logit(3)
    both = (first, second)
    soft = Distillation(temperature=2.0, smoothing=0.1, teacher=(1, 3))
    alone = [Distillation(temperature=2.0, smoothing=0.1).expression.subs(TEACHER, taught) for taught in both]
    assert simplify(soft.expression - (alone[0] + alone[1]) / 2) == 0
    square = SquareDistillation(0.4, 1.5, 0.1, teacher=(1, 3))
    mean = SquareDistillation(0.4, 1.5, 0.1).expression.subs(TEACHER, (first + second) / 2)
    assert simplify(square.expression - mean) == 0
    votes = PseudoLabels(teacher=(1, 3)).split[1].subs(CHI, 1)
    assert votes == step(first) / 2 + step(second) / 2
    for loss in (soft, square, PseudoLabels(teacher=(1, 3))):
        assert loss.logits == both
        assert loss.teacher == (1, 3)
        assert loss.stages(4) == (1, 3)
        assert repr(loss).endswith("teacher=(1, 3))")
        assert loss != type(loss)()
        assert loss.with_parameters(mixing=0.5).stages(5) == (1, 3)
        with pytest.raises(ValueError, match="looks at stage 3"):
            loss.stages(3)
    assert repr(PseudoLabels(square=True, teacher=(2,))) == (
        "PseudoLabels(mixing=1.0, smoothing=0.0, square=True, teacher=(2,))"
    )


def test_hard_pseudo_labels_are_soft_ones_at_infinite_gain():
    hard = PseudoLabels(0.4, 0.1).gradient
    steep = Loss.from_expression(
        "softplus(h) - ((1-chi)*(y*(1-epsilon) + (1-y)*epsilon) + chi*sigmoid(gain*h_teacher))*h",
        {"chi": 0.4, "epsilon": 0.1, "gain": 1e9},
    )
    names = {**dict(zip(steep.symbols, steep.values, strict=True)), **{CHI: 0.4, EPSILON: 0.1}}
    for place, label, taught in ((0.3, 0, 1e-3), (0.3, 1, -1e-3), (-2, 1, 4), (-2, 0, 0)):
        point = {h: place, y: label, TEACHER: taught, **names}
        assert float((hard - steep.gradient).subs(point)) == pytest.approx(0, abs=1e-14)
    square = PseudoLabels(0.4, 0.1, square=True).expression
    assert float(square.subs({h: 0.2, y: 1, TEACHER: 3, **names})) == pytest.approx((0.6 - (0.6 * 0.9 + 0.4)) ** 2)
    assert float(square.subs({h: 0.2, y: 0, TEACHER: 0, **names})) == pytest.approx((0.6 - (0.6 * 0.1 + 0.2)) ** 2)


def test_smoothing_moves_the_target():
    own, target = CrossEntropy(0.1).split
    assert target.subs({EPSILON: Rational(1, 10), y: 1}) == Rational(9, 10)
    assert target.subs({EPSILON: Rational(1, 10), y: 0}) == Rational(1, 10)
    assert own == sigmoid(h)


def test_features_of_distillation():
    bends = {(centre, scale): strength for centre, scale, strength in Distillation().bends}
    assert set(bends) == {(Integer(0), Integer(1)), (Integer(0), T)}
    assert simplify(bends[0, Integer(1)] - (1 - CHI) / 4) == 0
    assert simplify(bends[0, T] - CHI / (4 * T**2)) == 0
    assert Distillation().target_bends == (((Integer(0), T),),)
    assert Distillation(teacher=(1, 2)).target_bends == (((Integer(0), T),),) * 2


def test_a_step_bends_where_it_jumps():
    assert PseudoLabels().bends == CrossEntropy().bends
    assert PseudoLabels(square=True).target_bends == (((Integer(0), JUMP_WIDTH),),)
    moved = Loss.from_expression("h**2 - h*(step(2*h_1 - 3) + step(-h_2) + sigmoid(h_2))")
    first, second = moved.target_bends
    assert first == ((Rational(3, 2), JUMP_WIDTH),)
    assert set(second) == {(Integer(0), JUMP_WIDTH), (Integer(0), Integer(1))}


def test_features_are_merged_and_follow_the_argument():
    two = Loss.from_expression("softplus(2*h - 3) + 3*softplus(2*h - 3) + h**2")
    ((centre, scale, strength),) = two.bends
    assert (centre, scale) == (Rational(3, 2), Rational(1, 2))
    assert strength == 4 * 4 * Rational(1, 4)
    assert SquareLoss().bends == ()
    ((centre, scale, _),) = Loss.from_expression("sqrt(4 + (h-1)**2)").bends
    assert (centre, scale) == (1, 2)


def test_parameters_share_the_formula():
    loss = Distillation(mixing=0.5, temperature=2.0)
    other = loss.with_parameters(temperature=5.0)
    assert other.expression is loss.expression
    assert other.parameters == {"mixing": 0.5, "temperature": 5.0, "smoothing": 0.0}
    assert loss.parameters["temperature"] == 2.0
    assert other == Distillation(0.5, 5.0)
    assert len({loss, other, Distillation(0.5, 5)}) == 2
    assert repr(other) == "Distillation(mixing=0.5, temperature=5.0, smoothing=0.0)"
    assert repr(Distillation(teacher=1)).endswith("teacher=1)")


def test_losses_survive_pickling():
    for loss in BUILT_IN + USER:
        copy = pickle.loads(pickle.dumps(loss))
        assert copy == loss
        assert hash(copy) == hash(loss)
        assert copy.gradient == loss.gradient


def test_stages():
    assert Distillation().stages(3) == (2,)
    assert Distillation(teacher=1).stages(3) == (1,)
    assert CrossEntropy().stages(1) == ()
    mixed = Loss.from_expression("h**2 + h*(h_3 - h_1) + h_teacher*h")
    assert mixed.logits == (logit(1), logit(3), TEACHER)
    assert mixed.stages(4) == (1, 3, 3)
    with pytest.raises(ValueError, match="no stage before"):
        Distillation().stages(1)
    with pytest.raises(ValueError, match="not earlier"):
        mixed.stages(3)
    with pytest.raises(ValueError, match="not earlier"):
        Distillation(teacher=2).stages(2)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: CrossEntropy(smoothing=0.6), "smoothing"),
        (lambda: CrossEntropy(smoothing=-0.1), "smoothing"),
        (lambda: CrossEntropy(smoothing="much"), "smoothing"),
        (lambda: Distillation(mixing=1.1), "mixing"),
        (lambda: Distillation(mixing=math.nan), "mixing"),
        (lambda: Distillation(temperature=0.0), "temperature"),
        (lambda: Distillation(temperature=math.inf), "temperature"),
        (lambda: Distillation(smoothing=math.nan), "smoothing"),
        (lambda: Distillation(teacher=0), "teacher"),
        (lambda: Distillation(teacher=1.0), "teacher"),
        (lambda: Distillation(teacher=()), "teacher"),
        (lambda: Distillation(teacher=(1, 0)), "teacher"),
        (lambda: Distillation(teacher=(1, 1)), "teacher"),
        (lambda: PseudoLabels(teacher=(1, True)), "teacher"),
        (lambda: PseudoLabels(teacher="1"), "teacher"),
        (lambda: PseudoLabels(mixing=2), "mixing"),
        (lambda: Loss.from_expression("h**2 - h*h_teacher", teacher=(1, 2)), "h_teacher is one stage"),
        (lambda: SquareDistillation(gain=math.inf), "gain"),
        (lambda: SquareDistillation(mixing=math.inf), "mixing"),
        (lambda: Distillation().with_parameters(temperature=-1), "temperature"),
        (lambda: Distillation().with_parameters(heat=1), "heat.*mixing, temperature, smoothing"),
    ],
)
def test_bad_parameters_are_named(build, name):
    with pytest.raises(ValueError, match=name):
        build()


@pytest.mark.parametrize(
    ("formula", "complaint"),
    [
        ("-h**2", "not convex.*-2 at h=0"),
        ("h**3", "not convex"),
        ("h**2*h_1", "not convex.*h_1=-1"),
        ("(2*y - 1)*h**2", "not convex.*y=0"),
        ("sqrt(h)", "not convex.*undefined"),
        ("q*h + k", "unknown symbols.*k, q"),
        ("foo(h)", "unknown symbols.*foo"),
        ("h**", "cannot read"),
        ("ln(1 + exp(-s*h))", "unknown symbols.*ln: the natural logarithm is log"),
        ("log1p(exp(-s*h))", r"unknown symbols.*log1p: write log\(1 \+ x\)"),
        ("abs(s - h)", r"unknown symbols.*abs: it has a kink; .*sqrt\(x"),
        ("lambda*h**2", "cannot read.*lambda: it is a word of Python"),
        ("y + 1", "does not depend on h"),
        ("h**2 + h_0", "counted from 1"),
        ("h.__class__", "cannot read"),
        ("h**2 if h else 0", "cannot read"),
        ("h**2/0", "not finite"),
        ("9**9**9*h", "exponent|digits"),
        ("h**2*9^9^9", "digits"),
        ("exp(9**9**9)*h**2", "digits"),
        ("9**(h*0 + 9**9)*h**2", "digits"),
        ("h**(9**9)", "at most 100"),
        ("h**1000", "at most 100"),
        ("1e999999999*h**2", "too large or too small"),
        ("h**2*1e-999999999", "too large or too small"),
        ("(h + h_1 + h_2 + 1)**100", "more than 5000 terms"),
        ("softplus(h) - h*step(h - h_1)", "not twice differentiable"),
        ("(1 - 2*step(h_1))*h**2", "not convex.*h_1=1"),
    ],
)
def test_bad_formulas_are_refused(formula, complaint):
    with pytest.raises(ValueError, match=complaint):
        Loss.from_expression(formula)


def test_kinks_are_refused():
    with pytest.raises(ValueError, match="not twice differentiable"):
        Loss.from_expression(sympy.Max(0, 1 - h))


def test_parameters_are_checked_for_convexity_too():
    loss = Loss.from_expression("softplus(h) - y*h + a*h**2", {"a": 0.0})
    assert loss.with_parameters(a=2).parameters == {"a": 2.0}
    with pytest.raises(ValueError, match="not convex"):
        loss.with_parameters(a=-1)


@pytest.mark.parametrize("taken", ["h", "y", "s", "h_teacher", "h_3", "step", "pi", "lambda", "not a name", "", 1])
def test_names_of_the_formula_are_taken(taken):
    with pytest.raises(ValueError, match="cannot name a parameter"):
        Loss.from_expression("softplus(h)", {taken: 1.0})


@pytest.mark.parametrize(
    "taken",
    sorted({item.name for kind in (GaussianMixture, LinearRule, Estimator) for item in fields(kind)} | {"Delta"}),
)
def test_names_of_the_model_are_taken(taken):
    """An axis ``student.ridge`` would move the stage's ridge and not the loss's."""
    assert taken in MODEL_NAMES
    with pytest.raises(ValueError, match=f"'{taken}' cannot name a parameter of a loss: it is a parameter of the data"):
        Loss.from_expression(f"softplus(h) - y*h + {taken}*h**2", {taken: 1.0})


def test_parameters_must_be_in_the_formula():
    with pytest.raises(ValueError, match="has no parameter 'b'; it has a"):
        Loss.from_expression("softplus(h) + a*h**2", {"a": 1.0, "b": 2.0})
    with pytest.raises(ValueError, match="has no parameter 'A'; it has none"):
        Loss.from_expression(h**2, {"A": 1.0})
    with pytest.raises(ValueError, match="has no parameter 'a'"):
        Loss.from_expression("softplus(h) + 0*a", {"a": 1.0})


def test_expression_objects_are_understood_by_name():
    plain_h, plain_a = Symbol("h"), Symbol("a")
    loss = Loss.from_expression(plain_a * (plain_h - Symbol("s")) ** 2, {"a": 2.0}, name="mine")
    assert loss.curvature == 2 * loss.symbols[0]
    assert loss.name == "mine"
    assert Loss.from_expression(str(loss.expression), {"a": 2.0}).expression == loss.expression
