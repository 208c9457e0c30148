"""Memory and time are known before they are spent."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from numerics import Estimator, GaussianMixture, ParameterError, solve, sweep
from numerics.cli.sweep import sweep_command
from numerics.models import Chain
from numerics.phase_diagram import main as phase_diagram
from numerics.settings import DEFAULT
from numerics.sweeps.grid import Grid
from numerics.sweeps.run import LargeGridWarning, require_affordable
from theory.losses import CrossEntropy, Distillation, Loss, SquareLoss

DATA = GaussianMixture(1.3, 0.35, 0.8, label_noise=0.1)
FIRST = Estimator(SquareLoss(), 0.3)
SOLO = Chain.of(Estimator(CrossEntropy(), 0.1))


def rounded(k):
    return Loss.from_expression(f"d**2*(sqrt(1 + ((h - 0.9*h_{k} - 0.1*s)/d)**2) - 1)", {"d": 3e3}, name=f"rounded {k}")


def test_a_chain_that_does_not_fit_is_refused_with_the_numbers():
    chain = [FIRST, *(Estimator(rounded(k), 0.1 * k, eta=1 - 0.08 * k, name=f"s{k}") for k in range(1, 4))]
    small = replace(DEFAULT, memory=1e6)
    with pytest.raises(
        ParameterError, match=r"chain of 4 stages: .* GB for its averages, more than 0.001 GB; ask for a larger rtol"
    ):
        solve(DATA, chain, settings=small)
    refused = sweep(DATA, chain, {"alpha": [1.0]}, settings=small)
    assert not refused.converged.any()
    assert "GB for its averages" in refused.attrs["failures"]


def test_many_nodes_in_blocks_give_what_they_give_at_once():
    """Three stages at a fine step have more nodes than a block holds; the same at the usual step have not."""
    chain = [
        Estimator(CrossEntropy(), 0.1),
        Estimator(Distillation(), 0.1, eta=0.8),
        Estimator(Distillation(mixing=0.5), 0.1, eta=0.6),
    ]
    usual = solve(DATA, chain)
    fine = solve(
        DATA, chain, settings=replace(DEFAULT, field_step=0.3, outer_step=0.12, max_levels=0, check_factor=1.2)
    )
    assert usual.converged
    assert fine[2].norm_squared == pytest.approx(usual[2].norm_squared, rel=1e-8)
    assert fine.response == pytest.approx(usual.response, rel=1e-7, abs=1e-8)


def test_grids_that_do_not_fit_are_refused_and_large_ones_announced():
    axes = {"alpha": "0.1:6:100000", "teacher.ridge": "1e-4:10:10000:log"}
    with pytest.raises(ParameterError, match=r"grid of 1e\+09 points take about 1.3e\+02 GB"):
        sweep(DATA, Estimator(CrossEntropy(), 0.1), axes)
    with pytest.raises(ParameterError, match="at most 1e\\+07 values"):
        sweep(DATA, Estimator(CrossEntropy(), 0.1), {"alpha": "0.1:6:1000000000"})
    over = {"alpha": np.linspace(0.1, 6, 10**5), "teacher.ridge": np.geomspace(1e-4, 10, 10**4)}
    grid = Grid(DATA, SOLO, over, ("test_error",))
    with pytest.warns(LargeGridWarning, match=r"1e\+09 points takes about 28 hours of one core and 64 GB of disk"):
        require_affordable(grid, to_file=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        require_affordable(Grid(DATA, SOLO, {"alpha": np.linspace(0.1, 6, 1000)}, ("test_error",)), to_file=False)


def test_commands_refuse_in_one_line(tmp_path):
    axes = ["--x", "alpha=0.1:6:100000", "--y", "teacher.ridge=1e-5:10:10000:log", "--output", str(tmp_path / "map")]
    result = CliRunner().invoke(phase_diagram, axes)
    assert result.exit_code == 2
    assert "1e+09 points" in result.output
    over = ["--over", "alpha=0.1:6:1000000000", "--output", str(tmp_path / "grid.nc")]
    result = CliRunner().invoke(sweep_command, over)
    assert result.exit_code == 2
    assert "at most 1e+07 values" in result.output
