"""Agents: roles that plan, call and summarize, each a model or a cascade, and the tools that they use."""
