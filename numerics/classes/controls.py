"""Forces of earlier stages as control variates of a stage's averages.

On the nodes of stage t write f_t = B f + e, with the forces f = (f_1, .., f_{t-1}) of the stages before and the regression B on
them.  What f averages to is known from the nodes of those stages, with which their saddle points agree; of e alone the nodes make
an error:

    E[f_t z] = B E[f z] + <e z>,    z = (1, g_1, .., g_{t-1}, f_1, .., f_{t-1}),    E[f_t f_t^T] = B E[f f^T] B^T + <e e^T>.

A student near its teacher has forces near (ridge_t/ridge_s) f_s, and what is new in its weights is of the order of e: with two
sets of nodes, as one for E[f_s f_s^T] and one for E[f_t f_s^T], their difference would take its place.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from numerics.classes.channel import Averages, Channel
from numerics.classes.prior import Conjugates, in_own_units

Array = NDArray[np.float64]

_DEPENDENT = 1e-13  # correlations of forces that are none but rounding


class Controls:
    """What averages of a stage are corrected by.

    Parameters
    ----------
    known : sequence of Conjugates
        Of the earlier stages.
    rows : sequence of (s, d, d) arrays
        C_s1..C_ss of the earlier stages.
    channel : Channel
        This stage's, whose nodes have forces of the earlier ones.
    """

    def __init__(self, known: Sequence[Conjugates], rows: Sequence[Array], channel: Channel) -> None:
        self.channel, averages = channel, channel.earlier_averages()
        d, t = rows[0].shape[1], len(rows)
        self.d, self.t = d, t
        squares, gap = np.zeros((t, d, t, d)), np.zeros((t, d, t, d))
        normals, means = np.zeros((t, d, t, d)), []
        for s, (conjugates, found) in enumerate(zip(known, averages, strict=True)):
            means.append(conjugates.magnetization - found.force.T)
            for r in range(t):
                # E[f_s g_r^T] by Stein's lemma; f_s does not depend on the normals of later stages.
                expected = sum((conjugates.responses[q] @ rows[q][r] for q in range(r, s + 1)), np.zeros((d, d)))
                normals[s, :, r] = -expected - found.force_normal[r]
            for r in range(s + 1):
                squares[s, :, r], gap[s, :, r] = found.force_force[r], conjugates.overlaps[r] - found.force_force[r]
                squares[r, :, s], gap[r, :, s] = squares[s, :, r].T, gap[s, :, r].T
        self.squares = squares.reshape(t * d, t * d)
        self.gap, self.normals = gap.reshape(t * d, t * d), normals.reshape(t * d, t * d)
        self.means = np.concatenate(means)
        self.inverse = _inverse(self.squares)

    def correct(self, found: Averages) -> None:
        """Averages of the stage, in place."""
        d, t = self.d, self.t
        regression = found.force_force[:t].transpose(1, 0, 2).reshape(d, t * d) @ self.inverse
        rest = self.channel.unexplained(regression)
        if rest is None:
            rest = found.force_force[t] - regression @ self.squares @ regression.T
        found.explained = regression, rest
        found.force += (regression @ self.means).T
        found.force_normal[:t] += self._blocks(regression @ self.normals)
        found.force_force[:t] += self._blocks(regression @ self.gap)
        found.force_force[t] += regression @ self.gap @ regression.T
        slopes = found.slopes
        if slopes is None:
            return
        crossed = slopes.force_force[:t].transpose(1, 0, 2, 3).reshape(d, t * d, -1)
        moved = np.einsum("ajn,jk->ank", crossed, self.inverse)
        slopes.force += (moved @ self.means).transpose(2, 0, 1)
        slopes.force_normal[:t] += self._blocks(moved @ self.normals)
        change = moved @ self.gap
        slopes.force_force[:t] += self._blocks(change)
        half = (change @ regression.T).transpose(0, 2, 1)
        slopes.force_force[t] += half + half.transpose(1, 0, 2)

    def _blocks(self, row: Array) -> Array:
        """(d, td) or (d, n, td) as (t, d, d) or (t, d, d, n)."""
        split = row.reshape(*row.shape[:-1], self.t, self.d)
        return np.moveaxis(split, -2, 0) if row.ndim == 2 else split.transpose(2, 0, 3, 1)


def _inverse(matrix: Array) -> Array:
    """Of a positive semi-definite matrix, where it is not singular."""
    size, values, vectors = in_own_units(matrix)
    values = np.where(values > _DEPENDENT * values[-1], values, np.inf)
    return (vectors / values) @ vectors.T / np.outer(size, size)
