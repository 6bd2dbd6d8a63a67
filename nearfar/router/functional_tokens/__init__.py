"""Functional tokens: a near model names a worker in one constrained decode step, and may rewrite the query for it.

Source: Octopus v4, arXiv 2404.19296: every worker has a token and a docstring; the graph's nodes are workers.
"""
