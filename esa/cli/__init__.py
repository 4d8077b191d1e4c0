"""The commands: one file each, over the Python twins."""
