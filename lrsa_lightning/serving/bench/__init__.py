"""`lrsa bench-serve`: vLLM with and without compression on this machine, in the same memory, in turns."""
