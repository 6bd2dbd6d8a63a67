"""How models and answers are served: the HTTP gateway, vLLM servers, nested weights."""
