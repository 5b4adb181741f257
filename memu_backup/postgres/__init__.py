"""PostgreSQL: how a server is reached, its own programs, dumps and copies of it, the way back, and one of our own."""
