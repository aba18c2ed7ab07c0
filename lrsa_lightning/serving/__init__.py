"""Exported models in other people's tools. A module imports the tool that it is for."""
