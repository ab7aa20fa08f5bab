"""SEAL: safety-enhanced fine-tuning by bilevel data selection."""

__version__ = "0.1.0"
