"""Networks with inline choices, and how to train them."""
