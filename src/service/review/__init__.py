"""The stewards' review: desk.py has the cases that wait, with the model's answers (kept_answers.py) and who looks at
which (leases.py); decisions.py has the decisions, chain.py how each names the one before; export.py makes training rows
of them; routes.py and page/ are what a reviewer sees.
"""
