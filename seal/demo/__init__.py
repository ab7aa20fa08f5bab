"""The embedded demo task: a tiny aligned model and rows to select from, made from a seed."""

from seal.demo.directory import build
from seal.demo.evaluation import measure
from seal.demo.world import TIERS, Plan, make_rows

__all__ = ["TIERS", "Plan", "build", "make_rows", "measure"]
