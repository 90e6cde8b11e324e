"""A language model as this project uses it: its files, its chat template, its base weights, and where a verdict is
decided.
"""
