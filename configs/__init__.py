"""The YAML files, installed as `lrsa_lightning.configs`."""

from pathlib import Path

CONFIG_DIR = Path(__file__).parent
