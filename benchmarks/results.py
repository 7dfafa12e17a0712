"""Where each benchmark's result goes: what it printed, the same as JSON, and a picture of it."""

import argparse
import contextlib
import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "results"
PACKAGES = ("mpi4py", "numpy", "scipy", "pandas", "matplotlib")


def arguments(text):
    """Return a parser of the command line, with the option that all benchmarks have; `text` is their docstring."""
    parser = argparse.ArgumentParser(description=text.partition("\n")[0])
    parser.add_argument("-o", metavar="FOLDER", type=Path, default=FOLDER, help="where the results are written")
    return parser


class Report:
    """What one benchmark prints, and its files: `NAME.txt`, `NAME.json` and perhaps `NAME.png` in a folder."""

    def __init__(self, folder, name):
        self.folder = folder
        self.name = name
        self.lines = []
        self.began = time.time()

    def line(self, text=""):
        """Print a line and keep it."""
        text = text.rstrip()
        print(text, flush=True)
        self.lines.append(text + "\n")

    def table(self, head, rows):
        """Print a table whose first column is text: `head` names the columns, `rows` are lists of what is printed."""
        cells = [[str(cell) for cell in row] for row in [head, *rows]]
        widths = [max(map(len, column)) for column in zip(*cells)]
        for first, *others in cells:
            numbers = "".join("  " + cell.rjust(width) for cell, width in zip(others, widths[1:]))
            self.line(first.ljust(widths[0]) + numbers)

    def write(self, measured):
        """Write what was printed, and what was measured as JSON."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = " ".join(["python", "benchmarks/" + Path(sys.argv[0]).name, *self.arguments()])
        about = {
            "command": command,
            "date": time.strftime("%Y-%m-%d", time.gmtime(self.began)),
            "seconds": round(time.time() - self.began),
            "python": platform.python_version(),
            "packages": {name: version(name) for name in PACKAGES},
            "glibc": platform.libc_ver()[1],
            "cores": os.cpu_count(),
            "load": [round(load, 1) for load in os.getloadavg()],
        }
        self.file(".txt").write_text("$ %s\n\n%s" % (command, "".join(self.lines)))
        self.file(".json").write_text(json.dumps({"about": about, **measured}, indent=1) + "\n")

    def arguments(self):
        """Return the arguments of this run, but for the folder."""
        left = sys.argv[1:]
        if "-o" in left:
            del left[left.index("-o") : left.index("-o") + 2]
        return left

    @contextlib.contextmanager
    def picture(self, columns=1, *, size=(7, 4)):
        """Draw a picture: a row of axes, saved when the block is left."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(1, columns, figsize=size, squeeze=False, layout="constrained")
        yield axes[0]
        self.folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(self.file(".png"), dpi=100)
        pyplot.close(figure)

    def file(self, suffix):
        """Return one of the files."""
        return self.folder / (self.name + suffix)
