"""Native code on its way to the hosts: how often each byte crosses, and how much memory that takes."""

import json
import os
import subprocess
import sysconfig

import mpi as mpis
import pytest

SIZE_BYTES = 100 << 20
MEMORY_BYTES = 32 << 20

MODULE = """
    #include <Python.h>
    __asm__(".pushsection .rodata\\n blob: .incbin \\"blob\\"\\n end: .byte 0\\n .popsection");
    extern const unsigned char blob[] __attribute__((visibility("hidden")));
    extern const unsigned char end[] __attribute__((visibility("hidden")));
    static PyObject *total(PyObject *self, PyObject *none) {
        unsigned long long sum = 0;
        for (const unsigned char *byte = blob; byte < end; ++byte) sum += *byte;
        return PyLong_FromUnsignedLongLong(sum);
    }
    static PyMethodDef methods[] = {{"total", total, METH_NOARGS, 0}, {0}};
    static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "large", 0, -1, methods};
    PyMODINIT_FUNC PyInit_large(void) { return PyModule_Create(&definition); }
"""

# Runs on every rank before the program's opening is made. The peak of a process counts the pages of the copy that it
# has mapped, too; 5 sets it back to what is resident now.
BEFORE = """
    import sys

    def measure():
        with open("/proc/self/status") as file:
            peak = next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM:"))
        with open("/sys/class/net/eth0/statistics/rx_bytes") as file:
            return peak, int(file.read())

    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    sys.measure, sys.before = measure, measure()
"""

# It imports nothing else, so that the opening carries little else.
PROGRAM = """
    import sys
    after = sys.measure()
    import large

    with open("/proc/sys/kernel/hostname") as file:
        host = file.read().strip()
    peak, received = (now - before for now, before in zip(after, sys.before))
    sys.stdout.write('["%s", %d, %d, %d]\\n' % (host, peak, received, large.total()))
"""


@pytest.fixture
def large(tmp_path):
    """An extension module that no host has read, full of bytes that cannot be compressed, and their sum."""
    blob, module = os.urandom(SIZE_BYTES), tmp_path / "large.so"
    (tmp_path / "blob").write_bytes(blob)
    include = "-I%s" % sysconfig.get_paths()["include"]
    build = ["timeout", "-k", "5", "60", "cc", "-O1", "-shared", "-fPIC", include, "-x", "c", "-", "-o", str(module)]
    subprocess.run(build, input=MODULE, text=True, check=True, cwd=tmp_path)
    return module, sum(blob)


# MPICH broadcasts among eight and more in another way than among few.
@pytest.mark.parametrize(
    ("mpi", "hosts", "ranks_per_host"), [(mpis.MPICH, 4, 2), (mpis.OPENMPI, 4, 2), (mpis.MPICH, 11, 1)], ids=str
)
def test_each_byte_crosses_to_a_host_once_and_few_are_in_a_process(
    new_cluster, script, large, mpi, hosts, ranks_per_host
):
    module, total = large
    program = script(PROGRAM)
    script(BEFORE, "sitecustomize.py")
    with new_cluster(hosts) as cluster:
        launch = cluster.mpi(mpi, ranks_per_host, env={"PYTHONPATH": program.parent})
        with cluster.filesystem.trace() as operations:
            result = cluster.run([*launch, "python-mpi", program])
    assert result.returncode == 0, result
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert sorted(row[0] for row in rows) == sorted(cluster.hosts * ranks_per_host)
    assert {row[3] for row in rows} == {total}
    read = [one for one in operations if one.operation == "read" and one.path == str(module)]
    assert {(one.host, one.rank) for one in read} == {("h0", 0)}
    assert SIZE_BYTES < sum(one.size_bytes for one in read) < 1.01 * SIZE_BYTES
    for host, peak_bytes, received_bytes, _ in rows:
        assert peak_bytes < MEMORY_BYTES
        if host == "h0":
            assert received_bytes < 0.1 * SIZE_BYTES
        else:
            assert SIZE_BYTES < received_bytes < 1.1 * SIZE_BYTES
