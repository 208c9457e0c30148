"""The loop over a node's points, and the table it reads: printed from ``theory.envelope``, nothing is written here."""

from __future__ import annotations

from numerics.codegen.equations import averages_module

_averages = averages_module()

N_SUMS = _averages.N_SUMS
"""Sums over the points of a node."""

TABLE_ROWS, DENSITY_ROW = _averages.TABLE_ROWS, _averages.DENSITY_ROW
"""Rows of the table of points, and the one that holds the Gaussian prefactor."""

point_coefficients, accumulate_pairs = _averages.point_coefficients, _averages.accumulate_pairs
