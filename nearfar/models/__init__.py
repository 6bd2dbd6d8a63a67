"""ChatModel implementations and the wrappers around them; knows nothing of routing."""
