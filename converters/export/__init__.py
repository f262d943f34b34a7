"""Writes a student as one file for each runtime."""
