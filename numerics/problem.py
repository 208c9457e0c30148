"""Data and chains written as JSON: what the command lines read where flags for teacher and student are not enough.

    {
      "data": {"alpha": 2, "rho": 0.4, "delta": 0.5, "label_noise": 0.2, "further": [{"name": "fresh", "alpha": 4}]},
      "chain": [
        {"loss": "cross-entropy", "ridge": 0.1},
        {"loss": "h**2/2 - s*h", "ridge": 1, "eta": 0.5, "mask_overlap": 0.2, "name": "second"},
        {"loss": {"name": "pseudo-labels", "teacher": [1, 2]}, "ridge": 0.5, "sets": ["training", "fresh"], "bias": 0}
      ]
    }

Data may have ``"inputs": {"eigenvalues": [...], "squared_signal": [...]}`` (:class:`~numerics.models.Spectrum`),
``{"capacity": 1.5, "source": 0.5, "size": 1000}`` (:class:`~numerics.models.PowerLaw`) or
``{"covariance": [[...], ...], "direction": [...]}`` (:class:`~numerics.models.Dense`), and a stage
``"features": {"ratio": 2, "activation": "relu"}`` (:class:`~numerics.models.RandomFeatures`), ``{"matrix": [[...], ...]}``
(:class:`~numerics.models.LinearMap`) or ``{"first_layer": [[...], ...], "activation": "relu"}``
(:class:`~numerics.models.FixedFeatures`).  In the place of a matrix or of a direction there may be the name of a file ``.npy``.

Data with ``"X"`` and ``"y"`` are :class:`~numerics.models.Measured` samples, a row a sample, or the names of files ``.npy``.

Data with ``"gram"`` are a :class:`~numerics.models.ClassMixture`: a matrix, or a family of matrices such as
``{"family": "similar_pairs", "classes": 4, "similarity": 0.6}``; their further data sets are
:class:`~numerics.models.ClassSet`.  So are data with the inputs ``{"eigenvalues": [...], "means": [[...], ...]}``
(:class:`~numerics.models.SharedCovariance`), without ``"gram"``.

Data with ``"means"`` are :class:`~numerics.models.Clusters`, whose arrays may be names of files ``.npy`` likewise.

The keys are those of :class:`~numerics.models.GaussianMixture` (with ``"rule": "identity"``, ``"sign"``, ``"probit"`` or
``"logit"`` among the data, those of :class:`~numerics.models.LinearRule`, whose ``output`` that is),
:class:`~numerics.models.DataSet` and :class:`~numerics.models.Estimator`; with ``"stage": "frozen"``, ``"hebbian"`` or
``"bayes-optimal"``, those of that stage.
A loss is a name (of ``theory.losses.BUILT_IN``) or a formula, or an object with ``"name"`` and the arguments of that loss, or with
``"formula"`` and perhaps ``"parameters"`` and ``"teacher"``.
"""

from __future__ import annotations

import inspect
import json
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import fields

import numpy as np

from numerics.models import (
    OUTPUTS,
    BayesOptimal,
    Chain,
    ClassMixture,
    ClassSet,
    Clusters,
    DataModel,
    DataSet,
    Dense,
    Estimator,
    FixedFeatures,
    Frozen,
    GaussianMixture,
    Hebbian,
    Inputs,
    LinearMap,
    LinearRule,
    Measured,
    ParameterError,
    PowerLaw,
    RandomFeatures,
    Seen,
    SharedCovariance,
    Spectrum,
    Stage,
    check_fit,
)
from numerics.models.gram import GRAM_FAMILIES
from theory.losses import BUILT_IN, Loss

STAGES: dict[str, type[Stage]] = {
    "estimator": Estimator,
    "frozen": Frozen,
    "hebbian": Hebbian,
    "bayes-optimal": BayesOptimal,
}
"""Kinds of stage by the names used in files."""

SEEN: dict[str, type[Seen]] = {"matrix": LinearMap, "first_layer": FixedFeatures}
"""What stages see of dense inputs, by the key of its matrix."""


