"""Preprocess a collection into a feature set: the program of ``mgc preprocess``.

python -m mgc.preprocess --root DATA --out FEATURES
"""

import sys

from mgc.cli import main

if __name__ == "__main__":
    main(["preprocess", *sys.argv[1:]])
