"""Command lines and the YAML files that they name: the parsers, and a mistake of the user as one line."""
