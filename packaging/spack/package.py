# Copyright Spack Project Developers. See COPYRIGHT file for details.
#
# SPDX-License-Identifier: (Apache-2.0 OR MIT)

# To use it: copy this file to packages/py_mpiimport/package.py of a Spack repository of yours (`spack repo create`,
# with Spack 1.0 or later), then `spack install --no-checksum py-mpiimport ^mpich`.
#
# How far it is checked: a test executes it with stand-ins for what Spack gives it and compares its dependencies with
# pyproject.toml and Cargo.toml; another has the layouts that Spack installs into (a folder for each package, a view of
# links). Spack itself has not run it.

from spack_repo.builtin.build_systems.python import PythonPackage

from spack.package import *


class PyMpiimport(PythonPackage):
    """Start Python on many MPI ranks fast: rank 0 finds and reads the modules, all ranks receive them."""

    pypi = "mpiimport/mpiimport-0.1.0.tar.gz"

    license("(MIT OR Apache-2.0) AND Apache-2.0 AND BSD-3-Clause")

    version("0.1.0")

    depends_on("c", type="build")  # the linker
    depends_on("rust@1.88:", type="build")
    depends_on("py-maturin@1.8:1", type="build")
    depends_on("python@3.9:", type=("build", "run"))
    # Not linked: the library is opened at run time.
    depends_on("mpi", type="run")

    import_modules = ["mpiimport", "site_mpi"]

    def setup_run_environment(self, env):
        # Spack sets no LD_LIBRARY_PATH, through which it would be found.
        env.set("MPIIMPORT_LIBMPI", self.spec["mpi"].prefix.lib)
