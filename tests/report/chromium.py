"""Drive a headless Chromium over a pipe: what a page logs, throws and asks the network for, and how it looks."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATIENCE = 30.0  # seconds for any one answer: a hang fails instead of blocking
_NOISE = ("error", "warning", "assert")


def find() -> str | None:
    """Return the Chromium to drive: ``ESA_CHROMIUM``, else the first known name on the path."""
    named = os.environ.get("ESA_CHROMIUM")
    return named or next((found for name in NAMES if (found := shutil.which(name))), None)


class BrowserError(Exception):
    """The browser did not answer, or answered with an error."""


class Browser:
    """One Chromium process that speaks the DevTools protocol: JSON ended by a zero byte, on descriptors 3 and 4."""

    def __init__(self, binary: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="esa-chromium-", ignore_cleanup_errors=True)
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        flags = [
            "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--no-first-run", "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
            f"--user-data-dir={self._folder.name}",
        ]  # fmt: skip
        # The shell moves the pipes onto 3 and 4, whatever numbers Python gave them, and becomes the browser.
        moved = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", moved, binary, *flags, "about:blank"],
            pass_fds=(to_read, to_write), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        self._buffer = b""
        self._sent = 0
        self.events: list[dict[str, Any]] = []

    def send(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Send one command and return its result; events that come meanwhile are kept."""
        self._sent += 1
        number = self._sent
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + PATIENCE
        while True:
            answer = self._receive(until, method)
            if answer.get("id") != number:
                self.events.append(answer)
            elif "error" in answer:
                raise BrowserError(f"{method}: {answer['error']}")
            else:
                return dict(answer["result"])

    def wait(self, event: str, session: str) -> dict[str, Any]:
        """Return the parameters of the first ``event`` of a page, past or to come."""
        until = time.monotonic() + PATIENCE
        seen = 0
        while True:
            for message in self.events[seen:]:
                if message.get("method") == event and message.get("sessionId") == session:
                    return dict(message["params"])
            seen = len(self.events)
            self.events.append(self._receive(until, event))

    def _receive(self, until: float, what: str) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], max(until - time.monotonic(), 0))
            if not ready:
                raise BrowserError(f"{what}: no answer in {PATIENCE:g} seconds")
            read = os.read(self._from, 1 << 20)
            if not read:
                raise BrowserError(f"{what}: the browser has gone")
            self._buffer += read
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    @contextlib.contextmanager
    def page(self, address: str, width: int = 1400, height: int = 900, *, script: bool = True) -> Iterator["Page"]:
        """Open an address in a tab of its own and close it afterwards."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        try:
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.send(f"{domain}.enable", session)
            if not script:
                self.send("Emulation.setScriptExecutionDisabled", session, value=True)
            page.resize(width, height)
            self.send("Page.navigate", session, url=address)
            self.wait("Page.loadEventFired", session)
            yield page
        finally:
            self.send("Target.closeTarget", targetId=target)

    def close(self) -> None:
        """End the browser."""
        with contextlib.suppress(BrowserError, OSError):
            self.send("Browser.close")
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._to)
        os.close(self._from)
        self._folder.cleanup()


class Page:
    """One open tab."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command to this tab."""
        return self._browser.send(method, self._session, **params)

    def resize(self, width: int, height: int = 900, scale: float = 1) -> None:
        """Give the viewport a size in CSS pixels."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression; promises are awaited."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise BrowserError(answer["exceptionDetails"].get("exception", {}).get("description", str(answer)))
        return answer["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.evaluate(f"!!({expression})"):
            if time.monotonic() > end:
                raise BrowserError(f"never true: {expression}")
            time.sleep(0.02)

    def click(self, expression: str) -> None:
        """Click, with real mouse events, on the middle of the element that an expression gives."""
        self.point(expression)
        x, y = self._middle(expression)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def enter(self, expression: str) -> None:
        """Press Enter on the element that an expression gives."""
        self.evaluate(f"({expression}).focus()")
        for kind in ("keyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13
            )

    def point(self, expression: str) -> None:
        """Move the mouse to the middle of the element that an expression gives."""
        x, y = self._middle(expression)
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def _middle(self, expression: str) -> tuple[float, float]:
        box = self.evaluate(
            f"(e => {{ e.scrollIntoView({{block: 'center', behavior: 'instant'}}); const b = e.getBoundingClientRect();"
            f" return [b.x + b.width / 2, b.y + b.height / 2] }})({expression})"
        )
        return float(box[0]), float(box[1])

    def events(self, method: str) -> list[dict[str, Any]]:
        """Return the parameters of every event of this tab by one name, those told so far."""
        self.evaluate("0")  # whatever was told before this answer has been read
        found = (one for one in self._browser.events if one.get("sessionId") == self._session)
        return [one["params"] for one in found if one.get("method") == method]

    def complaints(self) -> list[str]:
        """Return what the page said on the console as an error or a warning, threw, or was refused."""
        said = [
            f"console.{one['type']}: {' '.join(str(a.get('value', a.get('description'))) for a in one['args'])}"
            for one in self.events("Runtime.consoleAPICalled")
            if one["type"] in _NOISE
        ]
        thrown = [
            f"thrown: {one['exceptionDetails'].get('exception', {}).get('description', one['exceptionDetails']['text'])}"
            for one in self.events("Runtime.exceptionThrown")
        ]
        logged = [
            f"log: {one['entry']['text']}"
            for one in self.events("Log.entryAdded")
            if one["entry"]["level"] in ("error", "warning")
        ]
        return said + thrown + logged

    def requests(self) -> list[str]:
        """Return the addresses that the page asked for, itself among them; data: and blob: are none."""
        asked = (one["request"]["url"] for one in self.events("Network.requestWillBeSent"))
        return [url for url in asked if not url.startswith(("data:", "blob:"))]

    def overflow(self) -> int:
        """Return by how many pixels the page is wider than the window."""
        return int(self.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))

    def shot(self, path: Path, *, whole: bool = True) -> Path:
        """Write what the page looks like as a PNG."""
        params: dict[str, Any] = {"format": "png", "captureBeyondViewport": whole}
        if whole:
            size = self.send("Page.getLayoutMetrics")["cssContentSize"]
            params["clip"] = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", **params)["data"]))
        return path
