"""`lrsa ruler` as a script."""

from lrsa_lightning.commands.ruler import run as main

if __name__ == "__main__":
    main()
