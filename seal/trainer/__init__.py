"""The selector trainer and the SFT trainer."""
