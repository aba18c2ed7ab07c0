"""The check on real hardware: `python -m lrsa_lightning.npu.check --devices 8 --out npu_check.json`."""
