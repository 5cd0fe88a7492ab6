"""Rows made on the spot by generators: one module per theme, the list of them in registry.py, words in words.py."""
