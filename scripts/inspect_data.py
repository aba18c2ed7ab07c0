"""`lrsa inspect` as a script."""

from lrsa_lightning.commands.inspect import run as main

if __name__ == "__main__":
    main()
