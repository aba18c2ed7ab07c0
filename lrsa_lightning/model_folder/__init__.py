"""What an exported folder holds beside the weights, the configuration and the tokenizer."""
