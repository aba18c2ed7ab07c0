"""`lrsa report` as a script."""

from lrsa_lightning.commands.report import run as main

if __name__ == "__main__":
    main()
