"""Run as ``python -P -m umscale.parallel.worker JOB`` with the environment that torchrun gives its workers.

The address of ``umscale.execute.member``, where what it does is.
"""

import sys

from umscale.execute.member import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
