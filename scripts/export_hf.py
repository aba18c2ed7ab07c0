"""`lrsa export` as a script."""

from lrsa_lightning.commands.export import run as main

if __name__ == "__main__":
    main()
