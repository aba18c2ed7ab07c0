"""A run: its directory, who writes there, its configuration, and what a resume and all ranks must have in common."""
