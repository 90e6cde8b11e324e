"""The HTTP service. app.py builds it: gate.py stands before every route (request ids, keys, logs, counts), bodies.py
reads what clients send, cases.py has the task's routes, chat.py those that ordinary OpenAI clients ask, review/ the
stewards' page; answering.py holds the model and queue.py the requests that wait for it. task_contract.py says what of
all this depends on the task.
"""
