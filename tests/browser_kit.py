"""A headless Chromium without a network, driven over its own pipe: what a page asks for, complains about and shows."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from contextlib import contextmanager

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser():
    """Path of an installed Chromium, or `None`."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


class Page:
    """One tab. `requests` has the URL of everything it asked for, `complaints` what stood on the console."""

    def __init__(self, reader, writer):
        self._reader, self._writer, self._number = reader, writer, 0
        self.requests, self.complaints, self._loaded = [], [], False
        self._session = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method, **params):
        """Call a method of the DevTools protocol and return its result."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        self._writer.write(json.dumps(message).encode() + b"\0")
        self._writer.flush()
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, url):
        """Load a page and wait until it is complete."""
        self.requests.clear()
        self.complaints.clear()
        self._loaded = False
        self.send("Page.navigate", url=url)
        while not self._loaded:
            self._receive()

    def value(self, expression):
        """What a JavaScript expression gives."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"]["value"]

    def _receive(self):
        content = bytearray()
        while (byte := self._reader.read(1)) != b"\0":
            assert byte, "the browser is gone"
            content += byte
        message = json.loads(content)
        params = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Page.loadEventFired":
                self._loaded = True
            case "Log.entryAdded":
                self.complaints.append(params["entry"]["text"])
            case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(params))
        return message


@contextmanager
def open_browser(executable, profile):
    """A tab of a new browser that reaches no other machine; `profile` is a folder for its files."""
    to_browser, our_end = os.pipe()
    our_beginning, from_browser = os.pipe()
    command = [
        executable, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=http://127.0.0.1:9",
    ]  # fmt: skip
    # it reads from 3 and writes to 4
    shell = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
    process = subprocess.Popen(
        ["bash", "-c", shell, "bash", *command], pass_fds=(to_browser, from_browser), stderr=subprocess.DEVNULL
    )
    os.close(to_browser)
    os.close(from_browser)
    try:
        with os.fdopen(our_beginning, "rb") as reader, os.fdopen(our_end, "wb") as writer:
            page = Page(reader, writer)
            yield page
            page._session = None
            page.send("Browser.close")
    finally:
        process.terminate()
        process.wait(30)
