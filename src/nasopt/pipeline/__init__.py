"""The main job in its parts: set-up, run folder, plan, phases."""
