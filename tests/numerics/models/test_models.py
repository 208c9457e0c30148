"""Data, stages and chains: what is accepted, what is refused, and how parameters are named."""

import math
from dataclasses import replace

import numpy as np
import pytest

from numerics import simulate, solve
from numerics.models import (
    PARAMETERS,
    BayesOptimal,
    Chain,
    DataSet,
    Estimator,
    Frozen,
    GaussianMixture,
    Hebbian,
    LinearRule,
    ParameterError,
    check_fit,
    described,
    parameter_paths,
    parameter_value,
    require_count,
    with_parameter,
)
from theory.losses import CrossEntropy, Distillation, LinearLoss, Loss, Range, SquareLoss
from theory.parser import parameter_symbol
from theory.symbols import h

DATA = GaussianMixture(2.0, 0.3, 0.5, label_noise=0.1, further=(DataSet("transfer", 1.5), DataSet("fresh", 0.5, 0.2)))
TEACHER = Estimator(CrossEntropy(), 0.1, eta=0.5)


def test_data_sets_are_the_training_set_and_further_ones() -> None:
    assert [found.name for found in DATA.sets] == ["training", "transfer", "fresh"]
    assert DATA.sets[0] == DataSet("training", 2.0, 0.1)
    assert DATA.data_set("fresh").alpha == 0.5
    assert GaussianMixture(1.0, further=DataSet("more", 2.0)).further == (DataSet("more", 2.0),)
    assert GaussianMixture(1.0, further=[DataSet("more", 2.0)]).further == (DataSet("more", 2.0),)


def test_what_is_not_used_is_not_shown() -> None:
    assert repr(GaussianMixture(1, 0.2)) == "GaussianMixture(alpha=1.0, rho=0.2, delta=1.0)"
    assert eval(repr(DATA)) == DATA


def test_special_stages_are_estimators_on_their_data() -> None:
    chain = Chain.of(
        [
            Hebbian(),
            Hebbian(ridge=3, bias=0.2, sets=("training", "fresh"), eta=0.5, mask_overlap=1.0, name="sum"),
            BayesOptimal(sets=["training", "transfer"]),
            Frozen(1.0, 2.0),
            TEACHER,
        ]
    )
    plain, masked, optimal, frozen, teacher = chain.resolved(DATA)
    assert plain == Estimator(LinearLoss(), 2.0, bias=0.0)
    assert masked == Estimator(LinearLoss(), 3.0, 0.5, "sum", 0.2, ("training", "fresh"), 1.0)
    assert optimal.ridge == 3.5
    assert optimal.bias == pytest.approx(0.5 * 0.5 * (1 + 0.5 / 3.5) * math.log(0.3 / 0.7))
    assert (frozen, teacher) == (chain[3], chain[4])
    assert Chain(chain.resolved(DATA)).names == chain.names


def test_a_bias_is_learned_unless_it_is_given_or_the_loss_is_linear() -> None:
    assert TEACHER.fixed_bias is None
    assert Estimator(SquareLoss(), 0.1, bias=-1).fixed_bias == -1.0
    assert Estimator(LinearLoss(), 0.1).fixed_bias == 0.0
    assert Estimator(LinearLoss(), 0.1, bias=0.5).fixed_bias == 0.5


def test_one_data_set_may_be_named_without_a_list() -> None:
    assert Estimator(CrossEntropy(), 0.1, sets="transfer").sets == ("transfer",)
    assert Hebbian(sets="fresh").sets == BayesOptimal(sets=["fresh"]).sets == ("fresh",)


