"""`python -m mpiimport` is the command `mpiimport`."""

import sys

from mpiimport.command import main

sys.exit(main())
