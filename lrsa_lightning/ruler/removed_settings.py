"""Settings of earlier versions that are gone: read and ignored, or refused with the way out."""

from lrsa_lightning.errors import InputError


def removed_settings(owner: str, official_compat: bool | None, sequence_parallel: str | None) -> list[str]:
    """A line for each given setting that has no effect any more.

    Args:
        owner: the class and a dot, as in the user's configuration.
        official_compat: None where it is not given.
        sequence_parallel: None where it is not given.

    Raises:
        InputError: official_compat is true.
    """
    refuse_official_compat(owner, official_compat)
    lines = []
    if official_compat is not None:
        lines.append(f"{owner}official_compat is gone and ignored: remove it")
    if sequence_parallel is not None:
        lines.append(
            f"{owner}sequence_parallel is gone and ignored: each rank scores its own samples, in smaller batches where "
            "their caches do not fit"
        )
    return lines


def refuse_official_compat(owner: str, official_compat: bool | None) -> None:
    """Refuses samples that only RULER's own scripts make.

    Args:
        owner: of the setting, for the error: ``--``, or the class and a dot.
        official_compat: the setting.

    Raises:
        InputError: official_compat is true.
    """
    if official_compat:
        raise InputError(
            f"{owner}official_compat is gone: make samples with RULER's own prepare.py and score them with "
            "scripts/eval_ruler.py --samples FOLDER"
        )
