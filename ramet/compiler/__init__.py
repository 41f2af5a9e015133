"""From a Python function to a module of the IR: source, check, scope, graph, SSA, passes."""
