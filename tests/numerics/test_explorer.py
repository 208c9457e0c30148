"""The notebook interface, driven through its widgets' values: no browser."""

from __future__ import annotations

import base64
import json
import math
import re
import warnings
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import xarray
from matplotlib.colors import to_hex
from PIL import Image

pytest.importorskip("ipywidgets")

from numerics import ClassMixture, Estimator, GaussianMixture, explorer, similar_pairs, simulate, solve
from numerics.explorer import SLIDERS, Explorer, explore
from numerics.models import Chain, ParameterError, with_parameter
from numerics.phase_diagram import SIMULATED_ALPHAS
from numerics.plots import style
from numerics.settings import DEFAULT
from numerics.solution.observables.registry import observables_of
from numerics.thresholds import bayes_error, separability_threshold
from theory.losses import CrossEntropy, Distillation

ELSEWHERE = ("noise", "slope", "classes", "rarest", "similarity")
START = {slider.key: slider.value for slider in SLIDERS if slider.key not in ELSEWHERE}
"""Where the sliders of two classes start."""


@pytest.fixture(scope="module")
def one() -> Explorer:
    return explore()


@pytest.fixture
def shown(one: Explorer) -> Explorer:
    """As it is at the beginning."""
    one._simulations.clear()
    one._seconds.clear()
    for choice, name in zip(one.choices, ("generalization_gap", "norm"), strict=True):
        choice.value = name
    one.inputs.value, one.runs.value, one.seed.value, one.file.value = 400, 10, 0, "explore"
    one.set(rule=None, **START)
    assert one.message == "all points converged"
    return one


@pytest.fixture
def small(shown: Explorer) -> Explorer:
    """With a simulation that takes no time."""
    shown.inputs.value, shown.runs.value = 60, 3
    return shown


def model(**values: float) -> tuple[GaussianMixture, Chain]:
    """What the sliders should describe, written out."""
    v = START | values
    teacher = Estimator(CrossEntropy(v["smoothing"]), v["teacher_ridge"])
    student = Estimator(Distillation(v["chi"], v["temperature"], v["smoothing"]), v["student_ridge"], eta=v["eta"])
    return GaussianMixture(v["alpha"], v["rho"], v["delta"], v["label_noise"]), Chain((teacher, student))


def plain(html: str) -> str:
    """Text of some HTML, cells separated by |."""
    cells = html.replace("</td><td>", "|").replace("</td>", "|\n").replace("</th>", "|")
    return unescape(re.sub(r"<[^>]*>", "", cells))


def pixels(shown: Explorer) -> np.ndarray:
    return shown._render().copy()


@pytest.mark.parametrize(
    "moved",
    [
        {},
        {"alpha": 2.0},
        {"rho": 0.5},
        {"delta": 3.0},
        {"teacher_ridge": 1e-3},
        {"student_ridge": 0.3},
        {"eta": 0.9},
        {"chi": 0.4},
        {"temperature": 7.0},
        {"label_noise": 0.2},
        {"smoothing": 0.1},
    ],
    ids=str,
)
def test_curves_and_marks_are_what_solve_gives(shown: Explorer, moved: dict[str, float]) -> None:
    for key, value in moved.items():
        shown.sliders[key].value = value
    assert shown.message == "all points converged"
    assert shown.alphas.size == 60
    assert shown.model == model(**moved)
    data, chain = shown.model
    for i in range(0, 60, 7):
        solution = solve(*with_parameter(data, chain, "alpha", float(shown.alphas[i])))
        for panel, name in zip(shown._panels, ("test_error", "generalization_gap", "norm"), strict=True):
            for k, line in enumerate(panel.lines):
                x, y = line.get_data()
                assert x[i] == shown.alphas[i]
                assert y[i] == pytest.approx(getattr(solution[k], name), rel=1e-6, abs=1e-9)
    here = solve(data, chain)
    for panel, name in zip(shown._panels, ("test_error", "generalization_gap", "norm"), strict=True):
        assert panel.here.get_xdata()[0] == data.alpha
        for k, dot in enumerate(panel.dots):
            assert dot.get_xdata()[0] == data.alpha
            assert dot.get_ydata()[0] == pytest.approx(getattr(here[k], name), rel=1e-9)
    bound = shown._panels[0].bound.get_ydata()
    np.testing.assert_allclose(bound, bayes_error(shown.alphas, data.rho, data.delta, chain[1].eta))


