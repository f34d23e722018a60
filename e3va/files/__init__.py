"""Files: written whole or not at all, read as data; what a stranger's file may name."""
