"""Search the regularisation: the program of ``mgc tune``.

python -m mgc.tune --features FEATURES --trials 20
"""

import sys

from mgc.cli import main

if __name__ == "__main__":
    main(["tune", *sys.argv[1:]])
