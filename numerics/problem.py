"""Data and chains written as JSON: what the command lines read where flags for teacher and student are not enough.

    {
      "data": {"alpha": 2, "rho": 0.4, "delta": 0.5, "label_noise": 0.2, "further": [{"name": "fresh", "alpha": 4}]},
      "chain": [
        {"loss": "cross-entropy", "ridge": 0.1},
        {"loss": "h**2/2 - s*h", "ridge": 1, "eta": 0.5, "mask_overlap": 0.2, "name": "second"},
        {"loss": {"name": "pseudo-labels", "teacher": [1, 2]}, "ridge": 0.5, "sets": ["training", "fresh"], "bias": 0}
      ]
    }

The keys are those of :class:`~numerics.models.GaussianMixture`, :class:`~numerics.models.DataSet` and
:class:`~numerics.models.Estimator`; with ``"stage": "frozen"``, ``"hebbian"`` or ``"bayes-optimal"``, those of that stage.
A loss is a name (of ``theory.losses.BUILT_IN``) or a formula, or an object with ``"name"`` and the arguments of that loss, or with
``"formula"`` and perhaps ``"parameters"`` and ``"teacher"``.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping

from numerics.models import (
    BayesOptimal,
    Chain,
    DataSet,
    Estimator,
    Frozen,
    GaussianMixture,
    Hebbian,
    ParameterError,
    Stage,
    check_fit,
)
from theory.losses import BUILT_IN, Loss

STAGES: dict[str, type[Stage]] = {
    "estimator": Estimator,
    "frozen": Frozen,
    "hebbian": Hebbian,
    "bayes-optimal": BayesOptimal,
}
"""Kinds of stage by the names used in files."""


def read_problem(text: str) -> tuple[GaussianMixture, Chain]:
    """Data and chain from JSON, checked to fit together.

    Raises
    ------
    ParameterError
        If the text is not JSON or not a description; the message says where.
    """
    try:
        described = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
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


def _data(described: object) -> GaussianMixture:
    given = _object(described, "data")
    further = given.get("further", [])
    if not isinstance(further, list):
        raise ParameterError("data.further must be a list of data sets")
    given["further"] = tuple(
        _built(DataSet, _object(s, f"data.further[{k}]"), f"data.further[{k}]") for k, s in enumerate(further)
    )
    return _built(GaussianMixture, given, "data")


def _stage(described: object, where: str) -> Stage:
    given = _object(described, where)
    kind = given.pop("stage", "estimator")
    if not isinstance(kind, str) or kind not in STAGES:
        raise ParameterError(f"{where}.stage must be one of {', '.join(STAGES)}, got {kind!r}")
    if "loss" in given and kind == "estimator":
        given["loss"] = _loss(given["loss"], f"{where}.loss")
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
