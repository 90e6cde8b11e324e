"""What the project publishes about itself; `python src/measure.py <name>` runs one."""