def test_thresholds_are_marked_where_they_are_inside(shown: Explorer) -> None:
    expected = {
        "interpolation": 0.5,
        "student_separability": separability_threshold(0.2, 1.0, 0.5),
        "teacher_separability": separability_threshold(0.2, 1.0),
    }
    for name, (line, text) in shown._panels[0].thresholds.items():
        assert line.get_visible()
        assert line.get_xdata()[0] == text.xy[0] == pytest.approx(expected[name])
    assert np.any(shown.alphas == 0.5)  # the peak is not between points
    shown.sliders["delta"].value = 0.3  # separable up to alpha far outside
    assert not shown._panels[0].thresholds["teacher_separability"][0].get_visible()
    shown.set(delta=1.0, chi=0.0)  # on labels alone nothing is interpolated
    assert not shown._panels[0].thresholds["interpolation"][0].get_visible()


OBSERVABLES = observables_of(GaussianMixture(1.0))


@pytest.mark.parametrize("name", OBSERVABLES)
def test_every_observable_can_be_drawn(shown: Explorer, name: str) -> None:
    before = shown.picture.value
    shown.choices[0].value = name
    assert shown.message == "all points converged"
    assert shown.choices[0].value == shown._panels[1].name == name
    solution = solve(*with_parameter(*shown.model, "alpha", float(shown.alphas[40])))
    expected = [getattr(stage, name) for stage in solution.stages]
    np.testing.assert_allclose(shown.curves[name][:, 40], expected, rtol=1e-5, atol=1e-9)
    if name != "generalization_gap":
        assert shown.picture.value != before
    low, high = shown._panels[1].axes.get_ylim()
    drawn = shown.curves[name][np.isfinite(shown.curves[name])]
    assert low <= drawn.min()
    assert drawn.max() <= high


def test_moving_alpha_alone_keeps_the_curves(shown: Explorer) -> None:
    curves, before = shown.curves["test_error"], shown.picture.value
    shown.sliders["alpha"].value = 1.7
    assert shown.curves["test_error"] is curves
    assert shown.picture.value != before
    assert "alpha = 1.7" in plain(shown.table.value)


def test_table_holds_the_current_numbers(shown: Explorer) -> None:
    shown.set(alpha=1.3, chi=0.6)
    solution = solve(*shown.model)
    text = plain(shown.table.value)
    assert "alpha = 1.3: converged; quadrature error" in text
    assert f"{solution.quadrature_error:.1e}" in text
    for name in OBSERVABLES:
        cells = [f"{value:.6g}" if value == value else "–" for value in (getattr(s, name) for s in solution.stages)]
        assert f"{explorer.plain_label(name)}|{'|'.join(cells)}|" in text
    assert f"overlap Q of both||{solution.overlap[1, 0]:.6g}|" in text
    assert f"response V of student to teacher||{solution.response[1, 0]:.6g}|" in text
    assert "$" not in text


def test_points_that_do_not_converge_are_left_out_and_named() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shown = explore(settings=replace(DEFAULT, rtol=1e-12, max_levels=1), alpha=0.5)
    missing = np.isnan(shown.curves["test_error"])
    assert missing.any()
    np.testing.assert_array_equal(missing[0], missing[1])
    first = shown.alphas[missing[0]][0]
    assert f"{missing[0].sum()} of 60 points did not converge and are left out: alpha = {first:.3g}" in shown.message
    assert "the current point did not converge: the quadrature error" in shown.message
    assert "not converged" in plain(shown.table.value)
    assert "test error|–|–|" in plain(shown.table.value)
    assert math.isnan(shown._panels[0].dots[1].get_ydata()[0])
    np.testing.assert_array_equal(np.isnan(shown._panels[0].lines[1].get_ydata()), missing[1])


