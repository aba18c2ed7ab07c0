"""The command `lrsa`. It prints its help at once; only a subcommand imports Lightning and torch."""

import sys

from lrsa_lightning.command_line.installed_configs import with_installed
from lrsa_lightning.commands import COMMANDS
from lrsa_lightning.errors import suggestion
from lrsa_lightning.version import __version__


def __getattr__(name: str):
    """`LRSACLI`, which Python scripts import from here. Without a subcommand the command needs no Lightning."""
    if name == "LRSACLI":
        from lrsa_lightning.commands.training import LRSACLI

        return LRSACLI
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main(args: list[str] | None = None) -> None:
    """Entry point of the console script; takes the command line of the process by default."""
    given = sys.argv[1:] if args is None else args
    if not given:
        print(_help(), file=sys.stderr)
        sys.exit(2)
    name, *further = given
    if name in ("-h", "--help"):
        print(_help())
    elif name == "--version":
        print(f"lrsa-lightning {__version__}")
    elif name in COMMANDS:
        COMMANDS[name].load()(with_installed(further))
    else:
        near = suggestion(name, COMMANDS) or f": give one of {', '.join(COMMANDS)}"
        print(f"lrsa: error: {name} is no subcommand{near}", file=sys.stderr)
        sys.exit(2)


def _help() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{command.description}" for name, command in COMMANDS.items()]
    return f"""usage: lrsa SUBCOMMAND [options]

{chr(10).join(lines)}

`lrsa SUBCOMMAND --help` lists the options. Those of `lrsa fit` are the keys of its YAML files."""


if __name__ == "__main__":
    main()
