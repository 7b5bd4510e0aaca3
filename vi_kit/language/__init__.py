"""The language in which objectives are written, and the programs of which they are made."""
