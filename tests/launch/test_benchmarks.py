"""The benchmarks run, and the baseline among them does what plain Python does."""

import json
import sys

import mpi as mpis
import pytest

BENCHMARKS = mpis.ROOT / "benchmarks"


@pytest.mark.parametrize(
    "argv",
    [
        ["parts", "--ranks", "2", "--runs", "1", "--hosts", "0"],
        ["pynamic", "--modules", "3", "--libraries", "2", "--kilobytes", "1", "--hosts", "0"],
        ["model"],
    ],
    ids=lambda argv: argv[0],
)
def test_a_benchmark_prints_and_keeps_the_same(tmp_path, argv):
    name, *arguments = argv
    result = mpis.run([sys.executable, BENCHMARKS / (name + ".py"), "-o", tmp_path, *arguments])
    assert result.returncode == 0, result
    assert (tmp_path / (name + ".txt")).read_text().partition("\n\n")[2] == result.stdout
    assert len(json.loads((tmp_path / (name + ".json")).read_text())) > 1


def test_the_algorithm_of_2014_imports_what_plain_python_does(script):
    program = script("import json, sys, numpy.fft\nprint(numpy.fft.fft([1, 2]), len(sys.modules['numpy'].__all__))\n")
    plain = mpis.MPICH.run(2, "python", program)
    env = {"PYTHONHASHSEED": "0", "SEED_COUNTS": "1", "SEED_TMPDIR": str(program.parent)}
    seed = mpis.MPICH.run(2, "python", "-S", BENCHMARKS / "seed.py", program, env=env)
    assert (seed.returncode, seed.stdout) == (0, plain.stdout), seed
    said = [line for line in seed.stderr.splitlines() if line.startswith("seed: ")]
    assert len(said) == 2
    assert said[0] == said[1]
    assert int(said[0].split()[5]) > 5, "each rank copies extension modules"
    assert list(program.parent.iterdir()) == [program]
