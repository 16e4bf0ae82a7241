"""Looking at draws without their weights: along lines through them, and for modes they miss."""
