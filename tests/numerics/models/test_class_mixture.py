"""A mixture of K classes: Gram matrices, data sets, and one clear line for what makes no sense."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from numerics import Chain, Estimator, ParameterError
from numerics.models import (
    ClassMixture,
    ClassSet,
    DataSet,
    GaussianMixture,
    Gram,
    Hebbian,
    check_fit,
    class_tree,
    equal_overlaps,
    gram_of_correlations,
    helmert,
    mixture_of_samples,
    orthogonal_means,
    parameter_paths,
    similar_pairs,
    simplex_means,
    with_parameter,
)
from theory.losses import CrossEntropy, Distillation, LinearLoss

TEACHER = Estimator(CrossEntropy(), 0.1)
DATA = ClassMixture(2.0, gram=similar_pairs(4, 0.5))


def test_helpers_of_gram_matrices() -> None:
    assert np.array(simplex_means(2)) == pytest.approx(np.array([[1, -1], [-1, 1]]))
    assert np.linalg.matrix_rank(np.array(simplex_means(5))) == 4
    assert np.array(class_tree([2, 2], [0.0, 0.5])) == pytest.approx(np.array(similar_pairs(4, 0.5)))
    assert np.array(equal_overlaps(4, 0.0)) == pytest.approx(np.array(orthogonal_means(4)))
    assert np.array(gram_of_correlations(np.array(similar_pairs(3, 0.4)), 2.0)) == pytest.approx(
        4 * np.array(similar_pairs(3, 0.4))
    )
    gram = class_tree([3, 2, 2], [0.1, 0.3, 0.8])
    means = gram.means()
    assert means @ means.T == pytest.approx(np.array(gram))


def test_the_gauge() -> None:
    b = helmert(5)
    assert b @ b.T == pytest.approx(np.eye(4))
    assert b.sum(axis=1) == pytest.approx(0.0)


def test_a_mixture_measured_from_samples() -> None:
    """Unbiased within 5 standard errors of their spread over 40 draws, N = 300, 240 samples of class weights 1/2, 1/4, 1/4."""
    generator = np.random.default_rng(2)
    gram, labels = np.array(similar_pairs(3, 0.6)), np.repeat([0, 0, 1, 2], 60)
    roots = np.linalg.cholesky(gram + 1e-12 * np.eye(3))
    mean = np.array([0.5, 0.25, 0.25])
    centred = np.eye(3) - mean
    expected = centred @ gram @ centred.T
    found = []
    for _ in range(40):
        z = np.linalg.qr(generator.standard_normal((300, 3)))[0].T * np.sqrt(300)
        x = (roots @ z)[labels] / np.sqrt(300) * 4 + generator.standard_normal((240, 300)) * np.sqrt(0.5)
        measured, weights, delta = mixture_of_samples(x, labels)
        found.append(np.array(measured))
        assert weights == (0.5, 0.25, 0.25)
        assert np.array(delta) == pytest.approx(0.5, rel=0.05)
    error = np.std(found, axis=0, ddof=1) / np.sqrt(40)
    assert (np.abs(np.mean(found, axis=0) - 16 * expected) < 5 * error).all()


def test_class_weights_and_labels_of_data_sets() -> None:
    data = ClassMixture(
        2.0, [0.5, 0.3, 0.2], orthogonal_means(3), label_noise=0.1,
        further=[DataSet("more", 1.0), ClassSet("part", 0.5, weights=[0.5, 0.5, 0])], test_weights=[0.2, 0.3, 0.5],
    )  # fmt: skip
    assert [found.name for found in data.sets] == ["training", "more", "part"]
    assert data.class_weights("more") == pytest.approx([0.5, 0.3, 0.2])
    assert data.class_weights("part") == pytest.approx([0.5, 0.5, 0.0])
    assert data.confusion_of("training")[0] == pytest.approx([0.9, 0.05, 0.05])
    assert data.confusion_of("part") == pytest.approx(np.eye(3))
    assert data.label_weights("training").sum() == pytest.approx(1.0)
    assert data.test_weights == (0.2, 0.3, 0.5)
    assert pickle.loads(pickle.dumps(data)) == data
    assert hash(data) == hash(pickle.loads(pickle.dumps(data)))


def test_similarity_is_a_parameter() -> None:
    chain = Chain.of([TEACHER])
    assert "similarity" in parameter_paths(chain, DATA)
    moved, _ = with_parameter(DATA, chain, "similarity", 0.8)
    assert moved.gram == similar_pairs(4, 0.8)
    assert "similarity" not in ClassMixture(1.0).parameters
    with pytest.raises(ParameterError, match="no similarity that could be varied"):
        orthogonal_means(3).at(0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": [0.5, 0.4, 0.2]}, "weights must sum to 1, they sum to 1.1"),
        ({"weights": [1.5, -0.5, 0]}, "weights must be numbers >= 0"),
        ({"weights": [0.5, 0.5]}, "weights must be of 3 classes, as gram is, got 2"),
        ({"gram": [[1, 2], [2, 1]]}, "positive semi-definite, its smallest eigenvalue is -1"),
        ({"gram": [[1, 0, 0], [0, 1, 0]]}, "gram must be a K x K matrix"),
        ({"gram": [[1, 0.5], [0.2, 1]]}, "gram must be symmetric"),
        ({"gram": [[1, "x"], [0.2, 1]]}, "gram must be an array of numbers"),
        ({"gram": [[1, np.nan], [np.nan, 1]]}, "gram must hold finite numbers"),
        ({"gram": [[1]]}, "K from 2"),
        ({"delta": [1, 2]}, "delta must be a finite number > 0 or 3 of them"),
        ({"delta": [1, 2, 0]}, "delta must be a finite number > 0 or 3 of them"),
        ({"confusion": np.eye(2)}, "confusion must be of 3 classes"),
        ({"confusion": 0.5 * np.eye(3)}, "row 0 of confusion must sum to 1, it sums to 0.5"),
        ({"confusion": np.eye(3), "label_noise": 0.1}, "label_noise must be 0 where confusion is given"),
        ({"test_weights": [1, 0]}, "test_weights must be of 3 classes"),
        ({"further": ClassSet("more", 1.0, weights=[1, 0])}, "weights of more must be of 3 classes"),
        ({"further": ["more"]}, "further must hold DataSets"),
        ({"alpha": 0.0}, "alpha must be a finite number > 0"),
    ],
)
def test_bad_input_is_one_line(arguments: dict, message: str) -> None:
    with pytest.raises(ParameterError, match=message) as caught:
        ClassMixture(**{"alpha": 1.0, **arguments})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "chain", "message"),
    [
        (DATA, [Hebbian()], "must be an Estimator"),
        (DATA, [Estimator(LinearLoss(), 1.0)], "no form for more"),
        (DATA, [Estimator(CrossEntropy(), 0.0)], "ridge of teacher must be > 0"),
        (DATA, [Estimator(CrossEntropy(), 0.1, bias=0.0)], "bias of teacher must be None"),
        (ClassMixture(1.0, [0.5, 0.5, 0]), [TEACHER], "sees none of class 2: its bias has no minimum"),
        (
            GaussianMixture(1.0),
            [TEACHER, Estimator(Distillation(target="true"), 0.1)],
            "for the classes of a ClassMixture",
        ),
    ],
)
def test_what_does_not_fit(data: object, chain: list, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        check_fit(data, Chain.of(chain))


def test_soft_targets_may_miss_a_class() -> None:
    data = ClassMixture(1.0, further=ClassSet("transfer", 1.0, weights=[0.5, 0.5, 0]))
    check_fit(data, Chain.of([TEACHER, Estimator(Distillation(0.5), 0.1, sets="transfer")]))
    check_fit(data, Chain.of([TEACHER, Estimator(CrossEntropy(0.1), 0.1, sets="transfer")]))
    with pytest.raises(ParameterError, match="student is trained on labels alone"):
        check_fit(data, Chain.of([TEACHER, Estimator(CrossEntropy(), 0.1, sets="transfer")]))


def test_sets_of_classes_are_not_for_two() -> None:
    with pytest.raises(ParameterError, match="further must hold DataSets of two classes"):
        GaussianMixture(1.0, further=ClassSet("more", 1.0))
    assert Gram.of(np.eye(3)) == orthogonal_means(3)
