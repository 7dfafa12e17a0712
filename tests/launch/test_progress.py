"""A start that takes long shows what rank 0 does, on a terminal, and leaves nothing there."""

import os

import mpi as mpis
import pytest

SLOW = """
import sys, time

class Slow:
    def find_spec(self, fullname, target=None):
        time.sleep(1.5 if fullname == "nowhere" else 0)

def hook(entry):
    if entry != "/slow":
        raise ImportError
    return Slow()

sys.path_hooks.insert(0, hook)
sys.path.append("/slow")
"""


@pytest.mark.parametrize("options", [[], ["-q"]], ids=["shown", "quiet"])
def test_a_bar_on_a_terminal_that_is_cleared(script, tmp_path, options):
    (tmp_path / "custom").mkdir()
    (tmp_path / "custom" / "sitecustomize.py").write_text(SLOW)
    program = script("try:\n    import nowhere\nexcept ImportError:\n    print('done')\n")
    terminal, of_ranks = os.openpty()
    try:
        words = ["sh", "-c", 'exec "$@" 2>"$0"', os.ttyname(of_ranks), "python-mpi", *options, program]
        result = mpis.MPICH.run(2, *words, env={"PYTHONPATH": str(tmp_path / "custom")})
        assert (result.returncode, result.stdout) == (0, "done\n" * 2), result
        os.write(of_ranks, b"end")
        shown = ""
        while not shown.endswith("end"):
            shown += os.read(terminal, 4096).decode()
    finally:
        os.close(terminal)
        os.close(of_ranks)
    if options:
        assert shown == "end"
    else:
        assert "mpiimport: finds and reads modules [" in shown
        assert shown.endswith("\r\x1b[Kend")


def test_nothing_where_it_is_quick(script):
    result = mpis.MPICH.run(2, "python-mpi", script("import json\n"))
    assert (result.returncode, result.stderr) == (0, "")
