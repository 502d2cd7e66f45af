"""Modules here check whether a log can be used: its draws, its rewards, and the estimates that it gives."""
