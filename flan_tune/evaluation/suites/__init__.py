"""Suites: which questions are asked, how they are laid out, and how their answers are read."""
