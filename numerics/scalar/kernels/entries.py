"""The ways in from Python, for the named tuples that it owns; those that few problems need are compiled when they are called."""

from __future__ import annotations

from numba import types

from numerics.codegen.cache import njit, unchecked
from numerics.scalar.kernels import chain, constrained, fields, nodes, prior, rows, stage, walk
from numerics.scalar.kernels.elementary import OPEN, OPTIONS, VECTOR_FUNCTION, FloatArray, IntArray, Matrix
from numerics.scalar.kernels.layout import (
    ALL_STATES,
    DATA,
    FIELD,
    GROUPS,
    MOMENTS,
    NODES,
    ORDER_PARAMETERS,
    POINTS,
    SETTINGS,
    SHARPNESS,
    STAGE,
    STRUCTURE,
    SUMMARY,
    Rule,
    record,
)

_RULE = record(Rule, *[types.float64] * 2, *[types.boolean] * 2, SHARPNESS, Matrix, FloatArray)


@njit(
    types.void(STRUCTURE, POINTS, SETTINGS, FloatArray, types.boolean, ALL_STATES, Matrix, SUMMARY), **OPTIONS
)  # fmt: skip
def solve_points_of(structure, points, settings, position, continued, states, vectors, summary):
    chain.solve_points(structure, points, settings, position, continued, states, vectors, summary)


solve_points = unchecked(solve_points_of)
"""For arrays of exactly these types, in C order: to look up the types of so many takes as long as to solve a point."""


@njit(SHARPNESS(Matrix, IntArray, types.int64), **OPEN)
def sharpness_along(unknowns, started, t):
    return walk.sharpness_along(unknowns, started, t)


@njit(**OPTIONS)
def solve_stage(problem, accuracy, x, conjugate, updated):
    return stage.solve_stage(problem, accuracy, x, conjugate, updated)


@njit(**OPTIONS)
def channel_at(problem, accuracy, x, conjugate, slopes):
    return stage.channel_at(problem, accuracy, x, conjugate, slopes)


@njit(NODES(DATA, types.int64), **OPEN)
def label_nodes(data, rows):
    return nodes.label_nodes(data, rows)


@njit(
    types.Tuple((NODES, types.float64))(STAGE, NODES, FIELD, IntArray, IntArray, FloatArray, _RULE, types.float64),
    **OPEN,
)
def nodes_after(stage_there, nodes_here, field, trained, needed, directions, rule, tail):
    return nodes.nodes_after(stage_there, nodes_here, field, trained, needed, directions, rule, tail)


@njit(**OPTIONS)
def weighted_by_label(data, nodes_here, tail):
    return nodes.weighted_by_label(data, nodes_here, tail)


@njit(**OPTIONS)
def with_constant_logit(nodes_here, logit):
    return rows.with_constant_logit(nodes_here, logit)


@njit(**OPTIONS)
def find_goals(loss, labels, logits, out):
    constrained.find_goals(loss, labels, logits, out)


@njit(FIELD(ORDER_PARAMETERS, types.float64), **OPEN)
def field_of(order, delta):
    return fields.field_of(order, delta)


@njit(**OPTIONS)
def field_of_fresh(order, delta):
    return fields.field_of_fresh(order, delta)


@njit(**OPTIONS)
def add_field_means(field, statistics, out):
    fields.add_field_means(field, statistics, out)


@njit(MOMENTS(GROUPS), **OPEN)
def no_moments(groups):
    return prior.no_moments(groups)


@njit(Matrix(MOMENTS, types.int64, types.float64), **OPEN)
def prior_rows(moments, k, ridge):
    return prior.prior_rows(moments, k, ridge)


@njit(types.void(MOMENTS, VECTOR_FUNCTION, types.int64, types.float64, FloatArray), **OPEN)
def append_trained(moments, moments_of, t, ridge, conjugate):
    prior.append_trained(moments, moments_of, t, ridge, conjugate)


@njit(**OPTIONS)
def append_given(moments, t, m, mean_square):
    prior.append_given(moments, t, m, mean_square)


@njit(**OPTIONS)
def squares_of_weights(moments, moments_of, t, ridge, conjugate):
    return prior.squares_of_weights(moments, moments_of, t, ridge, conjugate)
