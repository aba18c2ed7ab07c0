"""Small files and the disk: strict YAML, JSON lines, atomic writes, names that become paths, one writer per folder."""
