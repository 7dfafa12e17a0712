"""Programs drawn at random do under `python-mpi` what they do under plain Python, rank by rank and step by step.

What differs is reported with its number; `MPIIMPORT_TEST_SEED` set to it draws the same launch again, and
`MPIIMPORT_TEST_RUNS` is how many launches follow each other from there.
"""

import os
import random
import secrets
import shutil

import drawn
import mpi as mpis
import pytest

PROGRAMS = 20
"""In one launch."""
FIXED = 20250101
SEED = int(os.environ.get("MPIIMPORT_TEST_SEED", FIXED))
RUNS = int(os.environ.get("MPIIMPORT_TEST_RUNS", "2"))
NIGHTLY_SEED = int(os.environ.get("MPIIMPORT_TEST_SEED", secrets.randbelow(10**9)))
NIGHTLY_RUNS = int(os.environ.get("MPIIMPORT_TEST_RUNS", "100"))


def compare(folder, seed, programs=PROGRAMS):
    """Draw programs and how they are launched; run them by plain Python and by python-mpi, and compare."""
    draw = random.Random("launch %d" % seed)
    ranks = draw.randint(1, drawn.RANKS)
    numbers = [seed * PROGRAMS + number for number in range(programs)]
    barriers, writes, ages = draw.random() < 0.5, draw.random() < 0.4, draw.random() < 0.5
    shutil.rmtree(folder, ignore_errors=True)
    base = [*draw.choice([[], [], ["-O"]]), *draw.choice([["run/program.py"], [folder / "run" / "program.py"]])]
    env = {"PYTHONPATH": str(folder / "lib"), "MPIIMPORT_PROFILE": str(folder / "profile")}
    if draw.random() < 0.3:
        env["PYTHONDONTWRITEBYTECODE"] = "1"
    if draw.random() < 0.3:
        env["PYTHONHASHSEED"] = "1"
    scan = ["--scan", draw.choice(["always", "always", "never"])]
    stable = ["--stable", folder / "lib"] if draw.random() < 0.3 else []
    mpi = mpis.OPENMPI if draw.random() < 0.2 else mpis.MPICH
    launches = [["python"], ["python-mpi", *scan, *stable], ["python-mpi", *scan, *stable]]
    launches.append(["python-mpi", "--policy", draw.choice(["locate", "opening"]), *scan])
    purges = [draw.random() < 0.4 for _ in launches]
    expected = None
    for number, (launch, purge) in enumerate(zip(launches, purges)):
        drawn.write(folder, numbers, barriers=barriers, writes=writes)  # again: ranks have changed it
        for made in [*(folder.rglob("__pycache__") if purge else ()), *folder.glob("own-*")]:
            shutil.rmtree(made, ignore_errors=True)
        if ages:
            age(folder)
        out = folder / ("out-%d" % number)
        out.mkdir()
        result = mpi.run(ranks, *launch, *base, out, env=env, cwd=folder)
        where = "MPIIMPORT_TEST_SEED=%d, launch %d: %s %s\n%r" % (seed, number, env, [*launch, *base], result)
        assert result.returncode == 0, where
        assert "mpiimport: " not in result.stderr, where
        found = drawn.said(out, ranks)
        expected = expected or found
        for rank, (ours, plain) in enumerate(zip(found, expected)):
            for program in plain:
                for one, other in zip(ours[program], plain[program]):
                    assert one == other, "rank %d of %d, program %s, %s\nplain: %r\nours:  %r" % (
                        rank,
                        ranks,
                        program,
                        where,
                        other,
                        one,
                    )


def age(folder):
    """Let all files and folders be old."""
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (1e9, 1e9))


@pytest.mark.parametrize("seed", range(SEED, SEED + RUNS))
def test_programs_drawn_at_random_are_plain_pythons(tmp_path, seed):
    compare(tmp_path / "drawn", seed)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(NIGHTLY_SEED, NIGHTLY_SEED + NIGHTLY_RUNS))
def test_many_programs_drawn_at_random_are_plain_pythons(tmp_path, seed):
    compare(tmp_path / "drawn", seed)
