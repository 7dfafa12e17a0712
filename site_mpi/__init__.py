"""The replacement of `site` for MPI programs.

`python-mpi` uses `site_mpi.boot`. Under `python -S`, `import site_mpi` does the same for the program that imports it:
it joins the other ranks, settles the paths, and delivers what the program will import. Elsewhere it does nothing.
"""

import sys

PYTHONPATH = __file__.rpartition("/")[0].rpartition("/")[0]
"""The folder to add to the variable PYTHONPATH, so that `python -S` finds this package."""

if sys.flags.no_site and "site_mpi.boot" not in sys.modules:
    from site_mpi import boot

    boot.start_here()