def read_problem(text: str) -> tuple[DataModel, Chain]:
    """Data and chain from JSON, checked to fit together.

    Raises
    ------
    ParameterError
        If the text is not JSON or not a description; the message says where.

    Examples
    --------
    >>> text = '{"data": {"alpha": 2}, "chain": [{"loss": "cross-entropy", "ridge": 0.1}, {"loss": "distillation", "ridge": 0.01}]}'
    >>> data, chain = read_problem(text)
    >>> data, chain.names
    (GaussianMixture(alpha=2.0, rho=0.5, delta=1.0), ('teacher', 'student'))
    >>> read_problem('{"data": {"alpha": -2}, "chain": []}')
    Traceback (most recent call last):
    numerics.models.checks.ParameterError: data: alpha must be a finite number > 0, got -2
    """
    try:
        described = json.loads(text, object_pairs_hook=_without_repetition)
    except ParameterError:
        raise
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits are a ValueError
        raise ParameterError(f"not JSON: {error}") from None
    described = _object(described, "the problem")
    unknown = described.keys() - {"data", "chain"}
    if unknown or len(described) < 2:
        raise ParameterError(f"the problem must have the keys data and chain, got {', '.join(described) or 'none'}")
    data = _data(described["data"])
    if not isinstance(described["chain"], list):
        raise ParameterError("chain must be a list of stages")
    chain = Chain.of([_stage(stage, f"chain[{k}]") for k, stage in enumerate(described["chain"])])
    check_fit(data, chain)
    return data, chain


