"""The HTTP service. line.py holds the requests that wait for the model, bodies.py reads what clients send, gate.py
stands before every route (request ids, keys, logs, counts), app.py has the routes, chat.py those that ordinary OpenAI
clients ask.
"""
