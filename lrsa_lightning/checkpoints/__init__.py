"""Checkpoints: plain data, copied to host memory, written atomically; which one is the last to resume from."""
