"""Whole networks, still without torch: network IR, passes, memory plan, runtime, `.hubel` files.

Graph  →  passes (fold, fuse)  →  Binder (sizes: shapes, places, jobs)  →  Program  →  run
"""

from hubel.graph.network import Graph, Input, Node, Ref
from hubel.graph.passes import PASSES, optimised
from hubel.graph.runtime import Network

__all__ = ["PASSES", "Graph", "Input", "Network", "Node", "Ref", "optimised"]
