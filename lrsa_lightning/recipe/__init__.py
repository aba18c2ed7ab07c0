"""Training rows that teach a model to find what is asked for in a long text, without the texts of its evaluation."""
