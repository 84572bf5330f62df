"""Chromium without a window, driven through the DevTools protocol over two pipes."""

import base64
import contextlib
import fcntl
import json
import os
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 20
# answers come on 4, commands go to 3
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --disable-extensions --disable-dev-shm-usage --hide-scrollbars --remote-debugging-pipe"
).split()


def chromium() -> str:
    """The browser's path; skips the test where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("chromium is not installed")
    return found


class Browser:
    """A running browser; `page` opens one."""

    def __init__(self, process: subprocess.Popen, commands: int, answers: int) -> None:
        self.process, self.commands, self.answers = process, commands, answers
        self.number, self.buffer, self.events = 0, b"", []
        self.selector = selectors.DefaultSelector()
        self.selector.register(answers, selectors.EVENT_READ)

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """The result of a command; what else is told meanwhile is kept in `events`."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        content = json.dumps(message).encode() + b"\0"
        while content:
            content = content[os.write(self.commands, content) :]
        until = time.monotonic() + PATIENCE
        while True:
            answer = self._next(until)
            if answer.get("id") == self.number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def wait(self, method: str, session: str) -> None:
        """Until an event was told since the last `forget`."""
        until = time.monotonic() + PATIENCE
        while not any(e.get("method") == method and e.get("sessionId") == session for e in self.events):
            self.events.append(self._next(until))

    def page(self, width: int = 1440, height: int = 1000) -> "Page":
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.resize(width, height)
        return page

    def _next(self, until: float) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            if not self.selector.select(timeout=max(until - time.monotonic(), 0)):
                raise TimeoutError(f"chromium said nothing for {PATIENCE} s")
            content = os.read(self.answers, 1 << 20)
            if not content:
                raise EOFError("chromium ended")
            self.buffer += content
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)


class Page:
    """A tab: what it was asked to load, what it complained of, and its mouse and keyboard."""

    def __init__(self, browser: Browser, session: str) -> None:
        self.browser, self.session = browser, session

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **parameters)

    def resize(self, width: int, height: int, touch: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=touch)
        self.call("Emulation.setTouchEmulationEnabled", enabled=touch)

    def prefer(self, scheme: str) -> None:
        """light or dark."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def open(self, path: Path, link: str = "") -> None:
        """Load a file and wait until its viewer, where it has one, is ready."""
        self.browser.events.clear()
        # a tab behind another draws nothing
        self.call("Page.bringToFront")
        # two addresses that differ in their # alone would not load anew
        self.call("Page.navigate", url="about:blank")
        self.browser.wait("Page.loadEventFired", self.session)
        self.browser.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri() + link)
        self.browser.wait("Page.loadEventFired", self.session)
        self.value("window.ccnet?.ready.then(() => true)")

    def value(self, expression: str) -> Any:
        """What JavaScript makes of an expression, a promise awaited; AssertionError where it throws."""
        done = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def settle(self) -> None:
        """Let the page draw what it was asked for, and wait for what follows once the point rests."""
        frame = "new Promise((done) => requestAnimationFrame(done))"
        # the page draws in the next frame, and 200 ms later updates what follows
        self.value(f"{frame}.then(() => {frame}).then(() => new Promise((done) => setTimeout(done, 205)))")

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds; AssertionError where it never does."""
        last = time.monotonic() + PATIENCE
        while not holds():
            assert time.monotonic() < last, "it never came to hold"
            self.settle()

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """Left, top, width and height of an element, scrolled into view."""
        return tuple(
            self.value(
                f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView({{block: 'center'}});"
                "const b = e.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; })()"
            )
        )

    def mouse(self, selector: str, across: float, down: float, click: bool = False) -> None:
        """Move to a place of an element, in shares of its size, and click there if asked."""
        left, top, width, height = self.box(selector)
        x, y = left + across * width, top + down * height
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        if click:
            for kind in ("mousePressed", "mouseReleased"):
                self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def touch(self, selector: str, across: float, down: float) -> None:
        """Tap."""
        left, top, width, height = self.box(selector)
        points = [{"x": left + across * width, "y": top + down * height}]
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=points)
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def key(self, name: str, shift: bool = False) -> None:
        """Press a key by its name in JavaScript, such as ArrowLeft, Enter or l."""
        codes = {"Enter": 13, " ": 32, "Tab": 9, "Escape": 27, "Delete": 46}
        codes |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        text = {"text": name} if len(name) == 1 else {"text": "\r"} if name == "Enter" else {}
        code = codes.get(name, ord(name[0].upper()))
        keys = {"key": name, "windowsVirtualKeyCode": code, "modifiers": 8 * shift}
        self.call("Input.dispatchKeyEvent", type="keyDown", **keys, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **keys)

    def screenshot(self, path: Path, whole: bool = False) -> Path:
        done = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(done["data"]))
        return path

    def complaints(self) -> list[str]:
        """Errors and warnings of console, scripts and policies since the page was opened."""
        told = []
        for event in self._own():
            method, parameters = event["method"], event["params"]
            if method == "Runtime.exceptionThrown":
                told.append(str(parameters["exceptionDetails"]))
            elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
                told.append(str(parameters["args"]))
            elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
                told.append(parameters["entry"]["text"])
        return told

    def requests(self) -> list[str]:
        """Addresses asked for since the page was opened, those inside the file left out."""
        asked = [e["params"]["request"]["url"] for e in self._own() if e["method"] == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith(("data:", "blob:"))]

    def _own(self) -> list[dict[str, Any]]:
        # an answer brings all that was told before it
        self.value("0")
        return [event for event in self.browser.events if event.get("sessionId") == self.session]


@contextlib.contextmanager
def launched() -> Iterator[Browser]:
    """A browser with a profile of its own, ended with all its processes."""
    program = chromium()
    to_browser, from_browser = os.pipe(), os.pipe()
    # out of the way of 3 and 4, which the browser expects
    theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_browser[0], from_browser[1])]

    def place() -> None:
        os.dup2(theirs[0], 3)
        os.dup2(theirs[1], 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=place,
            pass_fds=(3, 4),
            start_new_session=True,
        )
        for end in (to_browser[0], from_browser[1], *theirs):
            os.close(end)
        browser = Browser(process, to_browser[1], from_browser[0])
        try:
            yield browser
        finally:
            browser.selector.close()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for end in (to_browser[1], from_browser[0]):
                os.close(end)
