"""A headless Chromium that is driven over its debugging pipe, without network; for tests of pages."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time

PROGRAM = next(
    filter(
        None,
        map(
            shutil.which,
            ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"),
        ),
    ),
    None,
)
LIMIT_S = 30


class Browser:
    """One page of a headless Chromium; a context manager. `console` is what the page said that it should not."""

    def __init__(self, folder, *, width=1280, height=900):
        self.folder = folder
        self.size = "%d,%d" % (width, height)
        self.console = []
        self.requests = []
        self.events = []

    def __enter__(self):
        theirs_in, self.sends = os.pipe()
        self.receives, theirs_out = os.pipe()
        # Chromium reads from descriptor 3 and writes to 4.
        shell = 'exec 3<&%d 4>&%d; exec "$@"' % (theirs_in, theirs_out)
        arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"]
        arguments += ["--remote-debugging-pipe", "--user-data-dir=%s" % self.folder, "--window-size=" + self.size]
        arguments += ["--disable-background-networking", "--no-first-run", "--host-resolver-rules=MAP * ~NOTFOUND"]
        self.process = subprocess.Popen(
            ["timeout", "-k", "5", "120", "bash", "-c", shell, "bash", PROGRAM, *arguments],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.serial, self.buffer, self.session = 0, b"", None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(domain + ".enable")
        self.ask("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError, RuntimeError):
            self.session = None
            self.ask("Browser.close")
        os.close(self.sends)
        os.close(self.receives)
        self.process.wait(30)

    def ask(self, method, **parameters):
        """Send a command and return its result."""
        self.serial += 1
        message = {"id": self.serial, "method": method, "params": parameters}
        if self.session is not None:
            message["sessionId"] = self.session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.sends, data) :]
        while True:
            answer = self.next_message()
            if answer.get("id") == self.serial:
                if "error" in answer:
                    raise RuntimeError("%s: %s" % (method, answer["error"]["message"]))
                return answer["result"]

    def next_message(self):
        """Return the next message, after taking note of what the page says."""
        while b"\0" not in self.buffer:
            data = os.read(self.receives, 1 << 20)
            if not data:
                raise RuntimeError("Chromium has ended")
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(line)
        method, parameters = message.get("method"), message.get("params")
        if method == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.console.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            self.console.append(str([one.get("value") for one in parameters["args"]]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.console.append(parameters["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"][:200])
        return message

    def open(self, path, address=""):
        """Open a page and wait until it says that it is ready. Return how long that took in seconds."""
        began = time.monotonic()
        self.ask("Page.navigate", url="file://%s%s" % (path, address))
        while self.value("document.documentElement?.dataset.ready") != "yes":
            if time.monotonic() - began > LIMIT_S:
                raise RuntimeError("the page is not ready: %s" % self.console)
            time.sleep(0.02)
        self.value("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return time.monotonic() - began

    def value(self, expression):
        """Return what an expression is in the page."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"].get("exception", {}).get("description", expression))
        return found["result"].get("value")

    def press(self, *keys):
        """Press keys, one after another."""
        for key in keys:
            text = {"text": key} if len(key) == 1 else {}
            self.ask("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
            self.ask("Input.dispatchKeyEvent", type="keyUp", key=key)

    def prefer(self, scheme):
        """Have the user prefer a `light` or `dark` page."""
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def picture(self, path, *, height=None):
        """Write a picture of what is seen, or of the page down to a height."""
        clip = {}
        if height is not None:
            width = self.value("innerWidth")
            clip = {
                "clip": {"x": 0, "y": 0, "width": width, "height": height, "scale": 1},
                "captureBeyondViewport": True,
            }
        data = self.ask("Page.captureScreenshot", format="png", **clip)["data"]
        path.write_bytes(base64.b64decode(data))
