"""vLLM's attention back ends with compression, each in a file of its own that imports the stock one."""
