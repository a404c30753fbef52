"""Headless Chromium through chromedriver's protocol, JSON over HTTP."""

import base64
import contextlib
import functools
import http.server
import json
import re
import shutil
import subprocess
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = [
    "--headless",
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

    def __init__(self, driver: str, width: int, dark: bool) -> None:
        flags = [*FLAGS, *(["--force-dark-mode"] if dark else [])]
        options = {
            "binary": CHROMIUM,
            "args": [*flags, f"--user-data-dir={tempfile.mkdtemp()}"],
            "mobileEmulation": {
                "deviceMetrics": {
                    "width": width,
                    "height": 900,
                    "pixelRatio": 1,
                    "mobile": False,
                }
            },
        }
        wanted = {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        self.address = driver
        answer = self._ask("session", {"capabilities": {"alwaysMatch": wanted}})
        self.profile = options["args"][-1].partition("=")[2]
        self.address = f"{driver}/session/{answer['sessionId']}"

    def _ask(
        self, path: str, body: dict[str, Any] | None = None, method: str = "POST"
    ) -> Any:
        request = urllib.request.Request(
            f"{self.address}/{path}".rstrip("/"),
            data=json.dumps(body or {}).encode() if method == "POST" else None,
            headers={"Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, address: str) -> None:
        self._ask("url", {"url": address})

    def run(self, script: str, *arguments: Any) -> Any:
        """Run the body of a JavaScript function; return its result, awaited."""
        return self._ask("execute/sync", {"script": script, "args": list(arguments)})

    def console(self) -> list[str]:
        """What the console said since it was last asked."""
        return [entry["message"] for entry in self._ask("se/log", {"type": "browser"})]

    def screenshot(self, path: Path) -> None:
        """The whole page, below the window too."""
        parameters = {"captureBeyondViewport": True}
        answer = self._ask(
            "goog/cdp/execute", {"cmd": "Page.captureScreenshot", "params": parameters}
        )
        path.write_bytes(base64.b64decode(answer["data"]))

    def close(self) -> None:
        self._ask("", method="DELETE")
        shutil.rmtree(self.profile, ignore_errors=True)


@contextlib.contextmanager
def browser(width: int, *, dark: bool = False) -> Iterator[Browser]:
    assert DRIVER is not None
    with subprocess.Popen(
        [DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if started := re.search(r"started successfully on port (\d+)", line):
                    break
            window = Browser(f"http://127.0.0.1:{started[1]}", width, dark)
            try:
                yield window
            finally:
                window.close()
        finally:
            process.terminate()
