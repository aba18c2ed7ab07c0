"""The command `lrsa`. It prints its help at once; only a subcommand imports Lightning and torch."""

import sys

from lrsa_lightning.commands import SUBCOMMANDS

_CHOICE = f"{{{','.join(SUBCOMMANDS)}}}"


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
        print(f"lrsa: error: give a subcommand, one of {_CHOICE}: see `lrsa --help`", file=sys.stderr)
        sys.exit(2)
    if given in (["-h"], ["--help"]):
        lines = [f"  {name:<10}{description}" for name, description in SUBCOMMANDS.items()]
        print(f"usage: lrsa {_CHOICE} [options]\n\n{chr(10).join(lines)}\n")
        print("`lrsa fit --help` lists the options of a subcommand, which are the keys of its YAML files.")
        return
    if given[0] == "plan":
        from lrsa_lightning.commands.plan import run as plan

        return plan(given[1:])
    if given[0] == "generate":
        from lrsa_lightning.commands.generate import run as generate

        return generate(given[1:])
    if given[0] == "chat":
        from lrsa_lightning.commands.chat import run as chat

        return chat(given[1:])
    from lrsa_lightning.commands.training import run

    run(args)


if __name__ == "__main__":
    main()
