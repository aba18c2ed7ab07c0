"""`lrsa prepare` as a script."""

from lrsa_lightning.commands.prepare import run as main

if __name__ == "__main__":
    main()
