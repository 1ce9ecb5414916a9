"""Fit the CNN on a feature set: the program of ``mgc train``.

python -m mgc.train --features FEATURES --gpus 2
"""

import sys

from mgc.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
