"""Runnable models with their guides, one problem a file."""
