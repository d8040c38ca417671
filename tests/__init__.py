"""The test suite, and the slow second route (`oracle`) that it checks the package against."""

import os

# Read when torch is loaded, here and in child processes. The two processes of pytest and their
# workers share the cores: more threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
