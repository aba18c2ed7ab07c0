"""Predicts peak memory and time of a run before anything is loaded: `lrsa plan` as a script.

Takes the options of `lrsa fit`, and its own --device h100|h200|a100|910b, --devices N and --json.
Usage: python scripts/plan.py --config configs/experiment/paper_32k.yaml --device h100
"""

import sys

from lrsa_lightning.cli import main

if __name__ == "__main__":
    main(["plan", *sys.argv[1:]])
