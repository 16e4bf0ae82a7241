"""What every other part may use: compilation, named random streams, the numerical environment."""
