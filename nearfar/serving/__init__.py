"""How models and answers are served: the HTTP gateway."""
