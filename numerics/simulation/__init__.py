"""The experiment the theory predicts: train a chain on finite samples, and measure what theory computes.

Nothing here is asymptotic.  Given the trained weights, a test logit of stage t is exactly Gaussian, ``h_t | s
~ N(s w_t.v/N + b_t, Delta |w_t|^2/N)``, jointly over stages with covariance ``Delta w_t.w_s/N``: so
population quantities are computed from a model's own overlaps, without test samples.
"""
