"""What lies beside the copies on a drive. ``restore.py`` is copied as it is and never imported."""
