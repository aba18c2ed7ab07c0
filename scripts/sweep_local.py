"""`lrsa sweep` as a script."""

from lrsa_lightning.commands.sweep import run as main

if __name__ == "__main__":
    main()
