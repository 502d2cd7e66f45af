"""Where the partitions of a log are worked on: in this process, in several, or on a cluster."""

from rlrec.compute.protocol import Engine, Runner

__all__ = ["Engine", "Runner"]
