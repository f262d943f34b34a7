"""What a device is: the catalogue and its schema, reading and measuring this machine, the cost model, and budgets."""
