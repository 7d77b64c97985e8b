"""What every model shares. Each module is small and has one reason to change; none knows a model."""
