"""The one exception the commands print without a traceback."""


class InputError(ValueError):
    """Something the user gave is wrong: says what, where, what was expected and the way out."""
