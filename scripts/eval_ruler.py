"""`lrsa eval` as a script."""

from lrsa_lightning.commands.eval import run as main

if __name__ == "__main__":
    main()
