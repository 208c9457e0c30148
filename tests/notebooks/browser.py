"""A headless Chromium, driven over its debugging protocol; JupyterLab in front of it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE = 120.0
"""Seconds for a server or a page to be there."""


def chromium() -> str:
    """The program; skips the test where there is none."""
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        pytest.skip(f"no browser is installed ({', '.join(CHROMIUM)})")
    return found


@contextlib.contextmanager
def jupyter_lab(folder: Path, python_path: Path) -> Iterator[str]:
    """Address of a JupyterLab that works in ``folder``, its kernels' packages in ``python_path``; skips where there is none."""
    pytest.importorskip("jupyterlab")
    paths = [str(python_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    home = {
        name: str(folder / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    }
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--port=0", "--expose-app-in-browser",
        "--IdentityProvider.token=", "--ServerApp.disable_check_xsrf=True", f"--ServerApp.root_dir={folder}",
    ]  # fmt: skip
    log = folder.parent / "lab.log"
    with open(log, "wb") as file:
        environment = {**os.environ, **home, "PYTHONPATH": os.pathsep.join(paths)}
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=file)
    try:
        yield _waited(lambda: _found(r"http://(?:localhost|127\.0\.0\.1):\d+", log), "JupyterLab")
    finally:
        server.terminate()
        server.wait(30)


def _found(pattern: str, log: Path) -> str | None:
    found = re.search(pattern, log.read_text(errors="replace")) if log.is_file() else None
    return found and found[0]


def _waited(look, what: str) -> str:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found = look()
        if found:
            return found
        time.sleep(0.2)
    raise TimeoutError(f"{what} did not start")


class Page:
    """A page of the browser."""

    def __init__(self, socket) -> None:
        self._socket, self._number = socket, 0

    async def call(self, method: str, **parameters: object) -> dict:
        """Result of a command of the protocol."""
        self._number += 1
        await self._socket.write_message(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(await self._socket.read_message())
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    async def value(self, expression: str) -> object:
        """Value of a JavaScript expression; promises are waited for."""
        found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    async def until(self, expression: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            with contextlib.suppress(RuntimeError):
                if await self.value(f"Boolean({expression})"):
                    return
            await asyncio.sleep(0.2)
        raise TimeoutError(expression)

    async def resize(self, width: int, height: int) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    async def screenshot(self, path: Path) -> None:
        found = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(found["data"]))


@contextlib.asynccontextmanager
async def opened(address: str) -> AsyncIterator[Page]:
    """A browser with a new profile, that shows a page."""
    websocket = pytest.importorskip("tornado.websocket")
    profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    folder = Path(profile.name)
    command = [
        chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--remote-debugging-port=0", "--remote-allow-origins=*", f"--user-data-dir={folder}", "about:blank",
    ]  # fmt: skip
    browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = _waited(lambda: _found(r"^\d+", folder / "DevToolsActivePort"), "Chromium")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
            target = next(found for found in json.load(answer) if found["type"] == "page")
        socket = await websocket.websocket_connect(target["webSocketDebuggerUrl"], max_message_size=2**28)
        page = Page(socket)
        await page.call("Page.enable")
        await page.call("Page.navigate", url=address)
        yield page
        socket.close()
    finally:
        browser.terminate()
        browser.wait(30)
        profile.cleanup()
