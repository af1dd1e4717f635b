"""Two processes share the tests; each, and each program that they start, computes on one thread."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