def _plain(value: object) -> object:
    """A value of JSON with its texts, which may be names, in one spelling."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return plain_name(value) if isinstance(value, str) else value


def plain_name(text: str) -> str:
    """A name in one spelling: an accent may be typed as part of its letter or after it (NFC)."""
    return unicodedata.normalize("NFC", text).strip()


def _without_repetition(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = {plain_name(key): _plain(value) for key, value in pairs}
    if len(found) < len(pairs):
        keys = [plain_name(key) for key, _ in pairs]
        raise ParameterError(f"key {next(key for key in keys if keys.count(key) > 1)!r} is given twice")
    return found


def write_problem(data: DataModel, chain: Chain) -> str:
    """JSON that :func:`read_problem` reads back as the same data and chain; what data and stages have by default is left out.

    Examples
    --------
    >>> from theory.losses import SquareLoss
    >>> write_problem(GaussianMixture(2.0, 0.4, 0.5), Chain.of(Estimator(SquareLoss(), ridge=0.1)))
    '{"data": {"alpha": 2.0, "rho": 0.4, "delta": 0.5}, "chain": [{"loss": {"name": "square"}, "ridge": 0.1}]}'
    """
    kinds = {kind: name for name, kind in STAGES.items()}
    described = _written_data(data)
    if "further" in described:
        described["further"] = [_given(found) for found in data.further]
    if "inputs" in described:
        described["inputs"] = _written_inputs(data.inputs)
    stages = []
    for stage in chain.stages:
        given = _given(stage)
        if isinstance(stage, Estimator):
            given["loss"] = _written_loss(stage.loss)
            if stage.features is not None:
                given["features"] = _written_inputs(stage.features)
        else:
            given = {"stage": kinds[type(stage)], **given}
        stages.append(given)
    return json.dumps({"data": described, "chain": stages})


def _given(value: object, *, whole: bool = False) -> dict[str, object]:
    """Fields of a dataclass that differ from their defaults, or all of them."""
    return {f.name: getattr(value, f.name) for f in fields(value) if whole or getattr(value, f.name) != f.default}


def _written_data(data: DataModel) -> dict[str, object]:
    """The keys of data of any kind; further sets and inputs are still what they are."""
    if isinstance(data, Measured):
        return _given_samples(data)
    if isinstance(data, Clusters):
        return _given_clusters(data)
    if isinstance(data, ClassMixture):
        return _given_classes(data)
    described = _given(data)
    if isinstance(data, LinearRule):
        described.pop("output", None)
        return {"rule": data.output, **described}
    return described


def _written_inputs(value: Inputs | RandomFeatures | Seen) -> dict[str, object]:
    """Inputs, or what a stage sees of them; arrays as lists."""
    if isinstance(value, Dense | Seen):
        held = {f.name: getattr(value, f.name) for f in fields(value)}
        return {
            name: found.tolist() if isinstance(found, np.ndarray) else found
            for name, found in held.items()
            if found is not None
        }
    return _given(value, whole=isinstance(value, PowerLaw))


def _given_samples(data: Measured) -> dict[str, object]:
    return {"X": data.X.tolist(), "y": data.y.tolist(), "alpha": data.alpha, "folds": data.folds, "seed": data.seed,
            "covariances": data.covariances}  # fmt: skip


def _given_classes(data: ClassMixture) -> dict[str, object]:
    gram, equal = data.gram, (1.0 / data.classes_count,) * data.classes_count
    written: object = gram.matrix
    if gram.family_name is not None:
        written = {"family": gram.family_name, "classes": gram.classes, "similarity": gram.similarity}
    described = {**_given(data), "gram": written}
    if data.weights == equal:
        del described["weights"]
    if data.test_weights == data.weights:
        del described["test_weights"]
    if isinstance(data.inputs, SharedCovariance):
        del described["gram"]  # it is that of the means
    return described


def _given_clusters(data: Clusters) -> dict[str, object]:
    described = {"alpha": data.alpha, "means": data.means.tolist(), "covariances": data.covariances.tolist()}
    described |= {"labels": list(data.labels), "weights": list(data.weights)}
    if data.label_noise:
        described["label_noise"] = data.label_noise
    if data.test_weights != data.weights:
        described["test_weights"] = list(data.test_weights)
    return described if not data.further else described | {"further": data.further}


def _written_loss(loss: Loss) -> dict[str, object]:
    names = {kind: name for name, kind in BUILT_IN.items()}
    teacher = {} if loss.teacher is None else {"teacher": loss.teacher}
    if type(loss) not in names:
        parameters = {"parameters": loss.parameters} if loss.parameters else {}
        return {"formula": loss.text if loss.needs_many_classes else str(loss.expression), **parameters, **teacher}
    return {"name": names[type(loss)], **loss.parameters, **dict(loss.options), **teacher}


def _data(described: object) -> DataModel:
    given = _object(described, "data")
    if "X" in given:
        arrays = _read_arrays({key: given[key] for key in ("X", "y") if key in given}, "data")
        return _built(Measured, given | arrays, "data")
    further = given.get("further", [])
    if not isinstance(further, list):
        raise ParameterError("data.further must be a list of data sets")
    measured = isinstance(given.get("inputs"), dict) and "means" in given["inputs"]
    kind_of_set = ClassSet if "gram" in given or measured else DataSet
    given["further"] = tuple(
        _built(kind_of_set, _object(s, f"data.further[{k}]"), f"data.further[{k}]") for k, s in enumerate(further)
    )
    if "inputs" in given:
        inputs = _object(given["inputs"], "data.inputs")
        if "covariance" in inputs:
            given["inputs"] = _built(Dense, _read_arrays(inputs, "data.inputs"), "data.inputs")
        elif measured:
            given["inputs"] = _built(SharedCovariance, _read_arrays(inputs, "data.inputs"), "data.inputs")
        else:
            given["inputs"] = _built(Spectrum if "eigenvalues" in inputs else PowerLaw, inputs, "data.inputs")
    if "means" in given:
        for key in ("rule", "gram"):
            if key in given:
                raise ParameterError(f"data: {key} has no effect on clusters, whose labels are given")
        return _built(Clusters, _read_arrays(given, "data"), "data")
    if "gram" in given or measured:
        if "rule" in given:
            what = "gram" if "gram" in given else "means of the inputs"
            raise ParameterError(f"data: {what} has no effect on a rule, which has no classes")
        return _built(ClassMixture, {**given, **({"gram": _gram(given["gram"])} if "gram" in given else {})}, "data")
    if "rule" not in given:
        return _built(GaussianMixture, given, "data")
    output = given.pop("rule")
    if not isinstance(output, str) or output not in OUTPUTS:
        raise ParameterError(f"data.rule must be one of {', '.join(OUTPUTS)}, got {output!r}")
    if "output" in given:
        raise ParameterError("data: unknown key 'output'; the output of a rule is its key rule")
    return _built(LinearRule, {**given, "output": output}, "data")


def _read_arrays(given: Mapping[str, object], where: str) -> dict[str, object]:
    """The values, with arrays in the place of the names of files ``.npy``."""
    found = dict(given)
    for key, value in given.items():
        if isinstance(value, str):
            try:
                found[key] = np.load(value, allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                reason = " ".join(str(error).split()) or "it is empty"
                raise ParameterError(
                    f"{where}: {key} must be numbers or a file .npy, got {value!r}: {reason}"
                ) from None
    return found


def _gram(described: object) -> object:
    """A family of Gram matrices, or what is written, to be checked as a matrix."""
    if not isinstance(described, dict):
        return described
    given = dict(described)
    family = given.pop("family", None)
    if not isinstance(family, str) or family not in GRAM_FAMILIES:
        raise ParameterError(f"data.gram.family must be one of {', '.join(GRAM_FAMILIES)}, got {family!r}")
    return _built(GRAM_FAMILIES[family], given, "data.gram")


def _stage(described: object, where: str) -> Stage:
    given = _object(described, where)
    kind = given.pop("stage", "estimator")
    if not isinstance(kind, str) or kind not in STAGES:
        raise ParameterError(f"{where}.stage must be one of {', '.join(STAGES)}, got {kind!r}")
    if "loss" in given and kind == "estimator":
        given["loss"] = _loss(given["loss"], f"{where}.loss")
    if kind == "estimator" and given.get("features") is not None:
        features = _object(given["features"], f"{where}.features")
        arrays = {key: features[key] for key in SEEN if key in features}
        kind_of_features = next((SEEN[key] for key in arrays), RandomFeatures)
        features |= _read_arrays(arrays, f"{where}.features")
        given["features"] = _built(kind_of_features, features, f"{where}.features")
    return _built(STAGES[kind], given, where)


def _loss(described: object, where: str) -> Loss:
    if isinstance(described, str):
        described = {"name": described} if described in BUILT_IN else {"formula": described}
    given = _object(described, where)
    if isinstance(given.get("teacher"), list):
        given["teacher"] = tuple(given["teacher"])
    if "formula" in given:
        if not isinstance(given["formula"], str):
            raise ParameterError(f"{where}.formula must be a text, got {given['formula']!r}")
        if "parameters" in given:
            given["parameters"] = _object(given["parameters"], f"{where}.parameters")
        return _built(_from_formula, given, where)
    name = given.pop("name", None)
    if not isinstance(name, str) or name not in BUILT_IN:
        raise ParameterError(f"{where} must have a formula or a name, one of {', '.join(BUILT_IN)}, got {name!r}")
    return _built(BUILT_IN[name], given, where)


def _from_formula(formula: str, parameters: Mapping[str, float] | None = None, teacher: int | None = None) -> Loss:
    return Loss.from_expression(formula, parameters, teacher=teacher)


def _object(value: object, where: str) -> dict:
    """A copy of a JSON object; ParameterError if it is something else."""
    if not isinstance(value, dict):
        raise ParameterError(f"{where} must be an object {{...}}, got {value!r}")
    return dict(value)


def _built(kind: Callable, given: Mapping[str, object], where: str) -> object:
    """``kind(**given)``, with errors that say where."""
    arguments = inspect.signature(kind).parameters
    for key, value in given.items():
        if key not in arguments:
            raise ParameterError(f"{where}: unknown key {key!r}; allowed are {', '.join(arguments)}")
        if isinstance(arguments[key].default, bool) and not isinstance(value, bool):
            raise ParameterError(f"{where}: {key} must be true or false, got {value!r}")
    for key, argument in arguments.items():
        if argument.default is argument.empty and key not in given:
            raise ParameterError(f"{where}: {key} is missing")
    try:
        return kind(**given)
    except ValueError as error:
        raise ParameterError(f"{where}: {error}") from None
