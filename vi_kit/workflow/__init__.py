"""What is done around the gradient: fit, diagnose, choose, export."""
