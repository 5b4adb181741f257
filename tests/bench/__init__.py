"""Measures memu-backup against what people use today: ``make bench``. Nothing here is a test; nothing here passes."""
