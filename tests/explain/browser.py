"""Debian's Chromium, driven: pages are opened, used with the mouse and the keyboard, and looked at.

The browser is spoken to in its DevTools protocol over two pipes: JSON messages that end in a zero byte. So no port is open, and neither a
driver nor a client for sockets is needed. Every wait has a deadline; the browser and all that it started are ended with the session.
"""

import base64
import contextlib
import fcntl
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

FLAGS: Final = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--force-color-profile=srgb", "--hide-scrollbars=false"),
    *("--disable-extensions", "--metrics-recording-only", "--mute-audio", "--remote-debugging-pipe"),
)
DEADLINE: Final = 60.0
KEYS: Final = {"Enter": 13, "Escape": 27, "Home": 36, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
SHIFT: Final = 8
CTRL: Final = 2


class BrowserError(Exception):
    """The browser refused, threw or did not answer."""


def _pipe() -> tuple[int, int]:
    """Return a pipe whose ends are above the descriptors that the shell is to fill."""
    low = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in low]
    for end in low:
        os.close(end)
    return high[0], high[1]


class Browser:
    """One headless Chromium with an empty profile in ``folder``."""

    def __init__(self, program: str, folder: Path) -> None:
        """Start it; ``program`` is the executable."""
        ours, theirs = _pipe(), _pipe()
        # The browser takes its pipes as descriptors 3 and 4, and a shell is what puts them there.
        script = f'exec "$@" 3<&{ours[0]} 4>&{theirs[1]} {ours[0]}<&- {theirs[1]}>&-'
        with (folder / "chromium.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", script, "bash", program, *FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"],
                pass_fds=(ours[0], theirs[1]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "HOME": str(folder)},
                start_new_session=True,
            )
        os.close(ours[0])
        os.close(theirs[1])
        self._to, self._from = os.fdopen(ours[1], "wb", buffering=0), os.fdopen(theirs[0], "rb")
        self._log = folder / "chromium.log"
        self._number = 0
        self._incoming: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.events: list[dict[str, Any]] = []

    def _read(self) -> None:
        held = b""
        with contextlib.suppress(OSError, ValueError):
            while data := self._from.read1(1 << 20):
                *whole, held = (held + data).split(b"\0")
                for message in whole:
                    self._incoming.put(json.loads(message))
        self._incoming.put(None)

    def send(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol; return its result. What comes meanwhile is added to ``events``."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        self._to.write(json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + DEADLINE
        while True:
            answer = self._next(deadline, method)
            if answer.get("id") != self._number:
                self.events.append(answer)
                continue
            if "error" in answer:
                raise BrowserError(f"{method}: {answer['error']['message']}")
            result: dict[str, Any] = answer["result"]
            return result

    def wait_for(self, method: str, session: str) -> dict[str, Any]:
        """Return the first event of that name that a session has not yet been given."""
        deadline = time.monotonic() + DEADLINE
        while True:
            for at, event in enumerate(self.events):
                if event.get("method") == method and event.get("sessionId") == session:
                    params: dict[str, Any] = self.events.pop(at)["params"]
                    return params
            self.events.append(self._next(deadline, method))

    def _next(self, deadline: float, what: str) -> dict[str, Any]:
        try:
            message = self._incoming.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise BrowserError(f"{what}: no answer in {DEADLINE} s") from None
        if message is None:
            raise BrowserError(f"{what}: the browser ended: {self._log.read_text(errors='replace')[-2000:]}")
        return message

    def close(self) -> None:
        """End the browser and everything that it started."""
        with contextlib.suppress(BrowserError, OSError):
            self.send("Browser.close")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        # It leads a session of its own, so its group is what is left of it and of nothing else.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(timeout=10)
        self._to.close()
        self._reader.join(timeout=10)
        self._from.close()


def _query(selector: str) -> str:
    return f"document.querySelector({json.dumps(selector)})"


class Page:
    """One tab. ``problems`` is what the page threw or was refused; ``requests`` is every address that it asked for."""

    def __init__(self, browser: Browser, *, width: int = 1440, height: int = 900, scheme: str = "light") -> None:
        """Open an empty tab of that size (CSS pixels), for a person who prefers that colour scheme.

        It has a window of its own: what is behind another tab is not painted.
        """
        self.browser = browser
        self._target = browser.send("Target.createTarget", url="about:blank", newWindow=True)["targetId"]
        self._session = browser.send("Target.attachToTarget", targetId=self._target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.send("Performance.enable", timeDomain="threadTicks")
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.prefer(scheme)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol for this tab."""
        return self.browser.send(method, self._session, **params)

    def prefer(self, scheme: str) -> None:
        """Be a person who prefers ``light`` or ``dark``."""
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def open(self, path: Path) -> None:
        """Load a page of ``imagefs explain``; return when it has painted its first frame."""
        self.send("Page.navigate", url=path.as_uri())
        self.browser.wait_for("Page.loadEventFired", self._session)
        self.run("imagefsExplain.ready.then(() => null)")

    def run(self, expression: str) -> Any:
        """Evaluate an expression, await its value, and return it as JSON has it."""
        answer = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise BrowserError(details.get("exception", {}).get("description") or details["text"])
        return answer["result"].get("value")

    def painted(self) -> None:
        """Return when what was last asked for has been painted."""
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(null))))")

    # -- as a person --------------------------------------------------------------------------------------------------------------------

    def mouse(self, kind: str, x: float, y: float, *, modifiers: int = 0, button: str = "left", **more: Any) -> None:
        """Send one event of the mouse, in CSS pixels of the tab."""
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, modifiers=modifiers, button=button, **more)

    def click(self, x: float, y: float, *, modifiers: int = 0) -> None:
        """Press and release the left button."""
        self.mouse("mouseMoved", x, y, modifiers=modifiers, button="none")
        self.mouse("mousePressed", x, y, modifiers=modifiers, clickCount=1)
        self.mouse("mouseReleased", x, y, modifiers=modifiers, clickCount=1)
        self.painted()

    def drag(self, start: tuple[float, float], end: tuple[float, float], *, modifiers: int = 0) -> None:
        """Press at one place, move, and release at another."""
        self.mouse("mousePressed", *start, modifiers=modifiers, clickCount=1)
        for step in (0.3, 0.6, 1.0):
            x, y = (start[axis] + step * (end[axis] - start[axis]) for axis in (0, 1))
            self.mouse("mouseMoved", x, y, modifiers=modifiers, buttons=1)
        self.mouse("mouseReleased", *end, modifiers=modifiers, clickCount=1)
        self.painted()

    def wheel(self, x: float, y: float, down: float, *, modifiers: int = 0) -> None:
        """Turn the wheel by so many pixels."""
        self.mouse("mouseWheel", x, y, modifiers=modifiers, button="none", deltaX=0, deltaY=down)
        self.painted()

    def key(self, name: str) -> None:
        """Press and release a key, by its name or its character."""
        code = KEYS.get(name, ord(name[0].upper()))
        text = {"text": "\r"} if name == "Enter" else {"text": name} if len(name) == 1 else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", key=name, windowsVirtualKeyCode=code, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=name, windowsVirtualKeyCode=code)
        self.painted()

    def type(self, text: str) -> None:
        """Put text where the focus is."""
        self.send("Input.insertText", text=text)

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """Return where an element is: left, top, width, height."""
        script = f"(({{x, y, width, height}}) => [x, y, width, height])({_query(selector)}.getBoundingClientRect())"
        left, top, width, height = self.run(script)
        return left, top, width, height

    def press(self, selector: str) -> None:
        """Click the middle of an element."""
        self.run(f"{_query(selector)}.scrollIntoView({{block: 'nearest'}})")
        left, top, width, height = self.box(selector)
        self.click(left + width / 2, top + height / 2)

    def text(self, selector: str) -> str:
        """Return the text that an element shows."""
        return str(self.run(f"{_query(selector)}.innerText"))

    def screenshot(self, path: Path | None = None) -> bytes:
        """Return a PNG of what is seen; keep it at ``path`` if that is given."""
        data = base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])
        if path:
            path.write_bytes(data)
        return data

    # -- what happened ------------------------------------------------------------------------------------------------------------------

    @property
    def cpu_seconds(self) -> float:
        """CPU time of the tab's main thread since it was opened: what a page costs, however busy the machine is."""
        metrics = {metric["name"]: metric["value"] for metric in self.send("Performance.getMetrics")["metrics"]}
        return float(metrics["ThreadTime"] if "ThreadTime" in metrics else metrics["TaskDuration"])

    def _events(self, *methods: str) -> Iterator[dict[str, Any]]:
        self.run("null")  # What was sent before this answer is in.
        for event in self.browser.events:
            if event.get("sessionId") == self._session and event["method"] in methods:
                yield event["params"]

    @property
    def problems(self) -> list[str]:
        """What was thrown, logged as an error or a warning, or refused by the page's policy."""
        bad = {"error", "warning"}
        found = [str(event["exceptionDetails"]) for event in self._events("Runtime.exceptionThrown")]
        found += [str(event["args"]) for event in self._events("Runtime.consoleAPICalled") if event["type"] in bad]
        return found + [event["entry"]["text"] for event in self._events("Log.entryAdded") if event["entry"]["level"] in bad]

    @property
    def requests(self) -> list[str]:
        """Every address that was asked for."""
        return [event["request"]["url"] for event in self._events("Network.requestWillBeSent")]

    @property
    def dialogs(self) -> int:
        """How many dialogs the page has opened: what a script that got in would do first."""
        return len(list(self._events("Page.javascriptDialogOpening")))

    def close(self) -> None:
        """Close the tab."""
        self.browser.send("Target.closeTarget", targetId=self._target)
