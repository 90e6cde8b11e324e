"""Records that are one: which rows must stay together."""
