"""The stewards' review: desk.py has the cases that wait, decisions.py the decisions in a hash chain, export.py makes
training rows of them, routes.py and page/ are what a reviewer sees.
"""
