"""The life of vLLM servers: started, watched, mended, shared out within the memory there is, and stopped."""
