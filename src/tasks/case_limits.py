"""How large a case is, and what kind of JSON value it is: what every task's service asks before its own questions."""


def kind_of(value):
    """The kind of a JSON value in words, with its article."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def size_of(value):
    """(fields and list items at all levels, levels)"""
    n = 0
    deepest = 0
    waiting = [(value, 1)] if isinstance(value, dict | list) else []
    while waiting:
        one, level = waiting.pop()
        inner = one.values() if isinstance(one, dict) else one
        n = n + len(one)
        deepest = max(deepest, level)
        waiting += [(item, level + 1) for item in inner if isinstance(item, dict | list)]
    return n, deepest


def size_problem(name, value, limits):
    """In what way a value is too large; None where it is within the service's limits."""
    n_fields, depth = size_of(value)
    if n_fields > limits.most_fields:
        return f"{name} has {n_fields:,} fields; {limits.most_fields} are read"
    if depth > limits.most_levels:
        return f"{name} is nested {depth} levels deep; {limits.most_levels} are read"
    return None
