"""This package computes beliefs, which are sums over slots that can be added."""
