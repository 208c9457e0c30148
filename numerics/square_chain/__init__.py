"""Chains of square losses on the same samples: how they are told (``reduction``), and solved through the spectral measure of the
samples (``spectral``, ``training``), at any length.
"""

from numerics.square_chain.reduction import limit_of_self_distillation

__all__ = ["limit_of_self_distillation"]
