"""The bodies of the scripts in examples, and their flags."""