def test_one_panel_drawn_again_looks_like_all_drawn_again(shown: Explorer) -> None:
    """Axes that changed are drawn over the others' background."""
    shown.set(eta=0.8, teacher_ridge=1e-4, rho=0.45)
    shown.choices[0].value = "response"
    shown.choices[1].value = "calibration_offset"
    partly = pixels(shown)
    shown._background = None
    np.testing.assert_array_equal(partly, pixels(shown))


def test_what_takes_long_is_drawn_last(shown: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = []

    def watched(**how: bool) -> None:
        pictures.append(
            [(line.get_alpha(), line.get_ydata().copy()) for panel in shown._panels for line in panel.lines]
        )

    monkeypatch.setattr(shown, "_show", watched)
    old = shown.curves
    shown._seconds["generalization_gap"], shown._seconds["norm"] = 1.0, 0.0
    shown.sliders["teacher_ridge"].value = 0.5
    first, last = pictures
    for k in (2, 3):
        assert first[k][0] < 0.5
        np.testing.assert_array_equal(first[k][1], old["generalization_gap"][k - 2])
    names = ("test_error", "generalization_gap", "norm")
    for k, (alpha, drawn) in enumerate(last):
        assert alpha is None
        np.testing.assert_array_equal(drawn, shown.curves[names[k // 2]][k % 2])
    for k in (0, 1, 4, 5):
        np.testing.assert_array_equal(first[k][1], last[k][1])
    pictures.clear()
    shown.sliders["alpha"].value = 0.9  # nothing to wait for
    assert len(pictures) == 1


def test_axes_stay_while_curves_fit(shown: Explorer) -> None:
    limits = [panel.limits for panel in shown._panels]
    shown.sliders["teacher_ridge"].value = 0.11
    assert [panel.limits for panel in shown._panels] == limits


def test_setting_several_draws_once(shown: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(shown, "redraw", lambda: calls.append(shown.parameters))
    shown.set(alpha=0.3, eta=0.7)
    assert calls == [shown.parameters]
    assert (shown.parameters["alpha"], shown.parameters["eta"]) == (0.3, 0.7)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"noise": 1.0}, "unknown parameter 'noise'; there are alpha, rho, delta"),
        ({"rule": "identity", "temperature": 2.0}, "unknown parameter 'temperature'; there are alpha, noise"),
        ({"rule": "cube"}, "rule must be None or one of identity, sign, probit, logit, many-classes, got 'cube'"),
        ({"rule": "many-classes", "classes": 3.5}, "classes must be an integer, got 3.5"),
        ({"rule": "many-classes", "classes": 7}, r"classes must be in \[3, 6\] here, got 7"),
        ({"rule": "many-classes", "rho": 0.5}, "unknown parameter 'rho'; there are classes, rarest, alpha, similarity"),
        ({"beta": 1.0}, "unknown parameter 'beta'; there are alpha, rho, delta"),
        ({"alpha": 100.0}, r"alpha must be in \[0.05, 6\] here, got 100.0"),
        ({"eta": 0.0}, r"eta must be in \[0.05, 1\]"),
        ({"rho": math.nan}, "rho must be in"),
        ({"chi": "half"}, r"chi must be in \[0, 1\] here, got 'half'"),
    ],
)
def test_values_outside_the_sliders_are_refused(values: dict[str, float], text: str) -> None:
    with pytest.raises(ParameterError, match=text):
        explore(**values)


def test_sliders_reach_their_ends(shown: Explorer) -> None:
    """Every corner of a slider gives a picture and a message, never an error."""
    ends = {slider.key: slider.ends for slider in SLIDERS}
    for key, value in START.items():
        for end in (ends[key].low, ends[key].high):
            shown.set(**{key: end})
            assert "converge" in shown.message
            assert np.isfinite(shown.curves["test_error"]).all(), (key, end, shown.message)
        shown.set(**{key: value})


def test_errors_are_one_line(shown: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **how: object) -> None:
        raise RuntimeError("two\nlines <b>")

    monkeypatch.setattr(explorer, "solve", broken)
    shown.sliders["eta"].value = 0.4
    assert shown.message == "RuntimeError: two lines <b>"
    assert "two lines &lt;b&gt;" in shown.status.value
    assert style.RED in shown.status.value
    monkeypatch.undo()
    shown.sliders["eta"].value = 0.5
    assert shown.message == "all points converged"
    assert style.RED not in shown.status.value


@pytest.mark.parametrize(
    ("rule", "eta", "first", "has", "lacks"),
    [
        ("identity", 1.0, "excess_risk", {"noise"}, {"rho", "delta", "temperature", "label_noise", "smoothing"}),
        ("sign", 0.5, "test_error", {"label_noise", "temperature", "smoothing"}, {"rho", "delta", "noise"}),
        ("probit", 0.5, "test_error", {"noise", "label_noise"}, {"rho", "delta", "slope"}),
        pytest.param(
            "logit", 1.0, "test_error", {"slope", "label_noise"}, {"rho", "delta", "noise"}, marks=pytest.mark.slow
        ),
    ],
)
def test_rules_and_regression(shown: Explorer, rule: str, eta: float, first: str, has: set, lacks: set) -> None:
    shown.rules.value = rule
    shown.set(teacher_ridge=0.2, student_ridge=0.05, eta=eta, chi=0.7)
    assert shown.message == "all points converged"
    assert has <= set(shown.parameters)
    assert not lacks & set(shown.parameters)
    assert {key for key, slider in shown.sliders.items() if slider.layout.display == "none"} == set(
        shown.sliders
    ) - set(shown.parameters)
    data, chain = shown.model
    assert data.output == rule
    assert set(name for _, name in shown.choices[0].options) == set(observables_of(data))
    for i in (3, 30, 55):
        solution = solve(*with_parameter(data, chain, "alpha", float(shown.alphas[i])))
        for panel, name in zip(shown._panels, (first, *(choice.value for choice in shown.choices)), strict=True):
            assert panel.name == name
            for k, line in enumerate(panel.lines):
                assert line.get_ydata()[i] == pytest.approx(getattr(solution[k], name), rel=1e-6, abs=1e-9)
    assert "Bayes bound on the student's inputs" not in [
        text.get_text() for text in shown.figure.legends[0].get_texts()
    ]
    assert repr(shown).startswith(f"explore(rule={rule!r}, alpha=")
    again = eval(repr(shown), {"explore": explore})
    assert (again.rule, again.parameters) == (rule, shown.parameters)
    shown.inputs.value, shown.runs.value = 60, 3
    shown.buttons["simulate"].click()
    assert "differ from theory" in shown.message, shown.message
    shown.rules.value = explorer.CLASSES
    assert shown.message == "all points converged"
    assert shown._panels[0].name == "test_error"
    assert len(shown.figure.legends[0].get_texts()) == 4


@pytest.mark.slow
def test_many_classes(shown: Explorer, tmp_path: Path) -> None:
    chosen = {"teacher_ridge": 0.2, "student_ridge": 0.1, "temperature": 2.0, "alpha": 2.0}
    shown.set(rule=explorer.MANY, classes=3, similarity=0.6, rarest=0.5, **chosen)
    assert shown.message == "all points converged"
    data, chain = shown.model
    assert data == ClassMixture(2.0, [0.4, 0.4, 0.2], similar_pairs(3, 0.6))
    assert chain[1] == Estimator(Distillation(temperature=2.0), 0.1, eta=0.5)
    assert {"rho", "noise", "slope"}.isdisjoint(shown.parameters)
    assert shown.sliders["similarity"].layout.display is None
    assert shown.sliders["rho"].layout.display == "none"
    for i in (2, 11, 18):
        solution = solve(*with_parameter(data, chain, "alpha", float(shown.alphas[i])))
        for panel, name in zip(shown._panels, ("test_error", "generalization_gap", "norm"), strict=True):
            for k, line in enumerate(panel.lines):
                assert line.get_ydata()[i] == pytest.approx(getattr(solution[k], name), rel=3e-3, abs=3e-3)
    here = solve(data, chain)
    assert shown._panels[0].dots[1].get_ydata()[0] == pytest.approx(here[1].test_error, abs=1e-9)
    assert f"overlap Q of both||{np.trace(here.overlap[1, 0]):.6g}|" in plain(shown.table.value)
    assert repr(shown).startswith(
        "explore(rule='many-classes', classes=3, rarest=0.5, alpha=2, similarity=0.6, delta=1, "
    )
    shown.inputs.value, shown.runs.value = 60, 3
    shown.buttons["simulate"].click()
    assert "test errors differ from theory" in shown.message, shown.message
    assert np.median(np.abs(np.divide(*shown.deviations("test_error")))) < 3.0
    shown.save(tmp_path / "classes.nc")
    point = xarray.load_dataset(tmp_path / "classes.nc", group="point")
    np.testing.assert_allclose(point.overlap, here.overlap, atol=1e-9)
    curves = xarray.load_dataset(tmp_path / "classes.nc", group="curves")
    np.testing.assert_allclose(curves.test_error, shown.curves["test_error"], atol=2e-3)
    shown.sliders["classes"].value = 4
    assert shown.model[0] == ClassMixture(2.0, np.array([2, 2, 2, 1]) / 7, similar_pairs(4, 0.6))
    assert shown.message == "all points converged"


def test_small_values_are_shown_as_powers_of_ten(shown: Explorer) -> None:
    for value, form in ((1e-5, ".1e"), (0.009, ".1e"), (0.02, ".3g"), (3.0, ".3g")):
        shown.set(student_ridge=value)
        assert shown.sliders["student_ridge"].readout_format == form
    assert shown.sliders["label_noise"].readout_format == ".3g"  # 0


# The simulation.


def test_the_button_overlays_a_simulation(small: Explorer) -> None:
    before = small.picture.value
    small.seed.value = 3
    small.buttons["simulate"].click()
    points = small.simulation
    assert points is not None, small.message
    assert small.message.startswith(
        f"simulated {points.alpha.size} values of alpha, 3 runs at N = 60; test errors differ"
    )
    assert small.picture.value != before
    asked = np.unique([max(2, round(alpha * 60)) for alpha in (*SIMULATED_ALPHAS, 0.8)]) / 60  # whole samples
    assert set(points.alpha.values) <= set(asked)
    number = len(asked) - 2
    alpha = float(asked[number])
    seed = int(np.random.SeedSequence([3, number]).generate_state(1)[0])
    runs = simulate(*with_parameter(*small.model, "alpha", alpha), 60, 3, seed)
    here = points.sel(alpha=alpha)
    for k in range(2):
        assert here.test_error.values[k] == pytest.approx(runs[k].test_error.mean)
        assert here.test_error_standard_error.values[k] == pytest.approx(runs[k].test_error.standard_error)
    panel = small._panels[0]
    colours = {
        to_hex(bar.get_color()) for bar in panel.bars if hasattr(bar, "get_xdata") and bar.get_marker() != "None"
    }
    assert colours == {style.BLUE.lower(), style.RED.lower()}
    marks = [bar for bar in panel.bars if hasattr(bar, "get_xdata") and bar.get_marker() == "s"]
    np.testing.assert_allclose(marks[0].get_ydata(), points.test_error.sel(stage="student"))
    assert pytest.approx(float(points.alpha.sel(alpha=0.8, method="nearest"))) == 0.8


def test_simulations_belong_to_their_parameters(small: Explorer) -> None:
    small.buttons["simulate"].click()
    points = small.simulation
    small.sliders["alpha"].value = 2.0
    assert small.simulation is points
    small.sliders["eta"].value = 0.6
    assert small.simulation is None
    assert not small._panels[0].bars
    small.sliders["eta"].value = 0.5
    assert small.simulation is points
    assert small._panels[0].bars
    small.choices[0].value = "free_energy"
    assert small._panels[1].bars
    small.choices[0].value = "response"  # not measured
    assert "converged" in small.message
    small.buttons["clear"].click()
    assert small.simulation is None
    assert not small._panels[0].bars


def test_the_interface_says_that_it_is_busy(small: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watched(data: GaussianMixture, *args: object) -> object:
        controls = [*small.sliders.values(), *small.buttons.values(), *small.choices]
        seen.append((small.message, all(c.disabled for c in controls), small.progress.layout.visibility))
        return simulate(data, *args)

    monkeypatch.setattr(explorer, "simulate", watched)
    small.buttons["simulate"].click()
    assert len(seen) == small.progress.max == small.progress.value
    assert all(message.startswith("busy: simulating alpha = ") for message, _, _ in seen)
    assert all(off and visible == "visible" for _, off, visible in seen)
    assert small.progress.layout.visibility == "hidden"
    assert not any(control.disabled for control in (*small.sliders.values(), *small.buttons.values()))


def test_points_that_cannot_be_simulated_are_left_out_and_named(small: Explorer) -> None:
    small.set(rho=0.02)
    small.inputs.value = 20  # few samples: often of one class
    small.buttons["simulate"].click()
    assert "left out (alpha = 0.1: " in small.message or small.message.startswith("no simulation: alpha = ")
    assert "\n" not in small.message
    assert "Traceback" not in small.status.value


def test_an_error_in_a_simulation_is_one_line(small: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(explorer, "simulate", broken)
    small.buttons["simulate"].click()
    assert small.message == "MemoryError: no room"
    assert not small.buttons["simulate"].disabled


def test_an_interruption_keeps_the_points_that_are_done(small: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def interrupted(*args: object) -> object:
        calls.append(args)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return simulate(*args)

    monkeypatch.setattr(explorer, "simulate", interrupted)
    small.set(rho=0.5)
    small.buttons["simulate"].click()
    assert "interrupted, 6 not simulated" in small.message
    assert 1 <= small.simulation.alpha.size <= 4
    assert not small.buttons["simulate"].disabled


def test_simulation_agrees_with_theory() -> None:
    shown = explore(student_ridge=0.1)
    shown.inputs.value, shown.runs.value = 200, 8
    shown.buttons["simulate"].click()
    difference, error = shown.deviations("test_error")
    assert difference.size >= 18
    assert np.all(np.abs(difference) < 6 * error + 5 / 200)
    assert shown.simulation.attrs["n_inputs"] == 200


# Files.


@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_the_figure_is_saved(shown: Explorer, tmp_path: Path, suffix: str) -> None:
    shown.file.value = str(tmp_path / "new" / "picture")
    before = pixels(shown)
    shown.buttons[suffix].click()
    path = tmp_path / "new" / f"picture.{suffix}"
    assert shown.message == f"saved {path}"
    if suffix == "png":
        with Image.open(path) as picture:
            assert picture.size == (3060, 885)
            assert picture.info["Description"].startswith("explore(alpha=0.8")
            red = [int(style.RED[i : i + 2], 16) for i in (1, 3, 5)]
            assert np.all(np.asarray(picture.convert("RGB")) == red, axis=-1).any()  # curves, not only axes
    else:
        assert path.read_bytes().startswith(b"%PDF")
    np.testing.assert_array_equal(before, pixels(shown))  # the screen is as before
    shown.buttons[suffix].click()
    assert shown.message == f"saved {path}, which replaces the one that was there"
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_data_are_saved_and_can_be_run_again(small: Explorer, tmp_path: Path) -> None:
    small.set(alpha=1.1, eta=0.6, teacher_ridge=0.02)
    small.buttons["simulate"].click()
    small.file.value = str(tmp_path / "data.png")  # a known suffix is not part of the name
    small.buttons["nc"].click()
    path = tmp_path / "data.nc"
    assert small.message == f"saved {path}"
    head = xarray.load_dataset(path)
    again = eval(head.attrs["rerun"].removeprefix("numerics.explorer."), {"explore": explore})
    assert again.parameters == small.parameters == json.loads(head.attrs["parameters"])
    assert head.attrs["data"] == repr(small.model[0])
    assert head.attrs["chain"] == repr(small.model[1])
    assert "version_numba" in head.attrs
    curves = xarray.load_dataset(path, group="curves")
    np.testing.assert_array_equal(curves.alpha, again.alphas)
    assert bool(curves.converged.all())
    for name in ("test_error", "generalization_gap", "norm"):
        np.testing.assert_allclose(curves[name], again.curves[name], rtol=1e-6, atol=1e-9)
    assert curves.test_error.attrs["long_name"] == "test error"
    point = xarray.load_dataset(path, group="point")
    assert float(point.alpha) == 1.1
    np.testing.assert_allclose(point.overlap, small.solution.overlap)
    assert {*OBSERVABLES, *(f"{name}_quadrature_error" for name in OBSERVABLES)} <= set(point.data_vars)
    points = xarray.load_dataset(path, group="simulation")
    np.testing.assert_array_equal(points.test_error, small.simulation.test_error)
    assert (points.attrs["n_inputs"], points.attrs["n_runs"], points.attrs["seed"]) == (60, 3, 0)


def test_bad_paths_are_one_line(shown: Explorer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    for name in (
        "",
        "   ",
        str(tmp_path / "file" / "inside"),
        str(tmp_path / "folder"),
        "~nobody_of_that_name/x",
        "a\0b",
    ):
        shown.file.value = name
        shown.buttons["png"].click()
        assert style.RED in shown.status.value, name
        assert shown.message, name
        assert not shown.message.startswith(("saved", "busy")), name
        assert "\n" not in shown.message, name
    assert (tmp_path / "file").read_text() == ""
    assert sorted(found.name for found in tmp_path.iterdir()) == ["file", "folder.png"]


def test_an_interrupted_file_leaves_the_old_one(
    shown: Explorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    path = tmp_path / "kept.png"
    shown.save(path)
    old = path.read_bytes()

    def full(*args: object, **how: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shown.figure, "savefig", full)
    shown.file.value = str(path)
    shown.buttons["png"].click()
    assert "No space left on device" in shown.message
    assert path.read_bytes() == old
    assert [found.name for found in tmp_path.iterdir()] == ["kept.png"]


def test_other_formats_are_refused(shown: Explorer, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"saved as \.png, \.pdf, \.nc, got 'x\.svg'"):
        shown.save(tmp_path / "x.svg")


# In a notebook.


def test_it_is_shown_as_a_widget_or_a_picture(shown: Explorer) -> None:
    bundle = shown._repr_mimebundle_()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == shown.widget.model_id
    picture = base64.b64decode(bundle["image/png"])
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 40_000
    assert bundle["text/plain"] == repr(shown)
    assert repr(shown).startswith("explore(alpha=0.8, rho=0.2, delta=1, teacher_ridge=0.1")
    assert eval(repr(shown), {"explore": explore}).parameters == shown.parameters


def test_labels_of_the_table_are_no_code() -> None:
    for name in explorer.OBSERVABLES:
        assert not set("$\\^{}") & set(explorer.plain_label(name)), name
    assert explorer.plain_label("excess_risk") == "excess risk |w − θ|²/N"
