"""Load on an engine, and what the machine allows: clients, and the roofline."""
