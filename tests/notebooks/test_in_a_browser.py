"""The explorer in JupyterLab, its file browser open, on a laptop's screen and on a large one: nothing is cut off."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import nbformat
import pytest
from browser import chromium, jupyter_lab, opened

ROOT = Path(__file__).parents[2]
NOTEBOOK = "explorer.ipynb"
SCREENS = ((1440, 900), (1920, 1080))

KERNEL = """Array.from(window.jupyterapp.shell.widgets('main')).some(
  widget => widget.sessionContext?.session?.kernel?.status === 'idle')"""
ALL_THERE = """(document.querySelector('.jp-Dialog .jp-mod-accept')?.click(),
  document.querySelectorAll('.widget-slider').length >= 10
  && document.querySelector('.jp-OutputArea .widget-image')?.complete)"""
CUT = """
(() => {
  const cell = document.querySelector('.jp-OutputArea-output .widget-vbox');
  const pane = document.querySelector('.jp-Notebook').getBoundingClientRect();
  const wrong = [];
  const shown = element => element.offsetParent !== null;
  for (const element of cell.querySelectorAll('img, button, input, select, .widget-label, .widget-readout, td, th, b')) {
    if (!shown(element)) continue;
    const box = element.getBoundingClientRect();
    const name = element.className + ' ' + (element.textContent || element.value || element.tagName);
    if (box.width === 0 || box.height === 0) wrong.push('empty: ' + name);
    if (box.right > pane.right + 0.5 || box.left < pane.left - 0.5) wrong.push('outside: ' + name);
    const text = document.createRange();
    text.selectNodeContents(element);
    if (element.tagName === 'BUTTON' && text.getBoundingClientRect().width > element.clientWidth) wrong.push('narrow: ' + name);
    if (element.tagName === 'SELECT' && element.selectedIndex < 0) wrong.push('nothing chosen: ' + name);
    if (element.scrollWidth > element.clientWidth + 1 && element.clientWidth > 0 && getComputedStyle(element).display !== 'inline')
      wrong.push('narrow: ' + name + ' ' + element.scrollWidth + ' > ' + element.clientWidth);
    for (let parent = element.parentElement; parent && cell.contains(parent); parent = parent.parentElement) {
      const outer = parent.getBoundingClientRect();
      if (getComputedStyle(parent).overflowX !== 'visible' && (box.right > outer.right + 0.5 || box.bottom > outer.bottom + 0.5))
        wrong.push('cut off: ' + name);
    }
  }
  return wrong;
})()
"""
PICTURE = """
(() => {
  const box = document.querySelector('.jp-OutputArea .widget-image').getBoundingClientRect();
  const pane = document.querySelector('.jp-Notebook').getBoundingClientRect();
  return {above: box.top - pane.top, below: Math.min(pane.bottom, window.innerHeight) - box.bottom, width: box.width};
})()
"""
READOUTS = """Array.from(document.querySelectorAll('.widget-slider'),
  slider => slider.offsetParent && slider.innerText.replace(/\\s+/g, ' ').trim()).filter(Boolean)"""
CHOOSE = """
(name => {
  const all = Array.from(document.querySelectorAll('.jp-OutputArea select'));
  const box = all.find(s => Array.from(s.options).some(o => o.text === name));
  box.selectedIndex = Array.from(box.options).findIndex(o => o.text === name);
  box.dispatchEvent(new Event('change', {bubbles: true}));
  return true;
})
"""


def notebook(folder: Path) -> None:
    cell = nbformat.v4.new_code_cell("from numerics.explorer import explore\n\nexplore()")
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel}), folder / NOTEBOOK)


async def look(address: str, folder: Path) -> dict:
    """What is wrong, where the picture is and what sliders say, on each screen; screenshots go to ``folder``."""
    found: dict = {}
    async with opened(f"{address}/lab/tree/{NOTEBOOK}") as page:
        await page.resize(*SCREENS[0])
        await page.until("window.jupyterapp && document.querySelector('.jp-Notebook .jp-CodeCell')")
        await page.until(KERNEL)
        assert await page.value("document.querySelector('.jp-FileBrowser').offsetParent !== null")
        await page.value("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
        await page.until(ALL_THERE)
        for screen in SCREENS:
            await page.resize(*screen)
            await asyncio.sleep(1.0)
            await page.value("document.querySelector('.jp-CodeCell').scrollIntoView(true)")
            await page.screenshot(folder / f"explorer_{screen[0]}.png")
            found[screen] = (await page.value(CUT), await page.value(PICTURE), await page.value(READOUTS))
        await page.resize(*SCREENS[0])
        await page.value(f"{CHOOSE}('regression')")
        await page.until(f"{READOUTS}.some(text => text.startsWith('noise of the rule'))")
        await page.until("document.querySelector('.jp-OutputArea').innerText.includes('excess risk')")
        await asyncio.sleep(1.0)
        await page.screenshot(folder / "explorer_regression.png")
        found["regression"] = (await page.value(CUT), await page.value(PICTURE), await page.value(READOUTS))
    return found


@pytest.mark.slow
def test_nothing_is_cut_off(tmp_path: Path) -> None:
    chromium()
    folder = tmp_path / "lab"
    folder.mkdir()
    notebook(folder)
    pictures = Path(os.environ.get("SCREENSHOTS", tmp_path))
    with jupyter_lab(folder, ROOT) as address:
        found = asyncio.run(look(address, pictures))
    for screen, (wrong, picture, said) in found.items():
        assert wrong == [], screen
        assert picture["above"] >= 0, screen
        assert picture["below"] >= 0, screen
        assert picture["width"] > 850, screen
        names = " ".join(said)
        if screen == "regression":
            assert "noise of the rule 0.25" in names  # and a digit: the browser rounds to a step of the slider
            assert "label smoothing" not in names
        else:
            assert "student's ridge 1.0e-5" in names
            assert "label noise 0.00" in names
            assert "label smoothing 0.00" in names
            assert "noise of the rule" not in names
