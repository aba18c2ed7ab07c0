"""Names that become one part of a path: a user's are refused where they are not, those made of values always are."""

import hashlib
import re

from lrsa_lightning.errors import InputError

# A file beside it has the name with an ending such as .holder.12345.partial; file systems take 255 bytes.
MOST_BYTES = 200
# What a sweep keeps beside its cells' run directories.
RESERVED = ("cells", "report")
_EXPECTED = (
    f"expected one part of a path, of 1 to {MOST_BYTES} bytes: without / or \\, line breaks and other characters that "
    f"do not print, or ${{; not beginning with . or -, nor with or ending in a space; not {' or '.join(RESERVED)}"
)


def checked_name(name: str, what: str) -> str:
    """The name as it is, if it is one safe part of a path.

    Args:
        name: given by a user, on the command line or in the environment.
        what: what it is called there, for the error.

    Raises:
        InputError: it is not.
    """
    if not _is_safe(name):
        raise InputError(f"{what} is {name!r}: {_EXPECTED}")
    return name


def made_name(text: str) -> str:
    """A safe name made of any text: the text itself where it is one."""
    if _is_safe(text):
        return text
    name = re.sub(r"[^\w.+=,@%() -]+", "-", text).rstrip(" ").lstrip(".- ") or "unnamed"
    if name in RESERVED:
        name = f"{name}-"
    if len(name.encode()) > MOST_BYTES:
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:10]
        name = f"{name.encode()[: MOST_BYTES - 11].decode(errors='ignore')}-{digest}"
    return name


def _is_safe(name: str) -> bool:
    return (
        name.isprintable()
        and not re.search(r"[/\\]|\$\{|^[.-]|^ | $", name)
        and name not in RESERVED
        and 0 < len(name.encode()) <= MOST_BYTES
    )
