"""python -m fiducial"""

import sys

from fiducial.cli import main

if __name__ == "__main__":
    sys.exit(main())
