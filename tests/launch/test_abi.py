"""The constants in the core are those that each MPI's header has."""

import re
import subprocess

import mpi as mpis
import pytest

from mpiimport import _core

INTEL = mpis.ROOT / ".mpi" / "impi-devel"

HEADERS = {
    "mpich": (mpis.MPICH.prefix, "mpi.h", "mpich"),
    "mpich-standard": (mpis.MPICH.prefix, "mpi_abi.h", "mpiabi"),
    "openmpi": (mpis.OPENMPI.prefix, "mpi.h", "openmpi"),
    "intel": (INTEL, "mpi.h", "mpich"),
    "intel-standard": (INTEL, "mpi_abi.h", "mpiabi"),
}


def constants_of(prefix, header, names, folder):
    """Return what the compiler says: numbers, or the names of the objects whose addresses they are."""
    lines = ["#include <stdint.h>", "#include <stdio.h>", "#include <%s>" % header]
    # A macro that is expanded before it becomes text needs one more macro in between.
    lines += ["#define LITERAL(x) #x", "#define TEXT(x) LITERAL(x)", "int main(void) {"]
    lines += ['    printf("%%s %%lld %%s\\n", "%s", (long long)(intptr_t)(%s), TEXT(%s));' % ((n,) * 3) for n in names]
    lines += ["    return 0;", "}"]
    source, program = folder / "constants.c", folder / "constants"
    source.write_text("\n".join(lines) + "\n")
    library = prefix / "lib"
    linked = ["-L%s" % library, "-Wl,-rpath,%s" % library, "-lmpi"] if prefix == mpis.OPENMPI.prefix else []
    subprocess.run(["cc", "-I%s" % (prefix / "include"), "-o", program, source, *linked], check=True)
    printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    found = {}
    for line in printed.splitlines():
        name, number, text = line.split(" ", 2)
        address = re.search(r"&\W*(\w+)|\b(OMPI_C_\w+)", text)
        found[name] = (address[1] or address[2]) if address else int(number)
    return found


@pytest.mark.parametrize("header", HEADERS)
def test_every_constant_is_the_headers(header, tmp_path):
    prefix, file, abi = HEADERS[header]
    if not (prefix / "include" / file).exists():
        pytest.skip("no %s in `%s`: its wheel is not installed" % (file, prefix.name))
    expected = _core.abi_constants(abi)
    if header == "intel-standard":
        # Interchanged with MPI_ERRORS_ABORT there; the core knows Intel's library by what it calls itself.
        expected["MPI_ERRORS_RETURN"] = 0x142
    assert constants_of(prefix, file, expected, tmp_path) == expected
