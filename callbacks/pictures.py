"""Shows a picture in a logger of any kind."""

from pathlib import Path

from lightning.pytorch.loggers import CometLogger, Logger, MLFlowLogger, TensorBoardLogger


def log_picture(logger: Logger, name: str, path: Path, step: int) -> None:
    """Shows a PNG file in a logger that takes pictures, and does nothing with others, such as CSVLogger.

    Args:
        logger: of a trainer. One of your own takes pictures with W&B's method ``log_image(key, images, step)``.
        name: of the picture.
        path: of the file.
        step: of the trainer.
    """
    if hasattr(logger, "log_image"):
        logger.log_image(name, [str(path)], step=step)
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, _pixels(path), step, dataformats="HWC")
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_image(logger.run_id, _pixels(path), key=name, step=step)
    elif isinstance(logger, CometLogger):
        logger.experiment.log_image(str(path), name=name, step=step)


def _pixels(path: Path):
    """Float [height, width, channels] from 0 to 1, without transparency."""
    from matplotlib.image import imread

    return imread(path)[..., :3]
