"""Predictions, what they are worth, and what one would use instead."""
