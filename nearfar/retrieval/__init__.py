"""Finding what bears on a query: embedders, and what is built on them."""
