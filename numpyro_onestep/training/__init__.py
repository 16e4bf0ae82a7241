"""Training of the flow: the losses, the loop and the rules for when to stop."""
