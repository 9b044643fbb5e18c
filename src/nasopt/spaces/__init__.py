"""The built-in search spaces, each one module with inline choices."""
