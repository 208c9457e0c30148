"""Gaussian clusters: a prior with a covariance for each, the compiled channel once a cluster, stages solved one by one."""
