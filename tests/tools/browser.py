"""Headless Chromium through its DevTools protocol: JSON over two pipes, no driver."""

import base64
import contextlib
import fcntl
import functools
import http.server
import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless",
    "--remote-debugging-pipe",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    # Requests to other hosts fail, and the console says so.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder's files, served on this machine alone."""
    handler = functools.partial(_Silent, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


class Browser:
    """A window of one size."""

    def __init__(self, requests: int, answers: int, width: int) -> None:
        self._requests = os.fdopen(requests, "wb", buffering=0)
        self._answers = os.fdopen(answers, "rb")
        self._sent = 0
        self._session: str | None = None
        self._events: list[dict[str, Any]] = []
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask(
            "Target.attachToTarget", targetId=target, flatten=True
        )["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._ask(f"{domain}.enable")
        self._ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=False,
        )

    def _ask(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol; keep events that come before its answer."""
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._requests.write(json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._sent:
            self._events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _receive(self) -> dict[str, Any]:
        """The next message; each ends with a zero byte."""
        text = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("the browser ended")
            text += byte
        message: dict[str, Any] = json.loads(text)
        return message

    def open(self, address: str) -> None:
        """Open a page and wait until it has loaded."""
        self._events.clear()
        self._ask("Page.navigate", url=address)
        while not any(e["method"] == "Page.loadEventFired" for e in self._events):
            self._events.append(self._receive())

    def run(self, script: str) -> Any:
        """Run the body of a JavaScript function; return its result."""
        answer = self._ask(
            "Runtime.evaluate",
            expression=f"(() => {{{script}}})()",
            returnByValue=True,
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def console(self) -> list[str]:
        """Errors that the console has shown since the page was opened."""
        self._ask("Runtime.evaluate", expression="0")
        said = []
        for event in self._events:
            details = event.get("params", {})
            if event["method"] == "Log.entryAdded":
                entry = details["entry"]
                said.append(f"{entry['text']} {entry.get('url', '')}")
            elif event["method"] == "Runtime.exceptionThrown":
                said.append(details["exceptionDetails"]["text"])
        return said

    def screenshot(self, path: Path) -> None:
        """The whole page, below the window too."""
        answer = self._ask("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def close(self) -> None:
        self._session = None
        self._ask("Browser.close")
        self._requests.close()
        self._answers.close()


@contextlib.contextmanager
def browser(width: int, *, dark: bool = False) -> Iterator[Browser]:
    """A window of a browser that ends with the block."""
    assert CHROMIUM is not None
    requests, to_browser = _pipe()
    from_browser, answers = _pipe()

    def connect() -> None:  # Chromium reads from 3 and writes to 4
        os.dup2(requests, 3)
        os.dup2(answers, 4)

    flags = [*FLAGS, *(["--force-dark-mode"] if dark else [])]
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        subprocess.Popen(
            [CHROMIUM, *flags, f"--user-data-dir={profile}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(3, 4),
            preexec_fn=connect,
        ) as process,
    ):
        os.close(requests)
        os.close(answers)
        try:
            window = Browser(to_browser, from_browser, width)
            yield window
            window.close()
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.5)
            process.terminate()


def _pipe() -> tuple[int, int]:
    """A pipe whose ends are neither 3 nor 4."""
    ends = os.pipe()
    reader, writer = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return reader, writer
