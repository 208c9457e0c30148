"""What a user describes: the data and the stages of a chain.  Frozen, and validated once, here at the border.

What one object can know it checks itself; what takes both data and chain is checked by :func:`check_fit`.
"""

from numerics.models.block import Block, Problem
from numerics.models.chain import Chain, check_fit, in_equations, structured
from numerics.models.checks import (
    ROUNDING,
    ConvergenceWarning,
    ParameterError,
    chosen,
    require_count,
    require_noise,
    require_number,
)
from numerics.models.class_mixture import ClassMixture, ClassSet, helmert
from numerics.models.clusters import Clusters
from numerics.models.data import (
    OUTPUTS,
    TRAINING,
    ClassLaw,
    DataModel,
    DataSet,
    GaussianMixture,
    LinearRule,
    total_alpha,
)
from numerics.models.dense import Dense, LinearMap, Seen
from numerics.models.features import FixedFeatures, RandomFeatures
from numerics.models.gram import (
    Gram,
    class_tree,
    equal_overlaps,
    gram_of_correlations,
    mixture_of_samples,
    orthogonal_means,
    similar_pairs,
    simplex_means,
)
from numerics.models.inputs import Inputs, Isotropic, PowerLaw, Spectrum
from numerics.models.measured import Measured
from numerics.models.parameters import (
    PARAMETERS,
    Description,
    allowed_in_between,
    described,
    parameter_paths,
    parameter_value,
    parameter_values,
    with_parameter,
)  # fmt: skip
from numerics.models.shared_covariance import SharedCovariance
from numerics.models.stages import BayesOptimal, Estimator, Frozen, Hebbian, Rule, Stage

__all__ = [
    "OUTPUTS", "PARAMETERS", "ROUNDING", "TRAINING", "BayesOptimal", "Block", "Chain", "ClassLaw", "ClassMixture", "ClassSet",
    "Clusters", "ConvergenceWarning", "DataModel", "DataSet", "Dense", "Description", "Estimator", "FixedFeatures", "Frozen",
    "GaussianMixture", "Gram", "Hebbian", "Inputs", "Isotropic", "LinearMap", "LinearRule", "Measured", "ParameterError",
    "PowerLaw", "Problem", "RandomFeatures", "Rule", "Seen", "SharedCovariance", "Spectrum", "Stage", "allowed_in_between",
    "check_fit", "chosen", "class_tree",
    "described", "equal_overlaps", "gram_of_correlations", "helmert", "in_equations", "mixture_of_samples",
    "orthogonal_means", "parameter_paths", "parameter_value", "parameter_values", "require_count", "require_noise",
    "require_number", "similar_pairs", "simplex_means", "structured", "total_alpha", "with_parameter",
]  # fmt: skip
