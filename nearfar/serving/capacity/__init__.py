"""Which machines to rent for a load: the cheapest mix that meets a latency target, and a simulation that checks it."""
