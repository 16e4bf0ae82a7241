"""``python -m benchmarks.structure`` is ``python -m benchmarks structure``."""

import sys

from benchmarks.__main__ import main

if __name__ == "__main__":
    main(["structure", *sys.argv[1:]])
