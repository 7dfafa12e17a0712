"""What a start leaves to the program of the interpreter's own memory."""

import shutil
import subprocess

import mpi as mpis
import pytest

NESTED = """
def deep(depth):
    return depth and deep(depth - 1)

for depth in range(200):
    for _ in range(20):
        deep(depth)
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_calls_at_any_depth_map_no_memory_anew(script, tmp_path):
    program = script(NESTED)
    counts = {}
    for launcher in ("python", "python-mpi"):
        trace = tmp_path / launcher
        command = ["timeout", "-k", "5", "60", "strace", "-qq", "-e", "trace=munmap", "-o", trace, mpis.BIN / launcher]
        subprocess.run([*command, program], env=mpis.clean_environment(), check=True)
        counts[launcher] = trace.read_text().count("munmap(")
    assert counts["python-mpi"] < 60, counts
