"""Model wrappers, the selector and the loss arithmetic."""
