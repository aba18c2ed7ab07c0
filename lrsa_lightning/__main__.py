"""`python -m lrsa_lightning`: the command `lrsa`."""

from lrsa_lightning.cli import main

if __name__ == "__main__":
    main()
