"""The sums over one node's points, written by hand: what the generated kernel is measured by."""

from __future__ import annotations

import numpy as np
from numba import njit

from numerics.scalar.kernels.elementary import exp_nonpositive

N_SUMS = 13


@njit(nogil=True, fastmath={"reassoc", "contract", "nsz", "arcp", "nnan", "ninf"})
def node_sums(centre, sigma, target, position, gradient, density, first, second, sums):
    """Normalisation, then f, f^2 and df/du, each followed by its derivatives in the centre, sigma and gamma.

    ``first`` and ``second`` are df/du and d2f/du2 at the points; f = target - gradient and df/dgamma = f df/du.  Derivatives in
    sigma of f and f^2 are taken by Stein's lemma, E[g F] = sigma E[dF/du].
    """
    inverse_sigma = 1.0 / sigma
    norm = force = square = slope_ = bend_ = force_slope = square_slope = mixed = g_bend = 0.0
    for j in range(np.uint64(position.size)):
        g = (position[j] - centre) * inverse_sigma
        w = density[j] * exp_nonpositive(-0.5 * g * g)
        f = target - gradient[j]
        slope = first[j]
        bend = second[j]
        norm += w
        force += w * f
        square += w * f * f
        slope_ += w * slope
        bend_ += w * bend
        force_slope += w * f * slope
        square_slope += w * f * f * slope
        mixed += w * (slope * slope + f * bend)
        g_bend += w * g * bend
    sums[0] = norm
    sums[1], sums[2], sums[3], sums[4] = force, slope_, sigma * bend_, force_slope
    sums[5], sums[6], sums[7], sums[8] = square, 2.0 * force_slope, 2.0 * sigma * mixed, 2.0 * square_slope
    sums[9], sums[10], sums[11], sums[12] = slope_, bend_, g_bend, mixed


@njit(nogil=True)
def all_nodes(centres, sigma, targets, position, gradient, density, first, second, sums):
    """Sums of every node, into ``sums`` of shape (n, 13)."""
    for i in range(centres.size):
        node_sums(centres[i], sigma, targets[i], position, gradient, density, first, second, sums[i])
