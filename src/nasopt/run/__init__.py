"""The loop: search, storages, executors."""
