"""A headless Chromium that opens one file, driven over its debugging pipe: what it shows, and what it asks for.

Protocol: https://chromedevtools.github.io/devtools-protocol/, messages end with a NUL byte.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
DEADLINE_S = 60.0
_QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
    "--remote-debugging-pipe",
)
_VISIBLE = """
(selector) => [...document.querySelectorAll(selector)].filter(
    (each) => each.checkVisibility({opacityProperty: true, visibilityProperty: true})
        && each.getBoundingClientRect().width > 0
).map((each) => (each.innerText ?? each.textContent).replace(/\\s+/g, " ").trim())
"""


def browser() -> str | None:
    """The program, where there is one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Tab:
    """One page. `requests` are the addresses that it asked for, itself included."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing = reading, writing
        self._said, self._number, self._session = b"", 0, ""
        self.requests: list[str] = []
        self.problems: list[str] = []
        self._events: set[str] = set()
        self.loaded_s = 0.0

    def open(self, path: Path) -> None:
        """Returns when the page has loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=1160, height=900, deviceScaleFactor=1, mobile=False)
        self._events.clear()
        started = time.monotonic()
        self.call("Page.navigate", url=path.as_uri())
        while "Page.loadEventFired" not in self._events:
            self._take()
        self.loaded_s = time.monotonic() - started

    def visible(self, selector: str) -> list[str]:
        """The texts of the elements that a person sees."""
        found = self.evaluate(f"({_VISIBLE})({json.dumps(selector)})")
        assert isinstance(found, list)
        return found

    def text(self) -> str:
        """All that a person sees, as it is laid out."""
        return str(self.evaluate("document.body.innerText"))

    def evaluate(self, expression: str) -> object:
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """The whole page, however long."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        self._number += 1
        message: dict[str, object] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._take()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def _take(self) -> dict[str, Any]:
        deadline = time.monotonic() + DEADLINE_S
        while b"\0" not in self._said:
            ready, _, _ = select.select([self._reading], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"the browser has said nothing for {DEADLINE_S} s"
            more = os.read(self._reading, 1 << 20)
            assert more, "the browser has ended"
            self._said += more
        line, _, self._said = self._said.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, parameters: dict[str, Any]) -> None:
        self._events.add(method)
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Log.entryAdded":
            self.problems.append(parameters["entry"]["text"])
        elif method in ("Runtime.exceptionThrown", "Page.javascriptDialogOpening"):
            self.problems.append(json.dumps(parameters))


@contextmanager
def open_tab() -> Iterator[Tab]:
    """A browser of its own, with a profile of its own; it is gone at the end."""
    program = browser()
    assert program is not None, "no Chromium is installed"
    to_browser, from_us = os.pipe()
    from_browser, to_us = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # The browser reads from descriptor 3 and writes to 4.
        process = subprocess.Popen(
            [
                "bash",
                "-c",
                f'exec "$@" 3<&{to_browser} 4>&{to_us}',
                "bash",
                program,
                *_QUIET,
                f"--user-data-dir={profile}",
            ],
            pass_fds=(to_browser, to_us),
            env={**os.environ, "TMPDIR": profile},  # what it keeps there stays where it is killed
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(to_us)
        try:
            yield Tab(from_browser, from_us)
        finally:
            process.kill()
            process.wait()
            os.close(from_us)
            os.close(from_browser)
