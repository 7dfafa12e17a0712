"""Say how long the root takes to find and read, where each operation on the filesystem takes 1 ms.

Compared with plain Python, which finds and reads the same modules one after another, by the same questions. Both on a
host that has nothing in its cache, while nobody else uses the filesystem; it serves any number of operations at once.

    python benchmarks/latency.py [--latency-us 1000]
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "hosts"))

import mpi as mpis
import results
from cluster import Cluster

PROGRAM = """
import numpy.fft, scipy.interpolate, sys
ours = sys.mpiimport.stats()
if ours["rank"] == 0:
    print(ours["seconds"]["forecast"], ours["foreseen"], len(ours["missed"]))
"""
ONE_BY_ONE = """
import sys, time
from importlib.machinery import PathFinder
lines = [line.split("\\t")[1:] for line in open(sys.argv[1], errors="surrogateescape") if "\\tmodule\\t" in line]
sys.path_importer_cache.clear()
began = time.perf_counter()
for _, fullname, *folders in lines:
    folders[-1] = folders[-1].rstrip("\\n")
    spec = PathFinder._get_spec(fullname, folders)
    if spec is not None and spec.origin is not None and spec.origin.endswith(".py"):
        spec.loader.get_code(fullname)
print(time.perf_counter() - began, len(lines))
"""


def main():
    """Measure and print."""
    parser = results.arguments(__doc__)
    parser.add_argument("--latency-us", type=int, default=1000)
    chosen = parser.parse_args()
    report = results.Report(chosen.o, "latency")
    with tempfile.TemporaryDirectory() as folder:
        for name, text in {"program.py": PROGRAM, "one_by_one.py": ONE_BY_ONE}.items():
            Path(folder, name).write_text(text)
        profile = Path(folder, "profile")
        settings = {"service_us": 0, "latency_us": chosen.latency_us}
        with Cluster(3, writable=[folder], **settings) as cluster:
            job = ["python-mpi", "--profile", profile, Path(folder, "program.py")]
            run(cluster, cluster.mpi(mpis.MPICH, 2, hosts=["h0"]) + job)
            second = run(cluster, cluster.mpi(mpis.MPICH, 2, hosts=["h1"]) + job).split()
            plain = run(cluster, [mpis.BIN / "python", Path(folder, "one_by_one.py"), profile], on="h2").split()
    seconds = {"the root, second run": float(second[0]), "plain Python, one after another": float(plain[0])}
    report.table(
        ["%d us per operation" % chosen.latency_us, "s"], [[name, "%.2f" % one] for name, one in seconds.items()]
    )
    ratio = seconds["the root, second run"] / seconds["plain Python, one after another"]
    report.line("%s modules, %s missed; ratio %.3f" % (second[1], second[2], ratio))
    report.write({"latency_us": chosen.latency_us, "seconds": seconds, "ratio": ratio, "questions": int(plain[1])})


def run(cluster, argv, **keywords):
    """Run a program; return what it printed."""
    result = cluster.run(argv, env={"PYTHONHASHSEED": "0"}, timeout_s=280, **keywords)
    if result.returncode != 0:
        raise RuntimeError(repr(result))
    return result.stdout


if __name__ == "__main__":
    main()
