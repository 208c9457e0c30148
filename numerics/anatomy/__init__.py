"""Why a student is as good as it is: which part of its teacher's knowledge it owes what to.

Examples
--------
>>> from numerics import Estimator, GaussianMixture
>>> from numerics.anatomy import anatomy
>>> from theory.losses import CrossEntropy, Distillation
>>> chain = [Estimator(CrossEntropy(), ridge=0.3), Estimator(Distillation(), ridge=0.1)]
>>> found = anatomy(GaussianMixture(alpha=4.0, rho=0.3, delta=1.0, label_noise=0.1), chain)
>>> print(found.sentence.partition(";")[0])
distillation helps: test error 0.2271 on labels alone, 0.1990 with the teacher
"""

from numerics.anatomy.anatomy import Anatomy, SimulatedAnatomy, anatomy, simulate_anatomy
from numerics.anatomy.bounds import compare_teachers, training_rules

__all__ = ["Anatomy", "SimulatedAnatomy", "anatomy", "compare_teachers", "simulate_anatomy", "training_rules"]
