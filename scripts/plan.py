"""`lrsa plan` as a script."""

from lrsa_lightning.commands.plan import run as main

if __name__ == "__main__":
    main()
