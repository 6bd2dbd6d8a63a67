"""Scores agents against gold calls, plans and answers, with or without a model."""
