"""LRSA inside unmodified vLLM: a plug-in that compresses the paged KV cache and gives the freed blocks back."""
