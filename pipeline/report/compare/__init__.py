"""Comparing runs: `neuclip runs`, `neuclip compare`. All is read from run directories, nothing from a server."""
