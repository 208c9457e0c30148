"""``python -m theory``: the printed derivation follows the choices and refuses bad input in one line."""

import re
import shutil
import subprocess
import sys

import pytest
from sympy import symbols

from theory.__main__ import run
from theory.typesetting import LINE, broken, width


@pytest.fixture
def show(capsys):
    def call(*arguments):
        code = run(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_two_stages_in_the_notation_of_the_paper(show):
    code, text, _ = show("--stages", "2")
    assert code == 0
    for line in (
        "m~ = eta~*mhat~/(dqhat~ + lambda~)",
        "dShat = Delta*E[df/domega~]*alpha",
        "Shat = Delta*E[f f~]*alpha",
        "dS = dShat*eta/((dqhat + lambda)*(dqhat~ + lambda~))",
        "u = Delta*dS*f~ + omega",
        "0 = E[f]*alpha",
    ):
        assert line in text, line
    assert "Q_21" not in text
    assert "n~ -> 0" in text


def test_longer_chains_use_the_general_notation(show):
    code, text, _ = show("--stages", "3", "--loss", "cross-entropy")
    assert code == 0
    assert "Vh_31 = -Delta*E[df_3/domega_1]*alpha" in text
    assert "u_3 = Delta*V_31*f_1 + Delta*V_32*f_2 + omega_3" in text
    assert "ForceSlope" not in text


def test_the_loss_changes_the_print(show):
    outputs = [show("--loss", loss)[1] for loss in ("distillation", "square", "log(1+exp(-s*h)) + h**2")]
    assert len(set(outputs)) == 3
    assert "f = -h + 2*y - 1" in outputs[1]
    assert "f = -2*h + y - sigmoid(h)" in outputs[2]


def test_formula_with_parameters(show):
    code, text, _ = show("--loss", "softplus(h) - y*h + a*(h - h_teacher)**2", "-p", "a=0.5")
    assert code == 0
    assert "2*a*h~" in text


def test_hard_pseudo_labels(show):
    code, text, _ = show("--stages", "3", "--loss", "pseudo-labels", "-p", "smoothing=0.1")
    assert code == 0
    assert "f_3 = chi*step(h_2) + (chi - 1)*(2*epsilon*y - epsilon - y) - sigmoid(h_3)" in text
    assert "step is 0 below 0 and 1 above" in text
    code, text, _ = show("--stages", "3", "--loss", "softplus(h) - h*(step(h_1) + step(h_2))/2", "--latex")
    assert code == 0
    assert r"\Theta\left(h_{1}\right)" in text


def test_one_stage_defaults_to_cross_entropy(show):
    code, text, _ = show("--stages", "1")
    assert code == 0
    assert "f~ = " in text
    assert "stage 2" not in text


@pytest.mark.parametrize("stages", ["1", "2", "3"])
def test_latex_document(show, stages):
    code, text, _ = show("--latex", "--stages", stages)
    assert code == 0
    assert text.startswith(r"\documentclass")
    assert text.rstrip().endswith(r"\end{document}")
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")
    assert text.count(r"\begin{align}") == text.count(r"\end{align}") > 10
    assert text.count(r"\left") - text.count(r"\leftarrow") == text.count(r"\right") - text.count(r"\rightarrow")
    assert text.count(r"\Bigl[") == text.count(r"\Bigr]")
    assert "~" not in text
    assert "erf" not in text
    assert "`" not in text
    text.encode("ascii")
    labels = re.findall(r"\\label\{([^}]*)\}", text)
    assert len(labels) == len(set(labels))
    assert set(re.findall(r"\\eqref\{([^}]*)\}", text)) <= set(labels)
    sentences = re.sub(r"\$[^$]*\$|\\begin\{align\}.*?\\end\{align\}|\\texttt.*", "", text, flags=re.S)
    for mark in ("->", "infinity", "beta", "^2", "Delta", "sqrt("):
        assert mark not in sentences, mark


def test_latex_of_a_teacher_and_a_student(show):
    text = show("--latex")[1]
    for line in (
        r"\hat{S} &= \alpha \Delta \mathbb{E}\left[f \tilde{f}\right] \label{2.channel.2}",
        r"\rho H{\left(\frac{b + m}{\sqrt{\Delta} \sqrt{q}} \right)}",
        r"label $y \in \{0, 1\}$ with $P(y=1) = \rho$",
        r"for $n \to 0$, $\tilde{n} \to 0$ and $\beta \to \infty$",
        r"The potential \eqref{2.potential} is stationary in the conjugates.",
        r"$\tilde{\hat{m}}$ & conjugate of the overlap of the teacher with the centre & \eqref{1.ansatz.5} \\",
        r"$\Delta {\delta \tilde{q}} \tilde{f}$ from its cavity field",
    ):
        assert line in text, line


@pytest.mark.parametrize(
    "arguments", [*((f"--stages={n}",) for n in (1, 2, 3, 4)), ("--stages=3", "--classes=3")], ids=str
)
def test_latex_compiles_without_warnings(show, tmp_path, arguments):
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed")
    (tmp_path / "chain.tex").write_text(show("--latex", *arguments)[1])
    for _ in range(3):  # references, and widths of the table
        run = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "chain.tex"]
        assert subprocess.run(run, cwd=tmp_path, capture_output=True).returncode == 0
    log = (tmp_path / "chain.log").read_text(errors="replace")
    assert [line for line in log.splitlines() if re.search(r"[Ww]arning|Overfull|Underfull|undefined", line)] == []


