"""Names that become one part of a path. A user's unsafe name is refused; a name made of values is always safe."""

import hashlib
import re

from lrsa_lightning.errors import InputError

# File systems allow 255 bytes; a file beside it adds an ending such as .holder.12345.partial.
MOST_BYTES = 200
# A sweep keeps these beside the run directories of its cells.
RESERVED = ("cells", "report")
_EXPECTED = (
    f"expected one part of a path, of 1 to {MOST_BYTES} bytes, without / or \\ or ${{ or characters that do not print. "
    f"It must not begin with . or - or a space, end with a space, or be {' or '.join(RESERVED)}"
)


def checked_name(name: str, what: str) -> str:
    """The name that a user gave, if it is one safe part of a path.

    Raises:
        InputError: it is not safe; names ``what``, the option or the environment variable.
    """
    if not _is_safe(name):
        raise InputError(f"{what} is {name!r}: {_EXPECTED}")
    return name


def made_name(text: str) -> str:
    """A safe name made of any text; a text that is safe already stays as it is."""
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
