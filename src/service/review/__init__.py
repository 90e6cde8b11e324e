"""The stewards' review: pairs in line, decisions in a hash chain, and the page."""
