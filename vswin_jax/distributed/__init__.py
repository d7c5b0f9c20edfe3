"""Runs of several processes: who belongs to one, how they meet, agree and end."""