def test_parameters_of_sets_and_special_stages_are_found_by_path() -> None:
    chain = Chain.of(
        [
            Hebbian(ridge=1.0, sets=("training", "fresh")),
            Frozen(0.1, 0.2, name="given"),
            Estimator(Distillation(), 0.2, 0.5, bias=0.1, sets="transfer", mask_overlap=0.9, name="last"),
        ]
    )
    paths = parameter_paths(chain, DATA)
    expected = (
        "alpha rho delta label_noise transfer.alpha transfer.label_noise fresh.alpha fresh.label_noise teacher.ridge "
    )
    expected += (
        "teacher.eta teacher.bias given.bias given.magnetization given.norm_squared last.ridge last.eta last.bias "
    )
    expected += "last.mask_overlap last.mixing last.temperature last.smoothing"
    assert paths == tuple(expected.split())
    for path in paths:
        data, changed = with_parameter(DATA, chain, path, 0.31)
        assert parameter_value(data, changed, path) == 0.31
        others = [other for other in paths if other != path]
        assert all(parameter_value(data, changed, p) == parameter_value(DATA, chain, p) for p in others)
    assert "label_noise" not in parameter_paths(chain)
    for path in ("transfer.rho", "unknown.alpha", "last.magnetization", "given.ridge"):
        with pytest.raises(ParameterError, match=r"unknown parameter.*allowed are.*fresh\.alpha"):
            with_parameter(DATA, chain, path, 0.3)
        with pytest.raises(ParameterError, match="unknown parameter"):
            parameter_value(DATA, chain, path)
    with pytest.raises(ParameterError, match="norm_squared"):
        with_parameter(DATA, chain, "given.magnetization", 0.5)
    assert not any("bias" in path or "overlap" in path for path in parameter_paths(Chain.of(TEACHER)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DataSet("my set", 1.0), "name of a data set"),
        (lambda: DataSet(3, 1.0), "name of a data set"),
        (lambda: DataSet("more", 0.0), "alpha"),
        (lambda: DataSet("more", 1.0, 0.51), "label_noise"),
        (lambda: GaussianMixture(1.0, label_noise=0.51), "label_noise"),
        (lambda: GaussianMixture(1.0, label_noise=-0.1), "label_noise"),
        (lambda: GaussianMixture(1.0, further=3), "further"),
        (lambda: GaussianMixture(1.0, further=("more",)), "further"),
        (lambda: GaussianMixture(1.0, further=(DataSet("training", 1.0),)), "'training' is taken"),
        (lambda: GaussianMixture(1.0, further=(DataSet("a", 1.0), DataSet("a", 2.0))), "'a' is taken"),
        (lambda: DATA.data_set("none"), "training, transfer, fresh"),
        (lambda: Estimator(CrossEntropy(), 0.1, bias=math.inf), "bias"),
        (lambda: Estimator(CrossEntropy(), 0.1, bias="0"), "bias"),
        (lambda: Estimator(CrossEntropy(), 0.1, sets=()), "sets"),
        (lambda: Estimator(CrossEntropy(), 0.1, sets=("a", "a")), "sets"),
        (lambda: Estimator(CrossEntropy(), 0.1, sets=4), "sets"),
        (lambda: Estimator(CrossEntropy(), 0.1, mask_overlap=1.1), "mask_overlap"),
        (lambda: Estimator(CrossEntropy(), 0.1, name="my stage"), "name"),
        (lambda: Frozen(1.0, 0.9), "norm_squared"),
        (lambda: Frozen(0.0, 0.0), "norm_squared"),
        (lambda: Frozen(math.nan, 1.0), "magnetization"),
        (lambda: Frozen(1.0, 1.0, name=1), "name"),
        (lambda: Hebbian(ridge=0), "ridge"),
        (lambda: Hebbian(bias=None), "bias"),
        (lambda: Hebbian(eta=0), "eta"),
        (lambda: BayesOptimal(sets=()), "sets"),
        (lambda: Chain(()), "at least one stage"),
        (lambda: Chain.of([TEACHER, CrossEntropy()]), "stage 2"),
        (lambda: Chain.of([Estimator(CrossEntropy(), 0.1, mask_overlap=0.5)]), "mask_overlap of teacher"),
        (lambda: Chain.of([Frozen(1, 1), Estimator(Distillation(teacher=2), 0.1)]), "stage 2, which is not earlier"),
        (lambda: Chain.of([Estimator(Distillation(), 0.1)]), "needs a teacher"),
        (lambda: Chain.of([Frozen(1, 1), Hebbian(name="teacher")]), "used twice"),
    ],
)
def test_bad_input_is_named(build, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        build()


MASKED = [TEACHER, Estimator(Distillation(), 0.1, eta=0.4, mask_overlap=0.5)]
TRANSFER = GaussianMixture(1.0, further=(DataSet("transfer", 1.0),))


@pytest.mark.parametrize(
    ("data", "chain"),
    [
        (GaussianMixture(1.0), [TEACHER]),
        (GaussianMixture(1.0), MASKED),
        (GaussianMixture(1.0), [Frozen(1.0, 2.0)]),
        (GaussianMixture(1.0), [Frozen(1.0, 2.0), Estimator(CrossEntropy(), 0.1, eta=0.5, mask_overlap=1.0)]),
        (GaussianMixture(1.0), [TEACHER, Estimator(CrossEntropy(), 0.1, eta=0.5, mask_overlap=0.0)]),
        (TRANSFER, [TEACHER, Estimator(Distillation(), 0.1, sets="transfer")]),
        (TRANSFER, [BayesOptimal(sets=("training", "transfer"))]),
    ],
)
def test_what_fits_passes(data: GaussianMixture, chain: list) -> None:
    check_fit(data, Chain.of(chain))


@pytest.mark.parametrize(
    ("data", "chain", "message"),
    [
        (GaussianMixture(1.0), [Estimator(CrossEntropy(), 0.1, sets="transfer")], "sets of teacher.*'transfer'"),
        (TRANSFER, [TEACHER], "trained on data set 'transfer'"),
        (TRANSFER, [Frozen(1.0, 2.0)], "trained on data set"),
        (TRANSFER, [Frozen(1.0, 2.0), Hebbian(sets="transfer")], "trained on data set 'training'"),
        (TRANSFER, [Hebbian(name="transfer", sets=("training", "transfer"))], "both a stage and a data set"),
        (GaussianMixture(1.0), [Hebbian(name="training")], "both a stage and a data set"),
        (GaussianMixture(1.0, label_noise=0.1), [BayesOptimal()], "Bayes-optimal.*label_noise of training"),
        (GaussianMixture(1.0), [TEACHER, Hebbian(eta=0.8, mask_overlap=1.0)], "mask_overlap=1 of student"),
        (GaussianMixture(1.0), [TEACHER, Hebbian(eta=0.8, mask_overlap=0.0)], "mask_overlap=0 of student"),
        (GaussianMixture(1.0), [Hebbian(), Hebbian(eta=0.5, mask_overlap=0.9)], "0.05 outside"),
    ],
)
def test_what_does_not_fit_is_named(data: GaussianMixture, chain: list, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        check_fit(data, Chain.of(chain))


@pytest.mark.parametrize(
    "name", ["ridge", "eta", "bias", "mask_overlap", "name", "sets", "alpha", "rho", "label_noise"]
)
def test_a_parameter_of_a_loss_cannot_hide_behind_one_of_the_model(name: str) -> None:
    """However the loss was made: a path must mean one thing."""
    a = parameter_symbol("a")
    loss = Loss("mine", h**2 * a, (name,), (a,), (1.0,), (Range(),))
    with pytest.raises(ParameterError, match=f"loss: its parameter '{name}' has the name of a parameter"):
        Estimator(loss, ridge=0.1)
    assert len(set(parameter_paths(Chain.of(Estimator(replace(loss, keys=("a",)), 0.1))))) == 6


def test_parameters_that_models_have_are_described() -> None:
    """One table for datasets, axes and sliders; a parameter of somebody's loss is called by its name."""
    chain = Chain.of(
        [
            Frozen(0.5, 1.0),
            Estimator(CrossEntropy(0.1), 0.1, bias=0.2),
            Estimator(Distillation(), 0.1, mask_overlap=0.5),
        ]
    )
    names = {path.rpartition(".")[2] for path in parameter_paths(chain, DATA)}
    assert names <= set(PARAMETERS)
    assert all(PARAMETERS[name].low > 0 for name in names if PARAMETERS[name].log)
    assert (described("student.ridge").symbol, described("alpha").low) == (r"\lambda", 0.05)
    assert (described("student.my_width").long_name, described("student.my_width").word) == (
        "student.my_width",
        "my width",
    )


# Arrays without axes, and stages by name.


@pytest.mark.parametrize(
    "kind",
    [np.array, np.float32, lambda x: np.array(x, dtype=np.float32), lambda x: np.array(int(4 * x)) if x > 1 else x],
)
def test_numbers_may_be_arrays_without_axes(kind) -> None:
    data = GaussianMixture(kind(2.0), rho=kind(0.25), delta=kind(0.5), label_noise=kind(0.125))
    assert data == GaussianMixture(float(kind(2.0)), 0.25, 0.5, 0.125)
    assert Estimator(CrossEntropy(), kind(0.5), eta=kind(0.25)) == Estimator(CrossEntropy(), 0.5, eta=0.25)
    assert all(type(value) is float for value in (data.alpha, data.rho, Estimator(CrossEntropy(), kind(0.5)).ridge))


@pytest.mark.parametrize(
    "value",
    [
        np.array(True),
        np.ma.masked,
        np.ma.array(1.0, mask=True),
        np.array("1"),
        np.datetime64(3, "ns"),
        np.array([1.0]),
        np.array(1j),
    ],
    ids=str,
)
def test_what_is_no_number_is_refused(value) -> None:
    with pytest.raises(ParameterError, match="alpha must be a finite number > 0"):
        GaussianMixture(value)


def test_counts_may_be_arrays_without_axes() -> None:
    assert require_count("n", np.array(3)) == require_count("n", np.int8(3)) == 3
    for value in (0, 2.0, True, np.array(2.0), np.array([2]), "2"):
        with pytest.raises(ParameterError, match=r"^n must be an integer >= 1, got"):
            require_count("n", value)


def test_stages_by_name_and_in_slices() -> None:
    chain = Chain.of([Estimator(CrossEntropy(), 0.1), Estimator(Distillation(), 0.2)])
    assert chain["student"] is chain[1]
    assert chain[1:] == (chain["student"],)
    with pytest.raises(KeyError, match="no stage 'pupil'; there are teacher, student"):
        chain["pupil"]
    for result in (solve(GaussianMixture(2.0), chain), simulate(GaussianMixture(2.0), chain, n_inputs=20, n_runs=2)):
        assert result["student"].test_error == result[1].test_error == result[-1].test_error
        assert [stage.test_error for stage in result[1:]] == [result[1].test_error]
        assert len(result[:]) == 2
        assert result[5:] == ()
        with pytest.raises(KeyError, match="no stage 'pupil'; there are teacher, student"):
            result["pupil"]
        with pytest.raises(IndexError):
            result[2]
    ruled = solve(LinearRule(2.0, output="sign"), chain)
    assert ruled["teacher"].name == ruled[:1][0].name == "teacher"
