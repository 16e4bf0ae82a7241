"""Checks of draws that do not use the flow: lines through the draws, and modes they miss."""
