"""Drives that are plugged in: hears of them, knows them, mounts them, writes on them and lets them go."""
