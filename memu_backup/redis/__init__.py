"""Redis and Valkey: how one is asked, what its snapshots look like, and where they are put back."""
