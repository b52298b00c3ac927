"""`python -m slmkit` and the console script."""

from __future__ import annotations

import os
import sys

SPINS = "10000"
"""How often a thread of libgomp (torch's, on a CPU) looks for work before it sleeps. Its own default spins so long that one other busy process
makes everything many times slower: on 2 cores a training took 179 s instead of 36, and 300 answers 156 s instead of 20. Sleeping sooner costs a
twentieth on an idle machine. It is read when the library is loaded, so it is set before anything is imported; what the user has set stands."""


def main() -> None:
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS
    from slmkit.cli.main import main as run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