@pytest.mark.parametrize("terms", [3, 40])
def test_long_sums_are_broken(terms):
    a = symbols(f"a_1:{terms + 1}")
    found = broken(symbols("b") * sum(x * symbols("c") ** 2 + x for x in a), LINE)
    assert (len(found) > 1) == (terms > 3)
    assert all(width(line) <= LINE + 4 for line in found)
    assert "".join(found).count("a_{") == 2 * terms


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--stages", "0"], "stages"),
        (["--stages", "1", "--loss", "distillation"], "teacher"),
        (["--loss", "h**3"], "convex"),
        (["--loss", "nonsense"], "nonsense"),
        (["--loss", "h**2 + h*h_2"], "not earlier"),
        (["--loss", "h*step(h)"], "not twice differentiable"),
        (["-p", "mixing"], "NAME=VALUE"),
        (["-p", "mixing=2"], "mixing"),
        (["-p", "mixng=0.5"], "no parameter 'mixng'; its parameters: mixing, temperature, smoothing"),
        (["--stages", "1", "--loss", "log(1+exp(-s*h))", "-p", "a=1"], "no parameter 'a'"),
        (["--stages", "1", "--loss", "a*h**2", "-p", "a=1", "-p", "b=1"], "no parameter 'b'; it has a"),
        (["--stages", "1", "--loss", "a*h**2", "-p", "a=1", "-p", "a=2"], "a is given twice"),
        (["--stages", "1", "--loss", "h**2 + alpha*h", "-p", "alpha=1"], "alpha"),
        (["--stages", "1", "--loss", "h**2*9**9**9"], "digits"),
        (["--stages", "1", "--loss", "h**2/(1-y)"], "not finite at y=1"),
        (["--colour"], "colour"),
    ],
)
def test_bad_input_is_one_line_and_code_two(show, arguments, complaint):
    code, text, error = show(*arguments)
    assert code == 2
    assert text == ""
    assert len(error.strip().splitlines()) == 1
    assert complaint in error


def test_what_is_not_proved_is_said_in_one_line(show):
    code, text, error = show("--stages", "1", "--loss", "-log(erfc(-s*h)/2)")
    assert code == 0
    assert "erfc" in text
    assert error.startswith("warning: loss '-log(erfc(-s*h)/2)' is not proved convex")
    assert len(error.strip().splitlines()) == 1


def test_as_a_module():
    done = subprocess.run([sys.executable, "-m", "theory", "--stages", "1"], capture_output=True, text=True, check=True)
    assert "Entropic part: zero temperature" in done.stdout
