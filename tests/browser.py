"""Headless Chromium, driven by the DevTools protocol over a pipe: JSON messages that end in a zero byte."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), "")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-extensions", "--disable-background-networking", "--disable-component-update", "--mute-audio",
    "--hide-scrollbars", "--force-color-profile=srgb", "--remote-debugging-pipe",
)  # fmt: skip
#: Becomes the program of the third argument, with the file descriptors of the first two as 3 and 4: the protocol's.
START = """
import os, sys
first, second = (os.dup(int(number)) for number in sys.argv[1:3])
for source, target in ((first, 3), (second, 4)):
    os.dup2(source, target)
    os.set_inheritable(target, True)
os.execv(sys.argv[3], sys.argv[3:])
"""
PATIENCE = 60  # seconds after which a test fails rather than waits


class Browser:
    """One page of a running Chromium; `problems` are the errors on its console, `asked` the addresses it asked for."""

    def __init__(self, to_it: int, from_it: int) -> None:
        self.to_it, self.from_it = to_it, from_it
        self.unread = b""
        self.count = 0
        self.session = ""
        self.problems: list[str] = []
        self.asked: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Accessibility", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **arguments: Any) -> Any:
        """Calls a method of the protocol and returns its result."""
        self.count += 1
        session = {"sessionId": self.session} if self.session else {}
        message = {"id": self.count, "method": method, "params": arguments} | session
        os.write(self.to_it, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self.count:
            self._note(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _read(self) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE
        while b"\0" not in self.unread:
            if not select.select([self.from_it], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError("Chromium does not answer")
            if not (more := os.read(self.from_it, 2**20)):
                raise RuntimeError("Chromium ended")
            self.unread += more
        line, _, self.unread = self.unread.partition(b"\0")
        found: dict[str, Any] = json.loads(line)
        return found

    def _note(self, event: dict[str, Any]) -> None:
        said = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(said["exceptionDetails"])[:500])
        elif event.get("method") == "Log.entryAdded" and said["entry"]["level"] == "error":
            self.problems.append(said["entry"]["text"])
        elif event.get("method") == "Network.requestWillBeSent":
            self.asked.append(said["request"]["url"])

    def run(self, script: str) -> Any:
        """Returns the value of a JavaScript expression in the page, awaited if it is a promise."""
        answer = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"])[:500])
        return answer["result"].get("value")

    def open(self, url: str) -> None:
        """Loads a page anew, and waits until it is drawn."""
        self.send("Page.navigate", url="about:blank")  # else another hash alone would not load it
        self.problems.clear()
        self.asked.clear()
        self.send("Page.navigate", url=url)
        self.settle()

    def settle(self) -> None:
        """Waits until the page is drawn."""
        until = time.monotonic() + PATIENCE
        while self.run("document.querySelector('main')?.getAttribute('aria-busy')") != "false":
            if time.monotonic() > until:
                raise TimeoutError(f"the page is still busy: {self.run('document.body.innerText')} {self.problems}")
            time.sleep(0.02)

    def press(self, key: str) -> None:
        """Presses a key such as 'Tab', 'ArrowRight' or 'End', and waits until the page is drawn."""
        code = {"Tab": 9, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}[key]
        for kind in ("rawKeyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)
        self.settle()

    def resize(self, width: int, height: int, dark: bool = False) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=scheme)

    def screenshot(self, path: Path) -> None:
        """Writes a PNG of the whole page."""
        picture = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(picture["data"]))


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A Chromium that keeps its profile and downloads in the folder."""
    theirs_in, to_it = os.pipe()
    from_it, theirs_out = os.pipe()
    own = (theirs_in, theirs_out)
    command = [sys.executable, "-S", "-c", START, *map(str, own), CHROMIUM, *FLAGS]
    command.append(f"--user-data-dir={folder / 'profile'}")
    quiet: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    process = subprocess.Popen(command, pass_fds=own, **quiet)
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        page = Browser(to_it, from_it)
        page.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder), eventsEnabled=False)
        yield page
        page.session = ""
        page.send("Browser.close")
    finally:
        os.close(to_it)
        os.close(from_it)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
