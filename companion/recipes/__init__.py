"""Recipes of the shipped weights: plain Python files, each with a ``main(arguments)``."""
