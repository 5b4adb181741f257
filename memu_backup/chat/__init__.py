"""The bot in the family's Matrix room."""
